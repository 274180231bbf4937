//! Tenants, users, devices and their log, key packages and claims of them.

use bytes::Bytes;
use wardline_domain::{DeviceId, TenantId, UserId};

use super::{Decoder, Encoder};
use crate::Result;
use crate::directory::{
    Claimed, DeviceLogChange, DeviceLogRow, DeviceRow, KeyPackageRow, MlsKeyRow, TenantRow, UserKind, UserRow,
};

/// Writes what is not in a tenant's key.
pub fn encode_tenant(row: &TenantRow) -> Bytes {
    let mut value = Encoder::new(128);
    value.count(row.issuers.len());
    for issuer in &row.issuers {
        value.bytes(issuer.as_bytes());
    }
    value.count(row.suites.len());
    for suite in &row.suites {
        value.u16(*suite);
    }
    value.u32(row.retention_days).flag(row.clear_urgency).u64(row.version).raw(&row.request);
    value.finish()
}

/// Reads what [`encode_tenant`] wrote.
pub fn decode_tenant(tenant: TenantId, bytes: Bytes) -> Result<TenantRow> {
    let mut value = Decoder::new("tenants", bytes)?;
    let row = TenantRow {
        tenant,
        issuers: value.list(Decoder::text)?,
        suites: value.list(Decoder::u16)?,
        retention_days: value.u32()?,
        clear_urgency: value.flag()?,
        version: value.u64()?,
        request: value.array()?,
    };
    value.finish(row)
}

/// Writes what is not in a user's key.
pub fn encode_user(row: &UserRow) -> Bytes {
    let mut value = Encoder::new(64 + row.external_id.len() + row.sealed_profile.len());
    value.raw(row.tenant.as_bytes()).u8(row.kind as u8).bytes(row.external_id.as_bytes());
    value.bytes(&row.sealed_profile).flag(row.deactivated).u64(row.version).raw(&row.request);
    value.finish()
}

/// Reads what [`encode_user`] wrote.
pub fn decode_user(user: UserId, bytes: Bytes) -> Result<UserRow> {
    let mut value = Decoder::new("users", bytes)?;
    let row = UserRow {
        user,
        tenant: TenantId::from_bytes(value.array()?),
        kind: user_kind(&mut value)?,
        external_id: value.text()?,
        sealed_profile: value.bytes()?,
        deactivated: value.flag()?,
        version: value.u64()?,
        request: value.array()?,
    };
    value.finish(row)
}

fn user_kind(value: &mut Decoder) -> Result<UserKind> {
    match value.u8()? {
        1 => Ok(UserKind::Person),
        2 => Ok(UserKind::Service),
        3 => Ok(UserKind::Role),
        4 => Ok(UserKind::Guest),
        _ => Err(value.malformed("an unknown kind of user")),
    }
}

/// Writes what is not in a device's key: user and device.
pub fn encode_device(row: &DeviceRow) -> Bytes {
    let mut value = Encoder::new(512);
    value.raw(row.tenant.as_bytes()).bytes(row.auth_key.as_bytes()).raw(row.thumbprint.as_bytes());
    value.count(row.mls_keys.len());
    for mls_key in &row.mls_keys {
        value.raw(mls_key.principal.as_bytes()).u16(mls_key.suite).bytes(&mls_key.public_key);
    }
    value.bytes(&row.push_target).flag(row.revoked);
    value.finish()
}

/// Reads what [`encode_device`] wrote.
pub fn decode_device(user: UserId, device: DeviceId, bytes: Bytes) -> Result<DeviceRow> {
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

/// Writes what is not in the key of a device log's entry: user and version.
pub fn encode_device_log(entry: &DeviceLogRow) -> Bytes {
    let device = encode_device(&entry.device);
    let mut value = Encoder::new(160 + device.len() + entry.signature.len());
    value.u8(entry.change as u8).raw(entry.device.device.as_bytes()).bytes(&device);
    value.option(entry.signer, |value, signer| {
        value.raw(signer.as_bytes());
    });
    value.bytes(&entry.signature).raw(entry.previous_hash.as_bytes()).raw(entry.hash.as_bytes()).time(entry.at);
    value.finish()
}

/// Reads what [`encode_device_log`] wrote.
pub fn decode_device_log(user: UserId, version: u64, bytes: Bytes) -> Result<DeviceLogRow> {
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
        device: decode_device(user, device, value.bytes()?)?,
        signer: value.option(|value| value.array().map(DeviceId::from_bytes))?,
        signature: value.bytes()?,
        previous_hash: value.digest()?,
        hash: value.digest()?,
        at: value.time()?,
    };
    value.finish(row)
}

/// Writes a whole row: claims keep them too.
pub fn encode_key_package(value: &mut Encoder, row: &KeyPackageRow) {
    value.raw(row.user.as_bytes()).u16(row.suite).raw(row.device.as_bytes()).raw(row.reference.as_bytes());
    value.flag(row.last_resort).time(row.not_after).raw(row.key_hash.as_bytes()).bytes(&row.bytes);
}

/// Reads what [`encode_key_package`] wrote.
pub fn decode_key_package(value: &mut Decoder) -> Result<KeyPackageRow> {
    Ok(KeyPackageRow {
        user: UserId::from_bytes(value.array()?),
        suite: value.u16()?,
        device: DeviceId::from_bytes(value.array()?),
        reference: value.digest()?,
        last_resort: value.flag()?,
        not_after: value.time()?,
        key_hash: value.digest()?,
        bytes: value.bytes()?,
    })
}

/// Writes what a claim took.
pub fn encode_claimed(claimed: &Claimed) -> Bytes {
    let mut value = Encoder::new(2048 * claimed.packages.len());
    value.count(claimed.packages.len());
    for package in &claimed.packages {
        encode_key_package(&mut value, package);
    }
    value.count(claimed.missing.len());
    for device in &claimed.missing {
        value.raw(device.as_bytes());
    }
    value.count(claimed.left.len());
    for (device, left) in &claimed.left {
        value.raw(device.as_bytes()).u32(*left);
    }
    value.finish()
}

/// Reads what [`encode_claimed`] wrote.
pub fn decode_claimed(bytes: Bytes) -> Result<Claimed> {
    let mut value = Decoder::new("claims", bytes)?;
    let claimed = Claimed {
        packages: value.list(decode_key_package)?,
        missing: value.list(|value| value.array().map(DeviceId::from_bytes))?,
        left: value.list(|value| Ok((DeviceId::from_bytes(value.array()?), value.u32()?)))?,
    };
    value.finish(claimed)
}
