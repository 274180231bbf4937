//! Key packages: published, counted, looked up once served.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use wardline_domain::{DeviceId, Digest, Timestamp, UserId};

use super::{Step, tag};
use crate::Result;
use crate::directory::{KeyPackageRow, KeyPackageStatus};
use crate::embedded::codec::{Decoder, Encoder, array_at};
use crate::embedded::engine::{Table, key, unusable};
use crate::encoding::directory::{decode_key_package, encode_key_package};

const TABLE: &str = "key_packages";

/// Where things stand in the key of an unserved package.
const SUITE_AT: usize = 17;
const DEVICE_AT: usize = 19;
const REFERENCE_AT: usize = 43;

/// Where the reference stands in the key of a served package by its end.
const ENDED_REFERENCE_AT: usize = 27;

pub(super) fn package_key(user: UserId, suite: u16, reference: Digest) -> Vec<u8> {
    key(&[&[tag::PACKAGE], user.as_bytes(), &suite.to_be_bytes(), reference.as_bytes()])
}

fn unserved_prefix(user: UserId, suite: u16, device: DeviceId) -> Vec<u8> {
    key(&[&[tag::UNSERVED], user.as_bytes(), &suite.to_be_bytes(), device.as_bytes()])
}

fn unserved_key(row: &KeyPackageRow) -> Vec<u8> {
    let prefix = unserved_prefix(row.user, row.suite, row.device);
    key(&[&prefix, &row.not_after.as_micros().to_be_bytes(), row.reference.as_bytes()])
}

fn last_resort_key(user: UserId, suite: u16, device: DeviceId) -> Vec<u8> {
    key(&[&[tag::LAST_RESORT], user.as_bytes(), &suite.to_be_bytes(), device.as_bytes()])
}

fn served_key(user: UserId, suite: u16, reference: Digest) -> Vec<u8> {
    key(&[&[tag::SERVED], user.as_bytes(), &suite.to_be_bytes(), reference.as_bytes()])
}

fn served_until_key(user: UserId, suite: u16, end: Timestamp, reference: &[u8]) -> Vec<u8> {
    let end = end.as_micros().to_be_bytes();
    key(&[&[tag::SERVED_UNTIL], user.as_bytes(), &suite.to_be_bytes(), &end, reference])
}

fn read(table: &Table, user: UserId, suite: u16, reference: Digest) -> Result<Option<KeyPackageRow>> {
    let Some(bytes) = table.get(&package_key(user, suite, reference))? else { return Ok(None) };
    let mut value = Decoder::new(TABLE, bytes)?;
    let row = decode_key_package(&mut value)?;
    value.finish(Some(row))
}

/// The package an index names.
fn named(table: &Table, user: UserId, suite: u16, reference: Digest) -> Result<KeyPackageRow> {
    read(table, user, suite, reference)?
        .ok_or_else(|| unusable("key_packages: an index names a package that is not there"))
}

/// A device's last-resort package: which, and when it was served last.
fn last_resort(
    table: &Table,
    user: UserId,
    suite: u16,
    device: DeviceId,
) -> Result<Option<(Digest, Option<Timestamp>)>> {
    let Some(bytes) = table.get(&last_resort_key(user, suite, device))? else { return Ok(None) };
    let mut value = Decoder::new(TABLE, bytes)?;
    let found = (value.digest()?, value.option(Decoder::time)?);
    value.finish(Some(found))
}

fn put_last_resort(step: &mut Step<'_>, row: &KeyPackageRow, used: Option<Timestamp>) {
    let mut value = Encoder::new(41);
    value.raw(row.reference.as_bytes()).option(used, |value, used| {
        value.time(used);
    });
    step.insert(last_resort_key(row.user, row.suite, row.device), value.finish());
}

/// The keys of a device's unserved packages that live at least until `end`, the one that ends first before the others.
fn unserved(
    table: &Table,
    user: UserId,
    suite: u16,
    device: DeviceId,
    end: Timestamp,
) -> impl DoubleEndedIterator<Item = Result<Bytes>> + use<> {
    let prefix = unserved_prefix(user, suite, device);
    let first = key(&[&prefix, &end.as_micros().to_be_bytes()]);
    table.keys(&first, &key(&[&prefix, &[0xff; 40]]))
}

/// How many unserved packages of a device live at least until `end`.
pub(super) fn count(table: &Table, user: UserId, suite: u16, device: DeviceId, end: Timestamp) -> Result<u32> {
    let mut count = 0;
    for key in unserved(table, user, suite, device, end) {
        key?;
        count += 1;
    }
    Ok(count)
}

/// Takes in packages. Forgets those of the same devices whose life ended, unserved and served.
pub(super) fn publish(step: &mut Step<'_>, rows: &[KeyPackageRow], keep: u32) -> Result<u32> {
    let mut counts = BTreeMap::new();
    let mut seen = BTreeSet::new();
    // Of several last-resort packages the last one stays, so it goes first and the others find its place taken.
    let mut replaced = BTreeSet::new();
    for row in rows {
        let of = (row.user, row.suite, row.device);
        if let Entry::Vacant(entry) = counts.entry(of) {
            forget_ended(step, row.user, row.suite, row.device)?;
            entry.insert(count(step.table(), row.user, row.suite, row.device, step.latest())?);
        }
    }
    for row in rows.iter().rev().filter(|row| row.last_resort) {
        let new = read(step.table(), row.user, row.suite, row.reference)?.is_none();
        if replaced.insert((row.user, row.suite, row.device)) && new {
            replace_last_resort(step, row)?;
        }
    }
    for row in rows.iter().filter(|row| !row.last_resort) {
        let count = counts.entry((row.user, row.suite, row.device)).or_default();
        let new = read(step.table(), row.user, row.suite, row.reference)?.is_none();
        if *count < keep && new && seen.insert(row.reference) {
            insert(step, row);
            step.insert(unserved_key(row), Bytes::new());
            *count += 1;
        }
    }
    Ok(counts.values().sum())
}

