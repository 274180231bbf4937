//! Roles say what is: an instance whose engine is away does not serve, lives on, and serves again when the engine is back.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use support::eventually;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use wardline::config::Embedded;
use wardline::engines::Engines;
use wardline::keys::Keys;
use wardline::node::{Fault, Node, NodeOptions, Over, Role};
use wardline_domain::{Cause, Digest, Failure, Position, UserId};
use wardline_log::laws::{Faults as LogFaults, Faulty, Switch as LogSwitch};
use wardline_registry::{Allowance, Owner, Presence, Rate, Registry};
use wardline_runtime::Clock;
use wardline_runtime::health::{self, Health};
use wardline_store::checkpoints::Checkpoint;
use wardline_store::laws::faulty::{Faults as StoreFaults, Switch as StoreSwitch, faulty_with_switch};
use wardline_testbed::people::PATIENCE;

/// Within which an instance says that its engine is away.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// The services of each listener, by the listener's name.
const SERVICES: [(&str, &[&str]); 5] = [
    ("ingest", &["wardline.v1.ConversationService"]),
    ("presence", &["wardline.v1.DeliveryService"]),
    ("receipt", &["wardline.v1.ReceiptService"]),
    ("directory", &["wardline.v1.SessionService", "wardline.v1.DirectoryService"]),
    ("link", &["wardline.internal.v1.PresenceLinkService"]),
];

/// Engines that can be taken away, and the options of an instance over them.
struct World {
    over: Over,
    log: LogSwitch,
    store: StoreSwitch,
    options: NodeOptions,
    engines: Engines,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let engines = Engines::open(&dir.path().join("data"), &Embedded::default(), clock.clone()).await.unwrap();
        let log = Faulty::new(Arc::clone(&engines.log), 1, LogFaults::NONE);
        let all = StoreFaults { not_applied: 100, unknown_not_applied: 0, unknown_applied: 0, torn: 0, reads: 100 };
        let (stores, store) = faulty_with_switch(engines.stores.clone(), 1, all);
        store.set(false);
        let options = NodeOptions::new(Keys::load_or_make(&dir.path().join("keys")).unwrap(), Vec::new());
        let (switch, registry) = (log.switch(), Arc::clone(&engines.registry));
        let over = Over { log: Arc::new(log), stores, registry, clock };
        Self { over, log: switch, store, options, engines, _dir: dir }
    }

    async fn start(&self) -> Node {
        let node = Node::start(self.over.clone(), self.options.clone()).await.unwrap();
        all(&self.options.health, true, PATIENCE).await;
        node
    }

    async fn end(self, node: Node) {
        node.drain().await;
        self.engines.close(Instant::now() + PATIENCE).await.unwrap();
    }
}

/// Waits until every role serves, or none does.
async fn all(health: &Health, serving: bool, within: Duration) {
    for role in Role::ALL {
        let told = timeout(within, health.until(role.name(), serving)).await;
        told.unwrap_or_else(|_| panic!("{} does not say {serving}: {:?}", role.name(), health.causes(role.name())));
    }
}

/// Waits until every listener's health service says the same of all that it serves.
async fn everywhere(node: &Node, status: ServingStatus) {
    for (listener, services) in SERVICES {
        for service in services.iter().chain(&[""]) {
            let address = node.addresses()[listener];
            let told = format!("{listener} to say {status:?} of {service:?}");
            eventually(&told, async || (said(address, service).await == status).then_some(())).await;
        }
    }
}

