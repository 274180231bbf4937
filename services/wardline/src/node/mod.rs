//! One instance of some or all roles over given engines: the composition root. Roles talk to each other only through the
//! log, the stores, the registry and the presence link, also when they share a process.
//!
//! Deliberately absent: where engines, keys and addresses come from.

mod needs;
mod parts;
mod replay;
mod roles;
mod watched;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::ClientTlsConfig;
use wardline_domain::Failure;
use wardline_log::{EventLog, Topic, fold};
use wardline_registry::Registry;
use wardline_runtime::Clock;
use wardline_runtime::health::Health;
use wardline_runtime::serve::{ServeError, Tls};
use wardline_store::Stores;

use crate::keys::Keys;

pub use parts::Parts;

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Accepts messages and makes them durable.
    Ingest,
    /// Orders conversations and expands them into feeds.
    Fanout,
    /// Holds users' feeds and the devices attached to them.
    Presence,
    /// Folds receipts.
    Receipt,
    /// Tenants, users, devices, key packages, sessions.
    Directory,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ingest, Self::Fanout, Self::Presence, Self::Receipt, Self::Directory];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Fanout => "fanout",
            Self::Presence => "presence",
            Self::Receipt => "receipt",
            Self::Directory => "directory",
        }
    }
}

/// Where an instance listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// ConversationService.
    pub ingest: SocketAddr,
    /// DeliveryService.
    pub presence: SocketAddr,
    /// ReceiptService.
    pub receipt: SocketAddr,
    /// SessionService and DirectoryService.
    pub directory: SocketAddr,
    /// The presence link; for other presence instances only.
    pub link: SocketAddr,
}

impl Listen {
    /// Any free ports of this machine's loopback address.
    pub const fn any() -> Self {
        Self::consecutive(0)
    }

    /// Ports on loopback from `base` on; 0 takes any.
    pub const fn consecutive(base: u16) -> Self {
        const fn at(base: u16, offset: u16) -> SocketAddr {
            let port = if base == 0 { 0 } else { base.saturating_add(offset) };
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
        }
        Self {
            ingest: at(base, 1),
            presence: at(base, 2),
            receipt: at(base, 3),
            directory: at(base, 4),
            link: at(base, 5),
        }
    }
}

/// What an instance runs on. Clones share the engines.
#[derive(Clone)]
pub struct Over {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The stores.
    pub stores: Stores,
    /// Hints.
    pub registry: Arc<dyn Registry>,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Over")
    }
}

/// How an instance runs.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Which roles.
    pub roles: Vec<Role>,
    /// Where.
    pub listen: Listen,
    /// The public listeners' TLS.
    pub tls: Option<Tls>,
    /// Whose tokens are accepted.
    pub issuers: Vec<wardline_directory::Issuer>,
    /// The deployment's secrets.
    pub keys: Keys,
    /// Where other instances reach the link listener; by default its own address.
    pub link_advertise: Option<String>,
    /// How links to other instances are secured; then the link listener presents the certificate of `tls`.
    pub link_tls: Option<ClientTlsConfig>,
    /// Link addresses of other presence instances.
    pub link_peers: Vec<String>,
    /// How ingest behaves.
    pub ingest: wardline_ingest::Options,
    /// How fanout behaves.
    pub fanout: wardline_fanout::Options,
    /// The directory's bounds and quotas.
    pub directory_limits: wardline_directory::Limits,
    /// Presence's times.
    pub presence_timings: wardline_presence::Timings,
    /// Presence's limits.
    pub presence_limits: wardline_presence::Limits,
    /// How long streams and calls under way may take to end in a drain.
    pub grace: Duration,
    /// Whether a start waits for the replay of what a crash left undone: for stores that may be behind the log.
    pub replay: bool,
    /// Is told how the roles are. Of roles that nobody lists there before, [`Node::start`] does.
    pub health: Health,
}

