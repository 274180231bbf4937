//! Devices, by id and by session key, and the log of each user's devices.
//!
//! Clients choose ids and keys, and others know a device by its id alone, so each belongs to one device for good: indexes
//! say to which. Those of ids and MLS keys are never removed.

use bytes::Bytes;
use wardline_domain::{DeviceId, Digest, TenantId, UserId};

use super::{Step, tag};
use crate::Result;
use crate::directory::{Appended, DeviceLogChange, DeviceLogRow, DeviceRow, MlsKeyRow};
use crate::embedded::codec::{Decoder, Encoder, array_at, u64_at};
use crate::embedded::engine::{Table, key, unusable};

fn device_key(user: UserId, device: DeviceId) -> Vec<u8> {
    key(&[&[tag::DEVICE], user.as_bytes(), device.as_bytes()])
}

fn thumbprint_key(thumbprint: Digest) -> Vec<u8> {
    key(&[&[tag::THUMBPRINT], thumbprint.as_bytes()])
}

fn owner_key(device: DeviceId) -> Vec<u8> {
    key(&[&[tag::DEVICE_OWNER], device.as_bytes()])
}

fn mls_index_key(mls_key: &MlsKeyRow) -> Vec<u8> {
    key(&[&[tag::MLS_KEY], &mls_key.suite.to_be_bytes(), &mls_key.public_key])
}

fn log_key(user: UserId, version: u64) -> Vec<u8> {
    key(&[&[tag::DEVICE_LOG], user.as_bytes(), &version.to_be_bytes()])
}

fn encode(row: &DeviceRow) -> Bytes {
    let mut value = Encoder::new(512);
    value.raw(row.tenant.as_bytes()).bytes(row.auth_key.as_bytes()).raw(row.thumbprint.as_bytes());
    value.count(row.mls_keys.len());
    for mls_key in &row.mls_keys {
        value.raw(mls_key.principal.as_bytes()).u16(mls_key.suite).bytes(&mls_key.public_key);
    }
    value.bytes(&row.push_target).flag(row.revoked);
    value.finish()
}

fn decode(user: UserId, device: DeviceId, bytes: Bytes) -> Result<DeviceRow> {
    let mut value = Decoder::new("devices", bytes)?;
    let row = DeviceRow {
        device,
        user,
        tenant: TenantId::from_bytes(value.array()?),
        auth_key: value.text()?,
        thumbprint: value.digest()?,
        mls_keys: value.list(mls_key)?,
        push_target: value.bytes()?,
        revoked: value.flag()?,
    };
    value.finish(row)
}

fn mls_key(value: &mut Decoder) -> Result<MlsKeyRow> {
    let principal = UserId::from_bytes(value.array()?);
    Ok(MlsKeyRow { principal, suite: value.u16()?, public_key: value.bytes()? })
}

fn encode_entry(entry: &DeviceLogRow) -> Bytes {
    let device = encode(&entry.device);
    let mut value = Encoder::new(160 + device.len() + entry.signature.len());
    value.u8(entry.change as u8).raw(entry.device.device.as_bytes()).bytes(&device);
    value.option(entry.signer, |value, signer| {
        value.raw(signer.as_bytes());
    });
    value.bytes(&entry.signature).raw(entry.previous_hash.as_bytes()).raw(entry.hash.as_bytes()).time(entry.at);
    value.finish()
}

fn decode_entry(user: UserId, version: u64, bytes: Bytes) -> Result<DeviceLogRow> {
    let mut value = Decoder::new("device log", bytes)?;
    let change = match value.u8()? {
        1 => DeviceLogChange::Enrolled,
        2 => DeviceLogChange::Revoked,
        _ => return Err(value.malformed("an unknown change")),
    };
    let device = DeviceId::from_bytes(value.array()?);
    let row = DeviceLogRow {
        version,
        change,
        device: decode(user, device, value.bytes()?)?,
        signer: value.option(|value| value.array().map(DeviceId::from_bytes))?,
        signature: value.bytes()?,
        previous_hash: value.digest()?,
        hash: value.digest()?,
        at: value.time()?,
    };
    value.finish(row)
}

