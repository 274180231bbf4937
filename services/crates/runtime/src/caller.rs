//! Who calls.

use tonic::{Extensions, Request};
use wardline_domain::{DeviceId, Digest, TenantId, Timestamp, UserId};
use wardline_proto::reason::Reason;

use crate::Refusal;

/// What a session may do beyond its user's own affairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes {
    /// Runs the deployment: creates tenants.
    pub operator: bool,
    /// Administers a tenant: revokes anybody's devices.
    pub tenant_admin: bool,
    /// Creates and deactivates users.
    pub directory_write: bool,
}

/// An authenticated session. Put into a request's extensions by [`crate::auth`]; handlers trust nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The session's id.
    pub session: [u8; 16],
    /// The tenant; `None` for an operator.
    pub tenant: Option<TenantId>,
    /// The user; `None` in a purely administrative session.
    pub user: Option<UserId>,
    /// The device; `None` when the proof's key is not enrolled or there is no user.
    pub device: Option<DeviceId>,
    /// RFC 7638 thumbprint of the key that proved the session.
    pub key: Digest,
    /// What it may do.
    pub scopes: Scopes,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// The caller of an RPC that needs a device: nearly all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCaller {
    /// The session's id.
    pub session: [u8; 16],
    /// The tenant.
    pub tenant: TenantId,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// When the session ends.
    pub expires_at: Timestamp,
}

impl Caller {
    /// The caller that the auth layer found.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Refusal> {
        Self::in_extensions(request.extensions())
    }

    /// The caller that the auth layer found.
    pub fn in_extensions(extensions: &Extensions) -> Result<Self, Refusal> {
        extensions.get::<Self>().copied().ok_or(Refusal::new(Reason::TokenMissing))
    }

    /// As a device's caller; refuses administrative sessions and those of keys not enrolled.
    pub fn device(&self) -> Result<DeviceCaller, Refusal> {
        match (self.tenant, self.user, self.device) {
            (Some(tenant), Some(user), Some(device)) => {
                Ok(DeviceCaller { session: self.session, tenant, user, device, expires_at: self.expires_at })
            }
            (Some(_), Some(_), None) => Err(Refusal::new(Reason::DeviceNotEnrolled)),
            _ => Err(Refusal::new(Reason::DeviceRequired)),
        }
    }
}