async fn said(address: SocketAddr, service: &str) -> ServingStatus {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel).check(request).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_goes_away_is_told_by_every_role_and_every_listener() {
    let world = World::new().await;
    let mut node = world.start().await;
    everywhere(&node, ServingStatus::Serving).await;
    world.log.away(true);
    all(node.health(), false, TOLD_WITHIN).await;
    everywhere(&node, ServingStatus::NotServing).await;
    for role in Role::ALL {
        assert!(node.health().causes(role.name()).contains(&health::Cause::Log), "{} names it", role.name());
    }
    assert!(timeout(Duration::ZERO, node.fault()).await.is_err(), "it lives on");
    world.log.away(false);
    all(node.health(), true, PATIENCE).await;
    everywhere(&node, ServingStatus::Serving).await;
    world.end(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_is_told_by_every_role() {
    let world = World::new().await;
    let mut node = world.start().await;
    world.store.set(true);
    all(node.health(), false, TOLD_WITHIN).await;
    for role in Role::ALL {
        assert!(node.health().causes(role.name()).contains(&health::Cause::Store), "{} names it", role.name());
    }
    assert!(timeout(Duration::ZERO, node.fault()).await.is_err(), "it lives on");
    world.store.set(false);
    all(node.health(), true, PATIENCE).await;
    everywhere(&node, ServingStatus::Serving).await;
    world.end(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_starts_without_its_engines_waits_for_them() {
    let world = World::new().await;
    world.log.away(true);
    world.store.set(true);
    let mut start = Box::pin(Node::start(world.over.clone(), world.options.clone()));
    assert!(timeout(Duration::from_millis(500), &mut start).await.is_err(), "it started without a log");
    let told = world.options.health.snapshot();
    assert!(told.len() == Role::ALL.len() && told.iter().all(|(_, serves)| !serves), "{told:?}");
    world.log.away(false);
    // There is nothing to replay, for which a start would wait.
    let node = timeout(PATIENCE, start).await.unwrap().unwrap();
    all(node.health(), false, Duration::ZERO).await;
    everywhere(&node, ServingStatus::NotServing).await;
    world.store.set(false);
    all(node.health(), true, PATIENCE).await;
    everywhere(&node, ServingStatus::Serving).await;
    world.end(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_given_up_leaves_nothing_behind() {
    let world = World::new().await;
    world.log.away(true);
    let start = Node::start(world.over.clone(), world.options.clone());
    assert!(timeout(Duration::from_millis(500), start).await.is_err());
    // What follows the log holds it, until it is told to stop.
    let held = Arc::downgrade(&world.over.log);
    let World { over, engines, .. } = world;
    drop(over);
    eventually("nothing to hold the log", async || held.upgrade().is_none().then_some(())).await;
    engines.close(Instant::now() + PATIENCE).await.unwrap();
}

/// A registry that is away.
struct Away;

fn away<T>() -> Result<T, Failure> {
    Err(Failure::Unknown(Cause::unavailable("injected")))
}

#[async_trait]
impl Registry for Away {
    async fn announce_owner(&self, _: u32, _: &Owner, _: Duration) -> Result<(), Failure> {
        away()
    }

    async fn owner(&self, _: u32) -> Result<Option<Owner>, Failure> {
        away()
    }

    async fn announce_presence(&self, _: &[(UserId, Presence)], _: Duration) -> Result<(), Failure> {
        away()
    }

    async fn presence(&self, _: &[UserId]) -> Result<Vec<Option<Presence>>, Failure> {
        away()
    }

    async fn take(&self, _: [u8; 16], _: Rate, _: u32) -> Result<Allowance, Failure> {
        away()
    }

    async fn end_session(&self, _: [u8; 16], _: Duration) -> Result<(), Failure> {
        away()
    }

    async fn session_ended(&self, _: [u8; 16]) -> Result<bool, Failure> {
        away()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_stops_serving_for_the_registry() {
    let mut world = World::new().await;
    world.over.registry = Arc::new(Away);
    let node = world.start().await;
    let noticed = async || node.health().causes("ingest").contains(&health::Cause::Registry).then_some(());
    timeout(TOLD_WITHIN, eventually("the registry to be missed", noticed)).await.unwrap();
    all(node.health(), true, Duration::ZERO).await;
    world.end(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_whose_fold_halted_does_not_serve() {
    let world = World::new().await;
    // The log ends long before: it is not the one that the checkpoint was made on.
    let elsewhere = Position::new(9, 0).unwrap();
    let checkpoint = Checkpoint { position: elsewhere, digest: Digest::default(), marks: Bytes::new() };
    world.over.stores.checkpoints.put(("conversations", 0), &checkpoint).await.unwrap();
    let mut node = Node::start(world.over.clone(), world.options.clone()).await.unwrap();
    let fault = timeout(PATIENCE, node.fault()).await.unwrap();
    assert!(matches!(fault, Fault::Halted { role: "fanout", .. }), "{fault}");
    timeout(PATIENCE, node.health().until("receipt", true)).await.unwrap();
    assert!(node.health().causes("fanout").contains(&health::Cause::Fold), "it serves without its fold");
    world.end(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_so_before_all_else() {
    let world = World::new().await;
    let node = world.start().await;
    let health = node.health().clone();
    let mut drain = Box::pin(node.drain());
    // The first step of the drain, before anything has ended.
    let _ = futures::poll!(&mut drain);
    for role in Role::ALL {
        assert!(health.causes(role.name()).contains(&health::Cause::Drain), "{} goes away", role.name());
    }
    all(&health, false, Duration::ZERO).await;
    drain.await;
    all(&health, false, Duration::ZERO).await;
    world.engines.close(Instant::now() + PATIENCE).await.unwrap();
}
