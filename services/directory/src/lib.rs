//! The directory role: who may speak (sessions) and who there is (tenants, users, devices, their logs and key packages).
//!
//! It alone compares and sets. What others must know of a change at once travels by the compacted `directory` topic, which
//! [`Directory::follow_revocations`] spreads to conversations and feeds.
//!
//! Deliberately absent: engines, other roles, and everything about conversations but the control records of a revocation.

mod access_token;
mod announce;
mod claim;
mod config;
pub mod device_log;
mod devices;
mod dpop;
mod grpc;
mod jwk;
mod key_packages;
mod measures;
mod quota;
mod revoke;
mod sessions;
mod spread;
mod tenants;
mod users;

use std::sync::{Arc, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use wardline_domain::{TenantId, UserId};
use wardline_log::{EventLog, fold};
use wardline_proto::reason::Reason;
use wardline_proto::v1::directory_service_server::DirectoryServiceServer;
use wardline_proto::v1::session_service_server::SessionServiceServer;
use wardline_registry::Registry;
use wardline_runtime::audit::{Audit, Counted};
use wardline_runtime::consumer;
use wardline_runtime::revocations::Revocations;
use wardline_runtime::session::SessionKeys;
use wardline_runtime::{Caller, Clock, Refusal};
use wardline_store::Conversations;

use crate::access_token::Issuers;
pub use crate::config::{Info, InvalidIssuer, Issuer, Limits};
use crate::dpop::Proofs;
pub use crate::measures::METRICS;

/// The methods that need no session, for [`wardline_runtime::auth::AuthLayer::open`].
pub const OPEN: &[&str] = &["/wardline.v1.SessionService/GetServerInfo", "/wardline.v1.SessionService/CreateSession"];

/// The largest request, in bytes: a full publication of key packages.
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// The largest request for a session, in bytes: an access token and a proof. Nobody knows yet who sends it.
const MAX_SESSION_REQUEST_BYTES: usize = 32 << 10;

/// What the role stands on.
#[derive(Clone)]
pub struct Deps {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Tenants, users, devices, key packages.
    pub directory: Arc<dyn wardline_store::Directory>,
    /// For memberships and rosters of the revoked.
    pub conversations: Arc<dyn Conversations>,
    /// Quotas and ended sessions.
    pub registry: Arc<dyn Registry>,
    /// Tells the time.
    pub clock: Clock,
    /// Security decisions go there.
    pub audit: Audit,
    /// Mints sessions.
    pub sessions: Arc<SessionKeys>,
    /// Refuses the revoked.
    pub revocations: Revocations,
    /// Whose access tokens open sessions.
    pub issuers: Vec<Issuer>,
    /// The tenant authority's key: signs administrative entries of device logs.
    pub authority: Arc<ed25519_dalek::SigningKey>,
    /// Bounds and quotas.
    pub limits: Limits,
    /// What GetServerInfo answers beside the authority's key.
    pub info: Info,
}

/// The directory role. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    role: Arc<Role>,
}

/// What every handler works with.
struct Role {
    deps: Deps,
    issuers: RwLock<Arc<Issuers>>,
    proofs: Proofs,
    /// Refusals of callers nobody knows.
    unknown: Counted,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Directory")
    }
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deps")
    }
}

impl Directory {
    /// The role on `deps`.
    pub fn new(mut deps: Deps) -> Self {
        let issuers = RwLock::new(Arc::new(Issuers::new(std::mem::take(&mut deps.issuers))));
        let proofs = Proofs::new(&deps.sessions, deps.info.public_origin.as_deref());
        let unknown = Counted::new(deps.audit.clone(), deps.limits.refusals_counted_for);
        Self { role: Arc::new(Role { deps, issuers, proofs, unknown }) }
    }

    /// Its services.
    pub fn services(&self) -> (SessionServiceServer<Self>, DirectoryServiceServer<Self>) {
        (
            SessionServiceServer::new(self.clone()).max_decoding_message_size(MAX_SESSION_REQUEST_BYTES),
            DirectoryServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES),
        )
    }

    /// Its services as routes, for [`wardline_runtime::serve::serve`].
    pub fn routes(&self) -> Routes {
        let (sessions, directory) = self.services();
        Routes::new(sessions).add_service(directory)
    }

    /// Replaces the issuers: their keys were rotated.
    pub fn set_issuers(&self, issuers: Vec<Issuer>) {
        let issuers = Arc::new(Issuers::new(issuers));
        *self.role.issuers.write().unwrap_or_else(PoisonError::into_inner) = issuers;
    }

    /// Tells every conversation, and the users' own feeds, of devices and users that ended, until `stop`. Each revocation is
    /// spread by one instance of the role; what a crash leaves undone is done after it.
    pub async fn follow_revocations(&self, on: consumer::Deps, stop: CancellationToken) -> fold::Ended {
        spread::run(on, self.role.deps.clock.clone(), stop).await
    }
}

impl Role {
    fn issuers(&self) -> Arc<Issuers> {
        Arc::clone(&self.issuers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a decision and hands it on.
    fn audited<T>(
        &self,
        action: &'static str,
        caller: Option<&Caller>,
        subject: Option<&[u8; 16]>,
        result: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let outcome = result.as_ref().map(|_| ()).map_err(|refusal| refusal.reason);
        measures::decided(action, outcome);
        self.deps.audit.record(action, caller, subject, outcome);
        result
    }

    /// A user of the tenant; another tenant's is not found.
    async fn user_in(&self, tenant: TenantId, user: UserId) -> Result<wardline_store::directory::UserRow, Refusal> {
        let row = self.deps.directory.user(user).await?;
        row.filter(|row| row.tenant == tenant).ok_or(Refusal::new(Reason::NotFound))
    }
}

/// The tenant of a session that may do more than enrol.
fn tenant_of(caller: &Caller) -> Result<TenantId, Refusal> {
    match (caller.tenant, caller.user, caller.device) {
        (Some(_), Some(_), None) => Err(Refusal::new(Reason::DeviceNotEnrolled)),
        (Some(tenant), _, _) => Ok(tenant),
        (None, _, _) => Err(Refusal::new(Reason::NotFound)),
    }
}

/// Refuses a session without the scope, which the metadata names.
fn require_scope(held: bool, name: &'static str) -> Result<(), Refusal> {
    if held { Ok(()) } else { Err(Refusal::new(Reason::ScopeRequired).with("scope", name)) }
}
