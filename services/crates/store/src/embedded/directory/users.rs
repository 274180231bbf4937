//! Users, by id and by what their issuer calls them.

use wardline_domain::{TenantId, UserId};

use super::{Step, tag};
use crate::Result;
use crate::directory::{Put, UserRow};
use crate::embedded::codec::array_at;
use crate::embedded::engine::{Table, key, unusable};
use crate::encoding::directory::{decode_user, encode_user};

fn user_key(user: UserId) -> Vec<u8> {
    key(&[&[tag::USER], user.as_bytes()])
}

fn external_key(tenant: TenantId, external_id: &str) -> Vec<u8> {
    key(&[&[tag::EXTERNAL_ID], tenant.as_bytes(), external_id.as_bytes()])
}

pub(super) fn read(table: &Table, user: UserId) -> Result<Option<UserRow>> {
    table.get(&user_key(user))?.map(|bytes| decode_user(user, bytes)).transpose()
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
    step.insert(user_key(row.user), encode_user(row));
    step.insert(external_key(row.tenant, &row.external_id), row.user.as_bytes().to_vec());
}
