//! The pinned heads of device logs, and the devices they led to.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, params};
use wardline_domain::{DeviceId, Digest, UserId};

use super::Fixed;
use crate::device_log::{DeviceLog, LoggedDevice};
use crate::error::Error;

/// One key as stored: principal, suite, public key.
type StoredKey = ([u8; 16], u16, Vec<u8>);

/// What was pinned of a user's log; empty when nothing was.
pub(crate) fn load(connection: &Connection, user: UserId) -> Result<DeviceLog, Error> {
    let head = connection
        .query_row("SELECT version, hash FROM device_logs WHERE user = ?", [user.as_bytes()], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, Fixed<32>>(1)?))
        })
        .optional()?;
    let Some((version, hash)) = head else { return Ok(DeviceLog::default()) };
    let mut select =
        connection.prepare_cached("SELECT device, auth_key, mls_keys, active FROM logged_devices WHERE user = ?")?;
    let rows = select.query_map([user.as_bytes()], |row| {
        let device: Fixed<16> = row.get(0)?;
        Ok((
            DeviceId::from_bytes(device.0),
            row.get::<_, String>(1)?,
            row.get::<_, Vec<u8>>(2)?,
            row.get::<_, bool>(3)?,
        ))
    })?;
    let mut devices = BTreeMap::new();
    for row in rows {
        let (id, auth_key, keys, active) = row?;
        devices.insert(id, LoggedDevice { id, auth_key, mls_keys: parse_keys(&keys)?, active });
    }
    Ok(DeviceLog { version, hash: Digest::from_bytes(hash.0), devices })
}

/// One device of what was pinned of a user's log.
pub(crate) fn device(connection: &Connection, user: UserId, device: DeviceId) -> Result<Option<LoggedDevice>, Error> {
    let mut select = connection
        .prepare_cached("SELECT auth_key, mls_keys, active FROM logged_devices WHERE user = ? AND device = ?")?;
    let row = select
        .query_row([user.as_bytes(), device.as_bytes()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, bool>(2)?))
        })
        .optional()?;
    let Some((auth_key, keys, active)) = row else { return Ok(None) };
    Ok(Some(LoggedDevice { id: device, auth_key, mls_keys: parse_keys(&keys)?, active }))
}

fn parse_keys(stored: &[u8]) -> Result<Vec<(UserId, u16, Vec<u8>)>, Error> {
    let keys: Vec<StoredKey> = ciborium::from_reader(stored).map_err(|error| Error::Store(error.to_string()))?;
    Ok(keys.into_iter().map(|(user, suite, key)| (UserId::from_bytes(user), suite, key)).collect())
}

/// Pins a head. Never moves back: two checks that run side by side leave the further one.
pub(crate) fn save(connection: &Connection, user: UserId, log: &DeviceLog) -> Result<(), Error> {
    let moved = connection.execute(
        "INSERT INTO device_logs (user, version, hash) VALUES (?1, ?2, ?3)
         ON CONFLICT (user) DO UPDATE SET version = ?2, hash = ?3 WHERE version < ?2",
        params![user.as_bytes(), log.version, log.hash.as_bytes()],
    )?;
    if moved == 0 {
        return Ok(());
    }
    for device in log.devices.values() {
        let keys: Vec<StoredKey> =
            device.mls_keys.iter().map(|(user, suite, key)| (*user.as_bytes(), *suite, key.clone())).collect();
        let mut stored = Vec::new();
        ciborium::into_writer(&keys, &mut stored).map_err(|error| Error::Store(error.to_string()))?;
        connection.execute(
            "INSERT OR REPLACE INTO logged_devices (user, device, auth_key, mls_keys, active) VALUES (?, ?, ?, ?, ?)",
            params![user.as_bytes(), device.id.as_bytes(), device.auth_key, stored, device.active],
        )?;
    }
    Ok(())
}
