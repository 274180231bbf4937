//! Table `receipts_of`: user, conversation, reader, device → what the user was told.

use std::collections::BTreeMap;

use wardline_domain::{ConversationId, DeviceId, Position, UserId};

use super::codec::{Decoder, Encoder, array_at};
use super::engine::{Engine, key};
use super::watermarks;
use crate::Result;
use crate::feeds::ReceiptOfRow;
use crate::watermarks::{merge, union};

/// A receipt's key: user, conversation, reader, device.
pub(super) type Key = Vec<u8>;

fn receipt_key(row: &ReceiptOfRow) -> Key {
    let of = &row.watermark;
    key(&[row.user.as_bytes(), of.conversation.as_bytes(), of.user.as_bytes(), of.device.as_bytes()])
}

fn merge_receipt(to: &mut ReceiptOfRow, from: &ReceiptOfRow) {
    merge(&mut to.watermark, &from.watermark);
    to.updated = to.updated.max(from.updated);
}

/// Rows by key, those of one key merged.
pub(super) fn by_key(rows: &[ReceiptOfRow]) -> BTreeMap<Key, ReceiptOfRow> {
    let mut merged: BTreeMap<Key, ReceiptOfRow> = BTreeMap::new();
    for row in rows {
        merged.entry(receipt_key(row)).and_modify(|to| merge_receipt(to, row)).or_insert_with(|| {
            let mut row = row.clone();
            row.watermark.skipped = union(&row.watermark.skipped, &[]);
            row
        });
    }
    merged
}

pub(super) fn put(engine: &Engine, rows: BTreeMap<Key, ReceiptOfRow>) -> Result<()> {
    let table = &engine.tables.receipts_of;
    let mut batch = engine.batch();
    let _guards = engine.stripes.lock(rows.keys().map(Vec::as_slice));
    for (key, mut row) in rows {
        let stored = table.get(&key)?.map(|bytes| decode(&key, bytes)).transpose()?;
        if let Some(stored) = &stored {
            merge_receipt(&mut row, stored);
        }
        if stored.as_ref() != Some(&row) {
            let mut value = Encoder::new(40 + 16 * row.watermark.skipped.len());
            value.position(row.updated);
            watermarks::encode(&mut value, &row.watermark);
            batch.insert(&table.keyspace, key, value.finish());
        }
    }
    engine.commit(batch)
}

fn decode(key: &[u8], bytes: bytes::Bytes) -> Result<ReceiptOfRow> {
    const TABLE: &str = "receipts_of";
    let mut value = Decoder::new(TABLE, bytes)?;
    let updated = value.position()?;
    let watermark = watermarks::decode(
        &mut value,
        ConversationId::from_bytes(array_at(TABLE, key, 16)?),
        UserId::from_bytes(array_at(TABLE, key, 32)?),
        DeviceId::from_bytes(array_at(TABLE, key, 48)?),
    )?;
    value.finish(ReceiptOfRow { user: UserId::from_bytes(array_at(TABLE, key, 0)?), watermark, updated })
}

/// The most recent rows above `after`, oldest first.
pub(super) fn newest(
    engine: &Engine,
    user: UserId,
    after: Option<Position>,
    limit: usize,
) -> Result<Vec<ReceiptOfRow>> {
    let mut rows = Vec::new();
    for row in engine.tables.receipts_of.prefix(user.as_bytes()) {
        let (key, bytes) = row?;
        let row = decode(&key, bytes)?;
        if after.is_none_or(|after| row.updated > after) {
            rows.push(row);
        }
        if rows.len() >= limit.saturating_mul(2).saturating_add(1024) {
            keep_newest(&mut rows, limit);
        }
    }
    keep_newest(&mut rows, limit);
    Ok(rows)
}

fn keep_newest(rows: &mut Vec<ReceiptOfRow>, limit: usize) {
    rows.sort_by_key(|row| row.updated);
    rows.drain(..rows.len().saturating_sub(limit));
}
