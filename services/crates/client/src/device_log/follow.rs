//! Reading device logs: only what follows the pinned head is asked for, so a fork shows as an entry that does not follow.

use std::sync::Arc;

use wardline_domain::{Digest, UserId};
use wardline_proto::convert::ids;
use wardline_proto::v1;

use super::chain::{DeviceLog, Entry, LoggedDevice, verify_entry};
use crate::device::Inner;
use crate::error::Error;
use crate::store;

/// Reads what is new of a user's log, verifies it against the pinned head and pins the new one.
pub(crate) async fn verify(inner: &Arc<Inner>, user: UserId) -> Result<DeviceLog, Error> {
    let mut log = inner.read(|core| store::device_logs::load(core.connection(), user))?;
    let authority = inner.rpc.authority_keys().await?;
    loop {
        let page = inner.rpc.device_log(user, log.version).await?;
        if page.is_empty() {
            return Ok(log);
        }
        for wire in &page {
            verify_entry(&mut log, &parse(user, wire)?, &authority)?;
        }
        inner.step(|step| store::device_logs::save(&step.tx, user, &log))?;
    }
}

fn parse(user: UserId, wire: &v1::DeviceLogEntry) -> Result<Entry, Error> {
    let entry = || {
        let device = wire.device.as_ref()?;
        let signer = match wire.signer_device_id.as_str() {
            "" => None,
            id => Some(ids::device(id, "").ok()?),
        };
        let keys = device.mls_keys.iter().map(|key| {
            Some((ids::user(&key.principal_id, "").ok()?, u16::try_from(key.suite).ok()?, key.public_key.to_vec()))
        });
        Some(Entry {
            user,
            version: wire.version,
            previous_hash: Digest::try_from(wire.previous_hash.as_ref()).ok()?,
            revoked: wire.change() == v1::DeviceChange::Revoked,
            device: LoggedDevice {
                id: ids::device(&device.id, "").ok()?,
                auth_key: device.auth_key.clone(),
                mls_keys: keys.collect::<Option<_>>()?,
                active: true,
            },
            signer,
            signature: wire.signature.to_vec(),
        })
    };
    entry().ok_or(Error::Untrusted("a device log entry does not parse"))
}
