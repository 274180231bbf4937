//! Tenants.

use bytes::Bytes;
use wardline_domain::TenantId;

use super::{Step, tag};
use crate::Result;
use crate::directory::{Put, TenantRow};
use crate::embedded::codec::{Decoder, Encoder};
use crate::embedded::engine::{Table, key};

fn tenant_key(tenant: TenantId) -> Vec<u8> {
    key(&[&[tag::TENANT], tenant.as_bytes()])
}

fn encode(row: &TenantRow) -> Bytes {
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

fn decode(tenant: TenantId, bytes: Bytes) -> Result<TenantRow> {
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

pub(super) fn read(table: &Table, tenant: TenantId) -> Result<Option<TenantRow>> {
    table.get(&tenant_key(tenant))?.map(|bytes| decode(tenant, bytes)).transpose()
}

pub(super) fn create(step: &mut Step<'_>, row: &TenantRow) -> Result<Put<TenantRow>> {
    if let Some(stored) = read(step.table(), row.tenant)? {
        return Ok(Put::Exists(stored));
    }
    step.insert(tenant_key(row.tenant), encode(row));
    Ok(Put::Applied)
}
