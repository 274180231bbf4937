//! What the roles of one instance share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use wardline_log::fold;
use wardline_runtime::audit::Audit;
use wardline_runtime::auth::{AuthLayer, Authenticator};
use wardline_runtime::consumer;
use wardline_runtime::health::{Cause, FoldHealth, Health};
use wardline_runtime::members::Members;
use wardline_runtime::revocations::Revocations;
use wardline_runtime::serve::{self, Bound};

use super::needs::{self, Shared};
use super::{Fault, NodeOptions, Over, Role, StartError};
use crate::keys;

/// How many conversations' heads and rosters an instance caches.
const MEMBERS_CACHED: usize = 100_000;
/// How old a cached one may be.
const MEMBERS_FRESH: Duration = Duration::from_secs(5);

/// What the roles of one instance share.
#[derive(Debug)]
pub struct Parts {
    pub(super) over: Over,
    pub(super) members: Members,
    pub(super) revocations: Revocations,
    authenticator: Option<Authenticator>,
    pub(super) drain: CancellationToken,
    pub(super) stop: CancellationToken,
    pub(super) listeners: TaskTracker,
    pub(super) folds: TaskTracker,
    pub(super) fault: mpsc::Sender<Fault>,
    pub(super) health: Health,
}

impl Parts {
    pub(super) async fn assemble(
        over: Over,
        options: &NodeOptions,
        drain: CancellationToken,
        stop: CancellationToken,
        fault: mpsc::Sender<Fault>,
    ) -> Result<Self, StartError> {
        let conversations = Arc::clone(&over.stores.conversations);
        let members = Members::new(conversations, MEMBERS_CACHED, MEMBERS_FRESH, over.clock.clone());
        let revocations = Revocations::follow(Arc::clone(&over.log), stop.clone()).await?;
        let authenticator = options.keys.session.clone().map(|keys| Authenticator {
            keys,
            revocations: revocations.clone(),
            registry: Arc::clone(&over.registry),
            clock: over.clock.clone(),
        });
        let (listeners, folds, health) = (TaskTracker::new(), TaskTracker::new(), options.health.clone());
        let parts = Self { over, members, revocations, authenticator, drain, stop, listeners, folds, fault, health };
        parts.look_after_engines(&options.roles);
        Ok(parts)
    }

    /// Tells how the engines are until the folds stop.
    fn look_after_engines(&self, roles: &[Role]) {
        let shared = |cause| Shared::of(&self.health, roles, cause);
        let log = needs::log(self.revocations.clone(), shared(Cause::Log));
        let stores = needs::stores(Arc::clone(&self.over.stores.checkpoints), shared(Cause::Store));
        let registry = needs::registry(Arc::clone(&self.over.registry), shared(Cause::Registry));
        let stop = self.stop.clone();
        self.folds.spawn(async move {
            stop.run_until_cancelled(async { tokio::join!(log, stores, registry) }).await;
        });
    }

    pub(super) fn audit(&self, role: Role) -> Audit {
        Audit { log: Arc::clone(&self.over.log), role: role.name(), clock: self.over.clock.clone() }
    }

    /// What a role that folds a topic runs on.
    pub(super) fn consumer(&self, role: Role) -> consumer::Deps {
        consumer::Deps {
            log: Arc::clone(&self.over.log),
            stores: self.over.stores.clone(),
            health: FoldHealth::of(&self.health.role(role.name())),
        }
    }

    /// Knows callers by their sessions.
    pub(super) fn authenticator(&self, role: Role) -> Result<Authenticator, StartError> {
        self.authenticator.clone().ok_or(StartError::Key { role: role.name(), key: keys::SESSION })
    }

    /// Sessions are needed for everything but `open`.
    pub(super) fn auth(&self, role: Role, open: &'static [&'static str]) -> Result<AuthLayer, StartError> {
        Ok(AuthLayer { authenticator: self.authenticator(role)?, open })
    }

    /// Binds and serves the public until the drain. The address is known when this answers.
    pub(super) async fn listen(
        &self,
        role: Role,
        address: SocketAddr,
        services: Services,
        auth: AuthLayer,
        options: &NodeOptions,
    ) -> Result<SocketAddr, StartError> {
        let bound = bind(role.name(), address).await?;
        let address = bound.address;
        let serving = serve::Options { tls: options.tls.clone(), ..serve::Options::default() };
        let listener = Listener { name: role.name(), role, bound, services, auth: Some(auth) };
        self.serve(listener, serving, options.grace, (&self.listeners, &self.drain));
        Ok(address)
    }

    /// Serves other instances until the folds stop: links carry what they still have to say. They prove themselves by the
    /// link key, so no certificate is asked of them.
    pub(super) fn serve_links(&self, bound: Bound, services: Services, options: &NodeOptions) {
        let tls = options.link_tls.as_ref().and(options.tls.clone());
        let tls = tls.map(|tls| serve::Tls { client_ca_pem: None, ..tls });
        let serving = serve::Options { tls, reflection: false, timeout: None, ..serve::Options::default() };
        let listener = Listener { name: "link", role: Role::Presence, bound, services, auth: None };
        self.serve(listener, serving, options.grace, (&self.folds, &self.stop));
    }

    fn serve(
        &self,
        listener: Listener,
        serving: serve::Options,
        grace: Duration,
        (tasks, until): (&TaskTracker, &CancellationToken),
    ) {
        let Listener { name, role, bound, services, auth } = listener;
        let (reporter, _) = tonic_health::server::health_reporter();
        let (health, until, fault) = (self.health.clone(), until.clone(), self.fault.clone());
        tasks.spawn(async move {
            let mirror = health.mirror(role.name(), services.names, reporter.clone());
            let served = tokio::select! {
                served = serve::serve(bound, services.routes, auth, reporter, serving, until, grace) => served,
                never = mirror => match never {},
            };
            if let Err(error) = served {
                // Nobody hears it when the instance is going away already.
                let _ = fault.send(Fault::Listener { role: name, error }).await;
            }
        });
    }

    /// Runs a fold until the stop; a halt is a fault of the instance.
    pub(super) fn fold(&self, role: Role, run: impl Future<Output = fold::Ended> + Send + 'static) {
        let (fault, stop, reporter) = (self.fault.clone(), self.stop.clone(), self.health.role(role.name()));
        self.folds.spawn(async move {
            match run.await {
                fold::Ended::Stopped => {}
                ended @ fold::Ended::Halted { .. } => {
                    let _halted = reporter.condition(Cause::Fold);
                    let _ = fault.send(Fault::Halted { role: role.name(), ended }).await;
                    stop.cancelled().await;
                }
            }
        });
    }
}

/// What a listener serves.
pub(super) struct Services {
    pub(super) routes: Routes,
    /// Their names, for health.
    pub(super) names: &'static [&'static str],
}

/// A listener, not served yet.
struct Listener {
    name: &'static str,
    /// Whose health it tells.
    role: Role,
    bound: Bound,
    services: Services,
    auth: Option<AuthLayer>,
}

/// Opens a port.
pub(super) async fn bind(role: &'static str, address: SocketAddr) -> Result<Bound, StartError> {
    serve::bind(address).await.map_err(|source| StartError::Listen { role, address, source })
}
