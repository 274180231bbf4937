//! Tenants.

use wardline_domain::TenantId;

use super::{Step, tag};
use crate::Result;
use crate::directory::{Put, TenantRow};
use crate::embedded::engine::{Table, key};
use crate::encoding::directory::{decode_tenant, encode_tenant};

fn tenant_key(tenant: TenantId) -> Vec<u8> {
    key(&[&[tag::TENANT], tenant.as_bytes()])
}

pub(super) fn read(table: &Table, tenant: TenantId) -> Result<Option<TenantRow>> {
    table.get(&tenant_key(tenant))?.map(|bytes| decode_tenant(tenant, bytes)).transpose()
}

pub(super) fn create(step: &mut Step<'_>, row: &TenantRow) -> Result<Put<TenantRow>> {
    if let Some(stored) = read(step.table(), row.tenant)? {
        return Ok(Put::Exists(stored));
    }
    step.insert(tenant_key(row.tenant), encode_tenant(row));
    Ok(Put::Applied)
}
