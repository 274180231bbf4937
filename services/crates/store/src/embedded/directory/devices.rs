//! Devices, by id and by session key, and the log of each user's devices.
//!
//! Clients choose ids and keys, and others know a device by its id alone, so each belongs to one device for good: indexes
//! say to which. Those of ids and MLS keys are never removed.

use bytes::Bytes;
use wardline_domain::{DeviceId, Digest, UserId};

use super::{Step, tag};
use crate::Result;
use crate::directory::{Appended, DeviceLogRow, DeviceRow, MlsKeyRow};
use crate::embedded::codec::{array_at, u64_at};
use crate::embedded::engine::{Table, key, unusable};
use crate::encoding::directory::{decode_device, decode_device_log, encode_device, encode_device_log};

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

pub(super) fn read(table: &Table, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>> {
    table.get(&device_key(user, device))?.map(|bytes| decode_device(user, device, bytes)).transpose()
}

pub(super) fn all(table: &Table, user: UserId) -> Result<Vec<DeviceRow>> {
    let row = |row: Result<(Bytes, Bytes)>| {
        let (key, bytes) = row?;
        decode_device(user, DeviceId::from_bytes(array_at("devices", &key, 17)?), bytes)
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
        decode_device_log(user, u64_at("device log", &key, 17)?, bytes)
    };
    table.range(&log_key(user, first), &log_key(user, u64::MAX)).take(limit).map(entry).collect()
}

/// The last entry of a user's log.
fn log_head(table: &Table, user: UserId) -> Result<Option<DeviceLogRow>> {
    let Some(row) = table.range(&log_key(user, 0), &log_key(user, u64::MAX)).next_back() else { return Ok(None) };
    let (key, bytes) = row?;
    decode_device_log(user, u64_at("device log", &key, 17)?, bytes).map(Some)
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
    step.insert(device_key(device.user, device.device), encode_device(device));
    step.insert(log_key(device.user, entry.version), encode_device_log(entry));
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
