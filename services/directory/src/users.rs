//! Users of a tenant.
//!
//! Deliberately absent: what deactivation does to devices, which is in [`crate::revoke`].

use wardline_domain::{TenantId, UserId};
use wardline_proto::convert::ids;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::{Caller, Refusal};
use wardline_store::directory::{Put, RequestId, UserKind, UserRow};

use crate::{Role, require_scope, tenant_of};

const MAX_EXTERNAL_ID_BYTES: usize = 256;
const MAX_PROFILE_BYTES: usize = 4096;

impl Role {
    pub(crate) async fn create_user(
        &self,
        caller: &Caller,
        request: v1::CreateUserRequest,
    ) -> Result<v1::User, Refusal> {
        let tenant = tenant_of(caller)?;
        require_scope(caller.scopes.directory_write, "directory.write")?;
        let id = ids::request(&request.request_id, "request_id")?;
        let row = parse(request.user.ok_or(Refusal::field("user", "is required"))?, tenant, id)?;
        match self.deps.directory.create_user(&row).await? {
            Put::Applied => Ok(to_wire(row)),
            Put::Exists(stored) if stored.request == id && stored.tenant == tenant => Ok(to_wire(stored)),
            Put::Exists(_) => Err(Refusal::new(Reason::AlreadyExists)),
        }
    }

    pub(crate) async fn get_user(&self, caller: &Caller, user: &str) -> Result<v1::User, Refusal> {
        let tenant = tenant_of(caller)?;
        self.user_in(tenant, ids::user(user, "user_id")?).await.map(to_wire)
    }
}

fn parse(user: v1::User, tenant: TenantId, request: RequestId) -> Result<UserRow, Refusal> {
    let kind = match user.kind() {
        v1::UserKind::Person => UserKind::Person,
        v1::UserKind::Service => UserKind::Service,
        v1::UserKind::Role => UserKind::Role,
        v1::UserKind::Guest => UserKind::Guest,
        v1::UserKind::Unspecified => return Err(Refusal::field("user.kind", "must be a known UserKind")),
    };
    if !(1..=MAX_EXTERNAL_ID_BYTES).contains(&user.external_id.len()) {
        return Err(Refusal::field("user.external_id", "must be 1 to 256 bytes"));
    }
    if user.sealed_profile.len() > MAX_PROFILE_BYTES {
        return Err(Refusal::field("user.sealed_profile", "must be at most 4096 bytes"));
    }
    let id = match user.id.as_str() {
        "" => UserId::from_bytes(*uuid::Uuid::new_v4().as_bytes()),
        text => ids::user(text, "user.id")?,
    };
    Ok(UserRow {
        user: id,
        tenant,
        kind,
        external_id: user.external_id,
        sealed_profile: user.sealed_profile,
        deactivated: false,
        version: 1,
        request,
    })
}

pub(crate) fn to_wire(row: UserRow) -> v1::User {
    let state = if row.deactivated { v1::UserState::Deactivated } else { v1::UserState::Active };
    v1::User {
        id: row.user.to_string(),
        tenant_id: row.tenant.to_string(),
        kind: row.kind as i32,
        external_id: row.external_id,
        sealed_profile: row.sealed_profile,
        state: state.into(),
        etag: row.version.to_string(),
    }
}
