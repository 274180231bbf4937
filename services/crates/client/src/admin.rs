//! What an operator or a directory integration does: tenants and users. No device, no file.
//!
//! Deliberately absent: reading and deactivating; scripts use the API for that.

use std::sync::Arc;

use wardline_domain::{DeviceId, TenantId, UserId};
use wardline_proto::v1;

use crate::clock::Clock;
use crate::dpop::AuthKey;
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::rpc::Rpc;
use crate::token::AccessTokens;

/// A caller with administrative scopes. Its proof's key is made for the occasion and belongs to no device.
pub struct Admin {
    rpc: Rpc,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl Admin {
    /// Calls with the tokens' scopes.
    ///
    /// # Errors
    /// When an endpoint is not a URL.
    pub fn new(endpoints: &Endpoints, tokens: Arc<dyn AccessTokens>) -> Result<Self, Error> {
        Ok(Self { rpc: Rpc::new(endpoints, tokens, AuthKey::generate(), Clock::system())? })
    }

    /// Creates a tenant; repeating it is OK. Scope: operator.
    pub async fn create_tenant(&self, tenant: TenantId, issuers: &[String], suites: &[u16]) -> Result<(), Error> {
        let tenant = v1::Tenant {
            id: tenant.to_string(),
            issuers: issuers.to_vec(),
            suites: suites.iter().copied().map(u32::from).collect(),
            policy: Some(v1::TenantPolicy { retention_days: 0, clear_urgency: true }),
            etag: String::new(),
        };
        self.rpc.create_tenant(v1::CreateTenantRequest { request_id: tenant.id.clone(), tenant: Some(tenant) }).await
    }

    /// Creates a person in the caller's tenant; repeating it is OK. `subject` is what the issuer calls them. Scope:
    /// directory.write.
    pub async fn create_user(&self, user: UserId, subject: &str) -> Result<(), Error> {
        let user = v1::User {
            id: user.to_string(),
            tenant_id: String::new(),
            kind: v1::UserKind::Person as i32,
            external_id: subject.to_owned(),
            sealed_profile: bytes::Bytes::new(),
            state: v1::UserState::Active as i32,
            etag: String::new(),
        };
        self.rpc.create_user(v1::CreateUserRequest { request_id: user.id.clone(), user: Some(user) }).await
    }

    /// Revokes a user's device. Scope: tenant.admin.
    pub async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<(), Error> {
        self.rpc.revoke(user, device).await
    }
}
