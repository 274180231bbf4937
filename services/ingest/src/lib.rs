//! Ingest: authenticates, validates, authorises, stamps, appends, and answers when the log has it durably.
//!
//! Deliberately absent: order. Who comes first, which commit wins and what is a repeat is decided by the fold over the log;
//! ingest only refuses at once what its cache proves the fold would refuse.

mod admit;
mod append;
mod commit;
mod devices;
mod grpc;
mod measures;
mod outcome;
mod revoked;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wardline_log::EventLog;
use wardline_proto::v1::conversation_service_server::ConversationServiceServer;
use wardline_registry::{Rate, Registry};
use wardline_runtime::Clock;
use wardline_runtime::audit::Audit;
use wardline_runtime::auth::Authenticator;
use wardline_runtime::members::Members;
use wardline_runtime::revocations::Revocations;
use wardline_store::Stores;

pub use crate::measures::METRICS;

/// The largest envelope plus MLS message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The largest Welcome, in bytes.
pub const MAX_WELCOME_BYTES: usize = 2 << 20;
/// The largest group state, in bytes.
pub const MAX_GROUP_STATE_BYTES: usize = 4 << 20;

/// How many GetOutcome calls may wait at a time.
const MAX_WAITERS: usize = 512;

/// What ingest works with.
#[derive(Clone)]
pub struct Deps {
    /// Where accepted records go.
    pub log: Arc<dyn EventLog>,
    /// Outcomes, blobs and registered keys.
    pub stores: Stores,
    /// What calls are authorised against.
    pub members: Members,
    /// Who may no longer act.
    pub revocations: Revocations,
    /// Ends the streams of sessions that ended.
    pub authenticator: Authenticator,
    /// Fairness between devices.
    pub registry: Arc<dyn Registry>,
    /// Security decisions.
    pub audit: Audit,
    /// Tells the time that records are stamped with.
    pub clock: Clock,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deps")
    }
}

/// How ingest behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much each device may send.
    pub rate: Rate,
    /// How long an append may take before its outcome is called unknown.
    pub append_deadline: Duration,
    /// How many messages of one Publish stream may be unanswered.
    pub publish_in_flight: u32,
    /// How many bytes of one Publish stream may be unanswered.
    pub publish_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: Rate { burst: 2_000, per_second: 500 },
            append_deadline: Duration::from_secs(10),
            publish_in_flight: 256,
            publish_bytes: 4 << 20,
        }
    }
}

/// The role. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    deps: Deps,
    options: Options,
    keys: devices::RegisteredKeys,
    swept: revoked::Swept,
    /// Places for GetOutcome calls that wait.
    waiters: Semaphore,
    drain: CancellationToken,
}

impl Ingest {
    /// The role over `deps`. When `drain` is cancelled, open Publish streams are told and end.
    pub fn new(deps: Deps, options: Options, drain: CancellationToken) -> Self {
        let keys = devices::RegisteredKeys::new(deps.stores.directory.clone());
        let waiters = Semaphore::new(MAX_WAITERS);
        Self { inner: Arc::new(Inner { deps, options, keys, swept: revoked::Swept::default(), waiters, drain }) }
    }

    /// Its gRPC service.
    pub fn service(&self) -> ConversationServiceServer<Self> {
        ConversationServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + MAX_WELCOME_BYTES + MAX_GROUP_STATE_BYTES + (64 << 10))
    }
}