fn insert(step: &mut Step<'_>, row: &KeyPackageRow) {
    let mut value = Encoder::new(128 + row.bytes.len());
    encode_key_package(&mut value, row);
    step.insert(package_key(row.user, row.suite, row.reference), value.finish());
}

fn replace_last_resort(step: &mut Step<'_>, row: &KeyPackageRow) -> Result<()> {
    if let Some((old, _)) = last_resort(step.table(), row.user, row.suite, row.device)? {
        forget_unless_served(step, row.user, row.suite, old)?;
    }
    insert(step, row);
    put_last_resort(step, row, None);
    Ok(())
}

fn forget_unless_served(step: &mut Step<'_>, user: UserId, suite: u16, reference: Digest) -> Result<()> {
    if !step.table().contains(&served_key(user, suite, reference))? {
        step.remove(package_key(user, suite, reference));
    }
    Ok(())
}

/// How many packages whose life ended one publish forgets.
const FORGET: usize = 256;

/// Forgets a device's unserved packages and the user's served ones whose life ended before the latest time told.
fn forget_ended(step: &mut Step<'_>, user: UserId, suite: u16, device: DeviceId) -> Result<()> {
    let latest = step.latest();
    let Some(last) = latest.as_micros().checked_sub(1) else { return Ok(()) };
    let prefix = unserved_prefix(user, suite, device);
    let ended = step.table().keys(&prefix, &key(&[&prefix, &last.to_be_bytes(), &[0xff; 32]]));
    for key in ended.take(FORGET) {
        let key = key?;
        let reference = Digest::from_bytes(array_at(TABLE, &key, REFERENCE_AT)?);
        step.remove(package_key(user, suite, reference));
        step.remove(key);
    }
    let until = |end, fill: &[u8]| served_until_key(user, suite, Timestamp::from_micros(end), fill);
    for key in step.table().keys(&until(0, &[]), &until(last, &[0xff; 32])).take(FORGET) {
        let key = key?;
        let reference = Digest::from_bytes(array_at(TABLE, &key, ENDED_REFERENCE_AT)?);
        // A last-resort package stays where it is still offered.
        let offered = named(step.table(), user, suite, reference)?;
        let current = last_resort(step.table(), user, suite, offered.device)?;
        if current.is_none_or(|(current, _)| current != reference) {
            step.remove(package_key(user, suite, reference));
            step.remove(served_key(user, suite, reference));
            step.remove(key);
        }
    }
    Ok(())
}

/// Serves a device's package that ends first but not before `end`, else its last-resort one.
pub(super) fn serve(
    step: &mut Step<'_>,
    (user, suite, device): (UserId, u16, DeviceId),
    end: Timestamp,
    now: Timestamp,
) -> Result<Option<KeyPackageRow>> {
    let first = unserved(step.table(), user, suite, device, end).next().transpose()?;
    let row = if let Some(key) = first {
        let reference = Digest::from_bytes(array_at(TABLE, &key, REFERENCE_AT)?);
        step.remove(key);
        named(step.table(), user, suite, reference)?
    } else if let Some((reference, _)) = last_resort(step.table(), user, suite, device)? {
        let row = named(step.table(), user, suite, reference)?;
        put_last_resort(step, &row, Some(now));
        row
    } else {
        return Ok(None);
    };
    step.insert(served_key(user, suite, row.reference), Bytes::new());
    step.insert(served_until_key(user, suite, row.not_after, row.reference.as_bytes()), Bytes::new());
    Ok(Some(row))
}

pub(super) fn served(table: &Table, user: UserId, suite: u16, reference: Digest) -> Result<Option<KeyPackageRow>> {
    if table.contains(&served_key(user, suite, reference))? { read(table, user, suite, reference) } else { Ok(None) }
}

pub(super) fn status(
    table: &Table,
    user: UserId,
    device: DeviceId,
    suite: u16,
    end: Timestamp,
) -> Result<KeyPackageStatus> {
    let last_resort = last_resort(table, user, suite, device)?;
    Ok(KeyPackageStatus {
        available: count(table, user, suite, device, end)?,
        has_last_resort: last_resort.is_some(),
        last_resort_used: last_resort.and_then(|(_, used)| used),
    })
}

/// Forgets what a device could still be served, in all suites.
pub(super) fn drop_unserved(step: &mut Step<'_>, user: UserId, device: DeviceId) -> Result<()> {
    let of = |tag: u8| key(&[&[tag], user.as_bytes()]);
    let unserved: Vec<_> = step.table().prefix(&of(tag::UNSERVED)).collect::<Result<_>>()?;
    for (key, _) in unserved {
        if array_at(TABLE, &key, DEVICE_AT)? == *device.as_bytes() {
            let suite = u16::from_be_bytes(array_at(TABLE, &key, SUITE_AT)?);
            let reference = Digest::from_bytes(array_at(TABLE, &key, REFERENCE_AT)?);
            step.remove(package_key(user, suite, reference));
            step.remove(key);
        }
    }
    let last_resorts: Vec<_> = step.table().prefix(&of(tag::LAST_RESORT)).collect::<Result<_>>()?;
    for (key, value) in last_resorts {
        if array_at(TABLE, &key, DEVICE_AT)? == *device.as_bytes() {
            let suite = u16::from_be_bytes(array_at(TABLE, &key, SUITE_AT)?);
            let reference = Decoder::new(TABLE, value)?.digest()?;
            forget_unless_served(step, user, suite, reference)?;
            step.remove(key);
        }
    }
    Ok(())
}
