//! Reading device logs: only what follows the pinned head is asked for, so a fork shows as an entry that does not follow.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tonic::Code;
use wardline_domain::{Digest, UserId};
use wardline_proto::convert::ids;
use wardline_proto::v1;

use super::authority;
use super::chain::{DeviceLog, Entry, LoggedDevice, verify_entry};
use super::leaf::{self, Leaf};
use crate::device::Inner;
use crate::error::Error;
use crate::store;

/// How many device logs are read at once.
pub(crate) const LOGS_AT_ONCE: usize = 8;
/// How often a log that is refused for now is asked for before the feed starts anew.
const ATTEMPTS: u32 = 6;

/// Reads what is new of a user's log, verifies it against the pinned head and pins the new one.
pub(crate) async fn verify(inner: &Arc<Inner>, user: UserId) -> Result<DeviceLog, Error> {
    let authority = authority::confirmed(inner).await?;
    verify_with(inner, user, &authority).await
}

/// Reads the logs of those users of whom `leaves` has a device that is not known here yet. What the logs then say of the
/// leaves is for the step to find out ([`leaf::stranger`]): it takes a leaf that is still unknown for a stranger's.
///
/// # Errors
/// When a log could not be read now. The caller's duty: try again, and take nothing meanwhile.
pub(crate) async fn learn(inner: &Arc<Inner>, leaves: &[Leaf]) -> Result<(), Error> {
    let users = inner.read(|core| {
        let mut users = BTreeSet::new();
        for leaf in leaves {
            users.extend(leaf::unknown_user(core.connection(), &core.identity, leaf)?);
        }
        Ok(users)
    })?;
    if users.is_empty() {
        return Ok(());
    }
    let authority = &authority::pinned(inner).await?;
    let read = |user| learn_one(inner, user, authority);
    futures::stream::iter(users).map(read).buffer_unordered(LOGS_AT_ONCE).try_collect().await
}

async fn learn_one(inner: &Arc<Inner>, user: UserId, authority: &[[u8; 32]]) -> Result<(), Error> {
    let mut attempt = 0;
    loop {
        match verify_with(inner, user, authority).await {
            Ok(_) => return Ok(()),
            Err(error) if is_definite(&error) => {
                tracing::warn!(%error, "a member's device log does not verify");
                return Ok(());
            }
            // What went unanswered was repeated by the call itself.
            Err(error @ Error::Refused(_)) if attempt + 1 < ATTEMPTS => {
                tokio::time::sleep(inner.options.backoff.delay(attempt, error.retry_after())).await;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether asking again would not change it: the log is there and wrong, or there is no such user.
fn is_definite(error: &Error) -> bool {
    match error {
        Error::Untrusted(_) => true,
        Error::Refused(refusal) => matches!(refusal.code, Code::NotFound | Code::InvalidArgument),
        _ => false,
    }
}

async fn verify_with(inner: &Arc<Inner>, user: UserId, authority: &[[u8; 32]]) -> Result<DeviceLog, Error> {
    let mut log = inner.read(|core| store::device_logs::load(core.connection(), user))?;
    loop {
        let page = inner.rpc.device_log(user, log.version).await?;
        if page.is_empty() {
            return Ok(log);
        }
        for wire in &page {
            verify_entry(&mut log, &parse(user, wire)?, authority)?;
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
