//! The few administrative calls that come before there are devices: tenants and users.
//!
//! Deliberately absent: everything that a device's own session may do.

use std::sync::Arc;

use wardline_domain::{DeviceId, TenantId, UserId};
use wardline_proto::v1;
use wardline_proto::v1::directory_service_client::DirectoryServiceClient;

use crate::clock::Clock;
use crate::dpop::AuthKey;
use crate::endpoints::{Endpoints, unary_channel};
use crate::error::Error;
use crate::session::Sessions;
use crate::token::AccessTokens;

/// An administrative session: its key lives as long as this value, its scopes are those of the access token.
pub struct Admin {
    sessions: Sessions,
    channel: tonic::transport::Channel,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl Admin {
    /// With a new key. Connects upon the first call.
    pub fn new(endpoints: &Endpoints, tokens: Arc<dyn AccessTokens>) -> Result<Self, Error> {
        let channel = unary_channel(&endpoints.directory, endpoints.tls.as_ref())?;
        let sessions = Sessions::new(channel.clone(), tokens, AuthKey::generate(), Clock::system());
        Ok(Self { sessions, channel })
    }

    /// Creates a tenant, or finds it there. Scope: operator.
    pub async fn create_tenant(&self, tenant: TenantId, issuers: &[String], suites: &[u16]) -> Result<(), Error> {
        let wire = v1::Tenant {
            id: tenant.to_string(),
            issuers: issuers.to_vec(),
            suites: suites.iter().map(|suite| u32::from(*suite)).collect(),
            policy: Some(v1::TenantPolicy { retention_days: 0, clear_urgency: true }),
            etag: String::new(),
        };
        let request = v1::CreateTenantRequest { request_id: tenant.to_string(), tenant: Some(wire) };
        let request = self.sessions.get().await?.request(request);
        self.directory().create_tenant(request).await?;
        Ok(())
    }

    /// Creates a user whom the issuer calls `external_id`, or finds it there. Scope: directory.write.
    pub async fn create_user(&self, user: UserId, external_id: &str) -> Result<(), Error> {
        let wire = v1::User {
            id: user.to_string(),
            kind: v1::UserKind::Person as i32,
            external_id: external_id.to_owned(),
            ..v1::User::default()
        };
        let request = v1::CreateUserRequest { request_id: user.to_string(), user: Some(wire) };
        let request = self.sessions.get().await?.request(request);
        self.directory().create_user(request).await?;
        Ok(())
    }

    /// Revokes anybody's device. Scope: tenant.admin.
    pub async fn revoke_device(&self, user: UserId, device: DeviceId) -> Result<(), Error> {
        let request = v1::RevokeDeviceRequest { user_id: user.to_string(), device_id: device.to_string() };
        let request = self.sessions.get().await?.request(request);
        self.directory().revoke_device(request).await?;
        Ok(())
    }

    /// Ends a user's access. Scope: directory.write.
    pub async fn deactivate_user(&self, user: UserId) -> Result<(), Error> {
        let request = v1::DeactivateUserRequest { user_id: user.to_string(), etag: String::new() };
        let request = self.sessions.get().await?.request(request);
        self.directory().deactivate_user(request).await?;
        Ok(())
    }

    /// The session's token, for calls by other means.
    pub async fn session_token(&self) -> Result<String, Error> {
        Ok(self.sessions.get().await?.token().to_owned())
    }

    fn directory(&self) -> DirectoryServiceClient<tonic::transport::Channel> {
        DirectoryServiceClient::new(self.channel.clone())
    }
}
