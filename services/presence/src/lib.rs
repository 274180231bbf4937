//! The presence role: devices attach here and get their feeds.
//!
//! Two halves in one process. The **owner** of a feeds partition is the single writer of the feeds of the users in it, and
//! knows every attached device of theirs. The **edge** ends devices' streams and carries each to its owner over one link per
//! pair of instances, itself included. Which instance owns a partition stands in the log; the registry only helps to find
//! it.
//!
//! A device without a cursor starts at the oldest event kept: its first event may name any `previous`. From then on each
//! event names the one before it, and a gap is said first.
//!
//! Deliberately absent: engines and other roles; watermarks (the receipt role folds them); membership (fanout derives it).

mod backoff;
mod convert;
mod cursor;
mod edge;
mod event;
mod link;
mod lookup;
mod measures;
mod options;
mod owner;
mod service;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use wardline_log::fold::{self, Ended};
use wardline_log::{EventLog, FetchLimits, Group, Start, Topic};
use wardline_proto::internal::v1::presence_link_service_server::PresenceLinkServiceServer;
use wardline_proto::v1::delivery_service_server::DeliveryServiceServer;
use wardline_registry::Registry;
use wardline_runtime::Clock;
use wardline_runtime::audit::Audit;
use wardline_runtime::auth::Authenticator;
use wardline_runtime::members::Members;
use wardline_runtime::revocations::Revocations;
use wardline_store::Stores;

pub use self::link::{LinkGate, LinkKey};
pub use self::measures::METRICS;
pub use self::options::{Limits, Options, Timings};
pub use self::owner::session::LinkService;
pub use self::service::DeliveryService;
use crate::edge::Edge;
use crate::owner::fold::FeedFolds;
use crate::owner::{Shared, keeper};

/// How often the driver flushes the store and trims the log.
const TRIM_EVERY: std::time::Duration = std::time::Duration::from_secs(10);
/// The largest frame a link takes.
const LINK_FRAME_BYTES: usize = 16 << 20;

/// What the role runs on.
#[derive(Clone)]
pub struct Deps {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The stores.
    pub stores: Stores,
    /// Hints about owners and presence.
    pub registry: Arc<dyn Registry>,
    /// Who may read a conversation.
    pub members: Members,
    /// Renews sessions inside streams.
    pub authenticator: Authenticator,
    /// Ends the streams of the revoked.
    pub revocations: Revocations,
    /// Tells the time.
    pub clock: Clock,
    /// Records refusals.
    pub audit: Audit,
    /// Shared by all presence instances.
    pub link_key: LinkKey,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deps")
    }
}

/// How the role is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not all assigned partitions have been served yet.
    Starting,
    /// All is well.
    Serving,
    /// A partition waits for an engine.
    Paused,
    /// Going away.
    Draining,
}

/// One instance of the role.
#[derive(Debug)]
pub struct Presence {
    deps: Deps,
    owner: Arc<Shared>,
    edge: Arc<Edge>,
    health: watch::Sender<Health>,
    links: CancellationToken,
}

impl Presence {
    /// Makes an instance; nothing happens before [`Presence::run`].
    pub fn new(deps: Deps, options: Options) -> Self {
        let (health, _) = watch::channel(Health::Starting);
        let owner = Arc::new(Shared::new(&deps, options, health.clone()));
        let edge = Arc::new(Edge::new(&deps, Arc::clone(&owner)));
        Self { deps, owner, edge, health, links: CancellationToken::new() }
    }

    /// For the public listener, under [`wardline_runtime::auth::AuthLayer`].
    pub fn delivery_service(&self) -> DeliveryServiceServer<DeliveryService> {
        DeliveryServiceServer::new(DeliveryService { edge: Arc::clone(&self.edge) })
    }

    /// For the internal listener that [`Options::link_address`] leads to. Brings its own authentication.
    pub fn link_service(&self) -> InterceptedService<PresenceLinkServiceServer<LinkService>, LinkGate> {
        let service = LinkService { shared: Arc::clone(&self.owner), stop: self.links.clone() };
        let service = PresenceLinkServiceServer::new(service)
            .max_decoding_message_size(LINK_FRAME_BYTES)
            .max_encoding_message_size(LINK_FRAME_BYTES);
        let (key, clock, options) = (self.deps.link_key.clone(), self.deps.clock.clone(), &self.owner.options);
        let gate = LinkGate::new(key, clock, &options.link_address, &options.peers);
        InterceptedService::new(service, gate)
    }

    /// How the instance is, from now on.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Owns partitions, and serves, until `stop` or until a person must look. What devices reported is flushed before it
    /// answers.
    pub async fn run(&self, stop: CancellationToken) -> Ended {
        let helpers = CancellationToken::new();
        // A run that is dropped must not go on claiming partitions it does not fold.
        let _helpers_end = helpers.clone().drop_guard();
        let tasks = [
            tokio::spawn(keeper::claims(Arc::clone(&self.owner), helpers.clone())),
            tokio::spawn(keeper::announcements(Arc::clone(&self.owner), helpers.clone())),
            tokio::spawn(keeper::presence(Arc::clone(&self.owner), helpers.clone())),
            tokio::spawn(keeper::retention(Arc::clone(&self.owner), helpers.clone())),
            tokio::spawn(keeper::gauges(Arc::clone(&self.owner), helpers.clone())),
            tokio::spawn(edge::follow(Arc::clone(&self.edge), helpers.clone())),
            tokio::spawn(edge::gauges(Arc::clone(&self.edge), helpers.clone())),
            tokio::spawn(report(Arc::clone(&self.owner), helpers.clone())),
        ];
        let ended = fold::run(
            Arc::clone(&self.deps.log),
            Arc::clone(&self.deps.stores.checkpoints),
            Arc::new(FeedFolds { shared: Arc::clone(&self.owner) }),
            self.fold_options(),
            stop,
        )
        .await;
        self.owner.end_all();
        helpers.cancel();
        for task in tasks {
            if let Err(panicked) = task.await {
                tracing::error!(%panicked, "a task of the presence role ended early");
            }
        }
        self.links.cancel();
        ended
    }

    /// Tells devices to go elsewhere, and takes no new ones. Call it before `stop`.
    pub fn drain(&self) {
        self.health.send_replace(Health::Draining);
        self.edge.drain.cancel();
    }

    fn fold_options(&self) -> fold::Options {
        fold::Options {
            topic: Topic::Feeds,
            group: Group::Named("presence"),
            limits: FetchLimits::default(),
            start: Start::Oldest,
            checkpointed: true,
            trim_every: TRIM_EVERY,
        }
    }
}

async fn report(owner: Arc<Shared>, stop: CancellationToken) {
    owner.report(stop).await;
}