pub(super) fn read(table: &Table, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>> {
    table.get(&device_key(user, device))?.map(|bytes| decode(user, device, bytes)).transpose()
}

pub(super) fn all(table: &Table, user: UserId) -> Result<Vec<DeviceRow>> {
    let row = |row: Result<(Bytes, Bytes)>| {
        let (key, bytes) = row?;
        decode(user, DeviceId::from_bytes(array_at("devices", &key, 17)?), bytes)
    };
    table.prefix(&key(&[&[tag::DEVICE], user.as_bytes()])).map(row).collect()
}

/// The device that an index names.
fn owner(table: &Table, what: &'static str, index_key: &[u8]) -> Result<Option<(UserId, DeviceId)>> {
    let Some(owner) = table.get(index_key)? else { return Ok(None) };
    let user = UserId::from_bytes(array_at(what, &owner, 0)?);
    Ok(Some((user, DeviceId::from_bytes(array_at(what, &owner, 16)?))))
}

/// What of the device belongs to another one.
fn taken(table: &Table, device: &DeviceRow) -> Result<Option<Appended>> {
    let of_another = |owner: Option<(UserId, DeviceId)>| owner.is_some_and(|of| of != (device.user, device.device));
    if of_another(owner(table, "thumbprints", &thumbprint_key(device.thumbprint))?) {
        return Ok(Some(Appended::KeyTaken));
    }
    if device.revoked {
        return Ok(None);
    }
    if let Some(user) = table.get(&owner_key(device.device))?
        && UserId::from_bytes(array_at("device owners", &user, 0)?) != device.user
    {
        return Ok(Some(Appended::DeviceTaken));
    }
    for mls_key in &device.mls_keys {
        if of_another(owner(table, "MLS keys", &mls_index_key(mls_key))?) {
            return Ok(Some(Appended::MlsKeyTaken));
        }
    }
    Ok(None)
}

pub(super) fn by_thumbprint(table: &Table, thumbprint: Digest) -> Result<Option<DeviceRow>> {
    match owner(table, "thumbprints", &thumbprint_key(thumbprint))? {
        Some((user, device)) => read(table, user, device),
        None => Ok(None),
    }
}

pub(super) fn log(table: &Table, user: UserId, after: u64, limit: usize) -> Result<Vec<DeviceLogRow>> {
    let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
    let entry = |row: Result<(Bytes, Bytes)>| {
        let (key, bytes) = row?;
        decode_entry(user, u64_at("device log", &key, 17)?, bytes)
    };
    table.range(&log_key(user, first), &log_key(user, u64::MAX)).take(limit).map(entry).collect()
}

/// The last entry of a user's log.
fn log_head(table: &Table, user: UserId) -> Result<Option<DeviceLogRow>> {
    let Some(row) = table.range(&log_key(user, 0), &log_key(user, u64::MAX)).next_back() else { return Ok(None) };
    let (key, bytes) = row?;
    decode_entry(user, u64_at("device log", &key, 17)?, bytes).map(Some)
}

pub(super) fn append(step: &mut Step<'_>, entry: &DeviceLogRow) -> Result<Appended> {
    let device = &entry.device;
    let head = log_head(step.table(), device.user)?;
    let version = head.as_ref().map_or(0, |head| head.version);
    // The first entry has nothing to follow.
    let follows = head.as_ref().is_none_or(|head| head.hash == entry.previous_hash);
    if version.checked_add(1) != Some(entry.version) || !follows {
        let repeat = head.is_some_and(|head| (head.version, head.hash) == (entry.version, entry.hash));
        return Ok(if repeat { Appended::Applied } else { Appended::Conflict { version } });
    }
    if let Some(taken) = taken(step.table(), device)? {
        return Ok(taken);
    }
    write(step, entry)?;
    Ok(Appended::Applied)
}

/// The device's row before its indexes: who finds an index finds the row.
fn write(step: &mut Step<'_>, entry: &DeviceLogRow) -> Result<()> {
    let device = &entry.device;
    if let Some(stored) = read(step.table(), device.user, device.device)? {
        if stored.revoked && !device.revoked {
            return Err(unusable("device log: an entry brings a revoked device back"));
        }
        if stored.thumbprint != device.thumbprint {
            step.remove(thumbprint_key(stored.thumbprint));
        }
    }
    step.insert(device_key(device.user, device.device), encode(device));
    step.insert(log_key(device.user, entry.version), encode_entry(entry));
    let owner = key(&[device.user.as_bytes(), device.device.as_bytes()]);
    step.insert(thumbprint_key(device.thumbprint), owner.clone());
    if !device.revoked {
        step.insert(owner_key(device.device), device.user.as_bytes().to_vec());
        for mls_key in &device.mls_keys {
            step.insert(mls_index_key(mls_key), owner.clone());
        }
    }
    Ok(())
}
