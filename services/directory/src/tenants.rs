//! Tenants.

use wardline_domain::TenantId;
use wardline_proto::convert::ids;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::{Caller, Refusal};
use wardline_store::directory::{Put, RequestId, TenantRow};

use crate::{Role, require_scope, tenant_of};

/// External ids are unique in their tenant and do not say whose `sub` they are: a second issuer could name the first one's
/// users.
const MAX_ISSUERS: usize = 1;
const MAX_ISSUER_BYTES: usize = 512;
const MAX_RETENTION_DAYS: u32 = 36_525;

impl Role {
    pub(crate) async fn create_tenant(
        &self,
        caller: &Caller,
        request: v1::CreateTenantRequest,
    ) -> Result<v1::Tenant, Refusal> {
        require_scope(caller.scopes.operator, "operator")?;
        let id = ids::request(&request.request_id, "request_id")?;
        let row = parse(request.tenant.ok_or(Refusal::field("tenant", "is required"))?, id)?;
        match self.deps.directory.create_tenant(&row).await? {
            Put::Applied => Ok(to_wire(row)),
            Put::Exists(stored) if stored.request == id && stored.tenant == row.tenant => Ok(to_wire(stored)),
            Put::Exists(_) => Err(Refusal::new(Reason::AlreadyExists)),
        }
    }

    pub(crate) async fn get_tenant(&self, caller: &Caller, tenant: &str) -> Result<v1::Tenant, Refusal> {
        let own = if caller.scopes.operator { None } else { Some(tenant_of(caller)?) };
        let wanted = match tenant {
            "" => own.ok_or(Refusal::field("tenant_id", "is required of an operator"))?,
            text => ids::tenant(text, "tenant_id")?,
        };
        if own.is_some_and(|own| own != wanted) {
            return Err(Refusal::new(Reason::NotFound));
        }
        self.tenant_row(wanted).await.map(to_wire)
    }

    pub(crate) async fn tenant_row(&self, tenant: TenantId) -> Result<TenantRow, Refusal> {
        self.deps.directory.tenant(tenant).await?.ok_or(Refusal::new(Reason::NotFound))
    }

    /// Parses a cipher suite that the tenant allows.
    pub(crate) async fn allowed_suite(&self, tenant: TenantId, suite: u32) -> Result<u16, Refusal> {
        let suite = u16::try_from(suite).map_err(|_| Refusal::field("suite", "must be an MLS cipher suite"))?;
        let allowed = self.tenant_row(tenant).await?.suites.contains(&suite);
        if allowed { Ok(suite) } else { Err(Refusal::new(Reason::SuiteNotAllowed)) }
    }
}

fn parse(tenant: v1::Tenant, request: RequestId) -> Result<TenantRow, Refusal> {
    let policy = tenant.policy.unwrap_or_default();
    let suites = tenant.suites.iter().map(|suite| u16::try_from(*suite).unwrap_or_default()).collect::<Vec<_>>();
    if suites.is_empty() || suites.len() > 2 || suites.iter().any(|suite| !matches!(suite, 1 | 2)) {
        return Err(Refusal::field("tenant.suites", "must be suites 1 and 2, at least one of them"));
    }
    let fits = |issuer: &String| (1..=MAX_ISSUER_BYTES).contains(&issuer.len());
    if tenant.issuers.len() > MAX_ISSUERS || !tenant.issuers.iter().all(fits) {
        return Err(Refusal::field("tenant.issuers", "must be at most one URL of at most 512 bytes"));
    }
    if policy.retention_days > MAX_RETENTION_DAYS {
        return Err(Refusal::field("tenant.policy.retention_days", "must be at most 36525"));
    }
    Ok(TenantRow {
        tenant: ids::tenant(&tenant.id, "tenant.id")?,
        issuers: tenant.issuers,
        suites,
        retention_days: policy.retention_days,
        clear_urgency: policy.clear_urgency,
        version: 1,
        request,
    })
}

fn to_wire(row: TenantRow) -> v1::Tenant {
    v1::Tenant {
        id: row.tenant.to_string(),
        issuers: row.issuers,
        suites: row.suites.into_iter().map(u32::from).collect(),
        policy: Some(v1::TenantPolicy { retention_days: row.retention_days, clear_urgency: row.clear_urgency }),
        etag: row.version.to_string(),
    }
}