impl NodeOptions {
    /// All roles on any free loopback ports.
    pub fn new(keys: Keys, issuers: Vec<wardline_directory::Issuer>) -> Self {
        Self {
            roles: Role::ALL.to_vec(),
            listen: Listen::any(),
            tls: None,
            issuers,
            keys,
            link_advertise: None,
            link_tls: None,
            link_peers: Vec::new(),
            ingest: wardline_ingest::Options::default(),
            fanout: wardline_fanout::Options::default(),
            directory_limits: wardline_directory::Limits::default(),
            presence_timings: wardline_presence::Timings::default(),
            presence_limits: wardline_presence::Limits::default(),
            grace: Duration::from_secs(5),
            replay: true,
            health: Health::default(),
        }
    }
}

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken.
    #[error("{role} cannot listen on {address}: {source}")]
    Listen {
        /// Whose.
        role: &'static str,
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// An engine holds what cannot be served from.
    #[error("an engine cannot be used: {0}")]
    Engine(#[from] Failure),
    /// The process was not given a key.
    #[error("{role} cannot do without `{key}`")]
    Key {
        /// Whose.
        role: &'static str,
        /// Which.
        key: &'static str,
    },
    /// The configuration of a role is not valid.
    #[error("{role}: {problem}")]
    Role {
        /// Which.
        role: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Why a running instance cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A fold halted: a person must look.
    #[error("{role} halted: {ended}")]
    Halted {
        /// Which role.
        role: &'static str,
        /// Why.
        ended: fold::Ended,
    },
    /// A listener failed.
    #[error("{role} stopped listening: {error}")]
    Listener {
        /// Which role.
        role: &'static str,
        /// Why.
        error: ServeError,
    },
}

/// A running instance.
#[derive(Debug)]
pub struct Node {
    addresses: BTreeMap<&'static str, SocketAddr>,
    /// Stops taking calls and streams.
    drain: CancellationToken,
    /// Ends the folds.
    stop: CancellationToken,
    listeners: TaskTracker,
    folds: TaskTracker,
    faults: mpsc::Receiver<Fault>,
    presence: Option<Arc<wardline_presence::Presence>>,
    health: Health,
    roles: Vec<Role>,
}

impl Node {
    /// Starts the roles. While an engine is away it waits, as long as it takes, and the roles are listed as not serving; drop
    /// the future to give up. No port is open before everything that was in the topic `directory` is known here, so that no
    /// revoked device is let in, and, if asked for, before an instance that folds `conversations` has replayed what a crash left
    /// undone, so that nobody is told that something is missing that the log holds.
    pub async fn start(over: Over, options: NodeOptions) -> Result<Self, StartError> {
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        // A start that is given up leaves nothing behind.
        let (undrained, unstopped) = (drain.clone().drop_guard(), stop.clone().drop_guard());
        let (fault, faults) = mpsc::channel(16);
        options.health.starting(options.roles.iter().map(|role| role.name()));
        let parts = Parts::assemble(over, &options, drain.clone(), stop.clone(), fault).await?;
        let mut node = Self {
            addresses: BTreeMap::new(),
            drain,
            stop,
            listeners: parts.listeners.clone(),
            folds: parts.folds.clone(),
            faults,
            presence: None,
            health: options.health.clone(),
            roles: options.roles.clone(),
        };
        if options.roles.contains(&Role::Fanout) {
            roles::fanout(&parts, &options);
            if options.replay {
                replay::folded(&parts.over, Topic::Conversations).await?;
            }
        }
        for role in &options.roles {
            match role {
                Role::Fanout => {}
                Role::Ingest => roles::ingest(&parts, &options, &mut node.addresses).await?,
                Role::Presence => {
                    node.presence = Some(roles::presence(&parts, &options, &mut node.addresses).await?);
                }
                Role::Receipt => roles::receipt(&parts, &options, &mut node.addresses).await?,
                Role::Directory => roles::directory(&parts, &options, &mut node.addresses).await?,
            }
        }
        options.roles.iter().for_each(|role| options.health.started(role.name()));
        drop((undrained.disarm(), unstopped.disarm()));
        Ok(node)
    }

    /// Where its listeners are, by name: `ingest`, `presence`, `receipt`, `directory`, `link`.
    pub const fn addresses(&self) -> &BTreeMap<&'static str, SocketAddr> {
        &self.addresses
    }

    /// Waits for a reason to end. Cancel-safe.
    pub async fn fault(&mut self) -> Fault {
        match self.faults.recv().await {
            Some(fault) => fault,
            None => std::future::pending().await,
        }
    }

    /// How its roles are.
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Says that it does not serve, takes no new work, tells devices to go elsewhere, lets what is under way end within the
    /// grace, then ends the folds.
    pub async fn drain(self) {
        self.roles.iter().for_each(|role| self.health.draining(role.name()));
        if let Some(presence) = &self.presence {
            presence.drain();
        }
        self.drain.cancel();
        // The folds go on while calls end: what was accepted is delivered as long as anybody listens.
        self.listeners.close();
        self.listeners.wait().await;
        self.stop.cancel();
        self.folds.close();
        self.folds.wait().await;
    }

    /// Ends at once, as if the process were killed, but within it. For tests.
    pub async fn abandon(self) {
        self.stop.cancel();
        self.drain.cancel();
        for tasks in [&self.folds, &self.listeners] {
            tasks.close();
            tasks.wait().await;
        }
    }
}
