//! Table `watermarks`: conversation, user, device → merged receipts.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{ConversationId, DeviceId, UserId};

use super::Embedded;
use super::codec::{Decoder, Encoder, array_at};
use super::engine::{Engine, key};
use crate::Result;
use crate::watermarks::{WatermarkRow, Watermarks, merge, union};

fn watermark_key(conversation: ConversationId, user: UserId, device: DeviceId) -> Vec<u8> {
    key(&[conversation.as_bytes(), user.as_bytes(), device.as_bytes()])
}

/// Writes what is not in the key.
pub(super) fn encode(value: &mut Encoder, row: &WatermarkRow) {
    value.u64(row.delivered).u64(row.read).time(row.when).count(row.skipped.len());
    for (first, last) in &row.skipped {
        value.u64(*first).u64(*last);
    }
}

/// Reads what is not in the key.
pub(super) fn decode(
    value: &mut Decoder,
    conversation: ConversationId,
    user: UserId,
    device: DeviceId,
) -> Result<WatermarkRow> {
    let (delivered, read, when) = (value.u64()?, value.u64()?, value.time()?);
    let skipped = value.list(|value| Ok((value.u64()?, value.u64()?)))?;
    Ok(WatermarkRow { conversation, user, device, delivered, read, skipped, when })
}

fn read(engine: &Engine, conversation: ConversationId, user: UserId, device: DeviceId) -> Result<Option<WatermarkRow>> {
    let table = &engine.tables.watermarks;
    let Some(bytes) = table.get(&watermark_key(conversation, user, device))? else { return Ok(None) };
    let mut value = Decoder::new(table.name, bytes)?;
    let row = decode(&mut value, conversation, user, device)?;
    value.finish(Some(row))
}

/// Rows by key, those of one key merged, ranges in their canonical form.
fn by_key(rows: &[WatermarkRow]) -> BTreeMap<Vec<u8>, WatermarkRow> {
    let mut merged: BTreeMap<Vec<u8>, WatermarkRow> = BTreeMap::new();
    for row in rows {
        let slot = merged.entry(watermark_key(row.conversation, row.user, row.device));
        slot.and_modify(|to| merge(to, row))
            .or_insert_with(|| WatermarkRow { skipped: union(&row.skipped, &[]), ..row.clone() });
    }
    merged
}

fn put(engine: &Engine, rows: BTreeMap<Vec<u8>, WatermarkRow>) -> Result<()> {
    let table = &engine.tables.watermarks;
    let mut batch = engine.batch();
    let _guards = engine.stripes.lock(rows.keys().map(Vec::as_slice));
    for (key, mut row) in rows {
        let stored = read(engine, row.conversation, row.user, row.device)?;
        if let Some(stored) = &stored {
            merge(&mut row, stored);
        }
        if stored.as_ref() != Some(&row) {
            let mut value = Encoder::new(32 + 16 * row.skipped.len());
            encode(&mut value, &row);
            batch.insert(&table.keyspace, key, value.finish());
        }
    }
    engine.commit(batch)
}

fn of(engine: &Engine, conversation: ConversationId) -> Result<Vec<WatermarkRow>> {
    let table = &engine.tables.watermarks;
    let row = |row: Result<(Bytes, Bytes)>| {
        let (key, bytes) = row?;
        let user = UserId::from_bytes(array_at(table.name, &key, 16)?);
        let device = DeviceId::from_bytes(array_at(table.name, &key, 32)?);
        let mut value = Decoder::new(table.name, bytes)?;
        let row = decode(&mut value, conversation, user, device)?;
        value.finish(row)
    };
    table.prefix(conversation.as_bytes()).map(row).collect()
}

#[async_trait]
impl Watermarks for Embedded {
    async fn put(&self, rows: &[WatermarkRow]) -> Result<()> {
        let rows = by_key(rows);
        self.0.blocking(move |engine| put(engine, rows)).await
    }

    async fn get(&self, keys: &[(ConversationId, UserId, DeviceId)]) -> Result<Vec<Option<WatermarkRow>>> {
        let keys = keys.to_vec();
        let read_all = move |engine: &Engine| {
            keys.iter().map(|(conversation, user, device)| read(engine, *conversation, *user, *device)).collect()
        };
        self.0.blocking(read_all).await
    }

    async fn of(&self, conversation: ConversationId) -> Result<Vec<WatermarkRow>> {
        self.0.blocking(move |engine| of(engine, conversation)).await
    }
}
