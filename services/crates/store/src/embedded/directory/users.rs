//! Users, by id and by what their issuer calls them.

use bytes::Bytes;
use wardline_domain::{TenantId, UserId};

use super::{Step, tag};
use crate::Result;
use crate::directory::{Put, UserKind, UserRow};
use crate::embedded::codec::{Decoder, Encoder, array_at};
use crate::embedded::engine::{Table, key, unusable};

fn user_key(user: UserId) -> Vec<u8> {
    key(&[&[tag::USER], user.as_bytes()])
}

fn external_key(tenant: TenantId, external_id: &str) -> Vec<u8> {
    key(&[&[tag::EXTERNAL_ID], tenant.as_bytes(), external_id.as_bytes()])
}

fn encode(row: &UserRow) -> Bytes {
    let mut value = Encoder::new(64 + row.external_id.len() + row.sealed_profile.len());
    value.raw(row.tenant.as_bytes()).u8(row.kind as u8).bytes(row.external_id.as_bytes());
    value.bytes(&row.sealed_profile).flag(row.deactivated).u64(row.version).raw(&row.request);
    value.finish()
}

fn decode(user: UserId, bytes: Bytes) -> Result<UserRow> {
    let mut value = Decoder::new("users", bytes)?;
    let row = UserRow {
        user,
        tenant: TenantId::from_bytes(value.array()?),
        kind: kind(&mut value)?,
        external_id: value.text()?,
        sealed_profile: value.bytes()?,
        deactivated: value.flag()?,
        version: value.u64()?,
        request: value.array()?,
    };
    value.finish(row)
}

fn kind(value: &mut Decoder) -> Result<UserKind> {
    match value.u8()? {
        1 => Ok(UserKind::Person),
        2 => Ok(UserKind::Service),
        3 => Ok(UserKind::Role),
        4 => Ok(UserKind::Guest),
        _ => Err(value.malformed("an unknown kind of user")),
    }
}

pub(super) fn read(table: &Table, user: UserId) -> Result<Option<UserRow>> {
    table.get(&user_key(user))?.map(|bytes| decode(user, bytes)).transpose()
}

pub(super) fn by_external_id(table: &Table, tenant: TenantId, external_id: &str) -> Result<Option<UserRow>> {
    let Some(user) = table.get(&external_key(tenant, external_id))? else { return Ok(None) };
    let row = read(table, UserId::from_bytes(array_at("users", &user, 0)?))?;
    // Between the two reads the user may have got another external id.
    Ok(row.filter(|row| row.external_id == external_id))
}

pub(super) fn create(step: &mut Step<'_>, row: &UserRow) -> Result<Put<UserRow>> {
    if let Some(stored) = read(step.table(), row.user)? {
        return Ok(Put::Exists(stored));
    }
    if let Some(stored) = by_external_id(step.table(), row.tenant, &row.external_id)? {
        return Ok(Put::Exists(stored));
    }
    write(step, row);
    Ok(Put::Applied)
}

pub(super) fn update(step: &mut Step<'_>, row: &UserRow) -> Result<Put<UserRow>> {
    let Some(stored) = read(step.table(), row.user)? else {
        return Err(unusable("users: an update of a user that was never created"));
    };
    if stored.version.checked_add(1) != Some(row.version) {
        return Ok(Put::Exists(stored));
    }
    let renamed = (stored.tenant, &stored.external_id) != (row.tenant, &row.external_id);
    if renamed {
        if let Some(other) = by_external_id(step.table(), row.tenant, &row.external_id)? {
            return Ok(Put::Exists(other));
        }
        step.remove(external_key(stored.tenant, &stored.external_id));
    }
    write(step, row);
    Ok(Put::Applied)
}

/// The row before its index: who finds the index finds the row.
fn write(step: &mut Step<'_>, row: &UserRow) {
    step.insert(user_key(row.user), encode(row));
    step.insert(external_key(row.tenant, &row.external_id), row.user.as_bytes().to_vec());
}
