//! How devices join and end: the entry that a device asks for, and the signature another gives.

use std::sync::Arc;

use wardline_domain::{DeviceId, Digest, UserId};
use wardline_proto::v1;

use super::chain::{Entry, LoggedDevice, canonical_bytes};
use super::follow;
use crate::core::Identity;
use crate::device::Inner;
use crate::error::Error;

/// What a new device asks an active one to vouch for: its id and keys.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrollmentRequest {
    /// The user it is to belong to.
    pub user: UserId,
    /// The device.
    pub device: LoggedDevice,
}

/// An active device's signature that puts another device at the head of the log.
#[derive(Clone, PartialEq, Eq)]
pub struct Vouch {
    /// Who signs.
    pub signer: DeviceId,
    /// The entry's place.
    pub version: u64,
    /// The entry before it.
    pub previous_hash: Digest,
    /// Over the entry's canonical bytes.
    pub signature: Vec<u8>,
}

impl std::fmt::Debug for EnrollmentRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnrollmentRequest")
    }
}

impl std::fmt::Debug for Vouch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vouch({})", self.version)
    }
}

impl EnrollmentRequest {
    /// `me` signs for this device at the head of the log.
    pub(crate) fn vouched_by(&self, me: &Identity, version: u64, previous_hash: Digest) -> Vouch {
        let mut vouch = Vouch { signer: me.device, version, previous_hash, signature: Vec::new() };
        vouch.signature = me.auth.sign(&canonical_bytes(&self.entry(&vouch))).to_vec();
        vouch
    }

    /// The entry that `vouch` makes of it.
    pub fn entry(&self, vouch: &Vouch) -> Entry {
        Entry {
            user: self.user,
            version: vouch.version,
            previous_hash: vouch.previous_hash,
            revoked: false,
            device: self.device.clone(),
            signer: Some(vouch.signer),
            signature: vouch.signature.clone(),
        }
    }
}

/// What this device asks for. Its session tells whose device it is.
pub(crate) async fn request(inner: &Arc<Inner>) -> Result<EnrollmentRequest, Error> {
    let account = inner.rpc.account().await?;
    inner.with(|core| core.learn_account(account))?;
    inner.read(|core| {
        let me = &core.identity;
        let device = LoggedDevice {
            id: me.device,
            auth_key: me.auth.jwk(),
            mls_keys: vec![(account.user, me.suite, me.signer.to_public_vec())],
            active: true,
        };
        Ok(EnrollmentRequest { user: account.user, device })
    })
}

/// Signs for another device of the same user, at the log's head as this device verified it.
pub(crate) async fn vouch_for(inner: &Arc<Inner>, request: &EnrollmentRequest) -> Result<Vouch, Error> {
    let user = inner.read(|core| core.identity.account())?.user;
    if request.user != user {
        return Err(Error::Invalid("the request is not for a device of this user"));
    }
    let log = follow::verify(inner, user).await?;
    inner.read(|core| Ok(request.vouched_by(&core.identity, log.version + 1, log.hash)))
}

/// Enrols this device, then publishes its key packages.
pub(crate) async fn enroll(inner: &Arc<Inner>, request: &EnrollmentRequest, vouch: &Vouch) -> Result<(), Error> {
    inner.rpc.enroll(enroll_request(request, vouch)).await?;
    inner.rpc.forget_session().await;
    follow::verify(inner, request.user).await?;
    crate::mls::key_packages::publish(inner, inner.options.key_packages).await?;
    Ok(())
}

fn enroll_request(request: &EnrollmentRequest, vouch: &Vouch) -> v1::EnrollDeviceRequest {
    let device = &request.device;
    let keys = device.mls_keys.iter().map(|(principal, suite, key)| v1::MlsKey {
        principal_id: principal.to_string(),
        suite: u32::from(*suite),
        public_key: key.clone().into(),
    });
    v1::EnrollDeviceRequest {
        device: Some(v1::Device {
            id: device.id.to_string(),
            user_id: request.user.to_string(),
            auth_key: device.auth_key.clone(),
            mls_keys: keys.collect(),
            push_target: String::new(),
            state: v1::DeviceState::Active as i32,
        }),
        version: vouch.version,
        previous_hash: vouch.previous_hash.as_bytes().to_vec().into(),
        signer_device_id: vouch.signer.to_string(),
        signature: vouch.signature.clone().into(),
    }
}

/// Revokes a device of one's own user.
pub(crate) async fn revoke(inner: &Arc<Inner>, device: DeviceId) -> Result<(), Error> {
    let user = inner.read(|core| core.identity.account())?.user;
    inner.rpc.revoke(user, device).await
}
