//! Tables `feeds`, `feed_heads` and `device_cursors`, and their seam.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{DeviceId, Position, Timestamp, UserId};

use super::cells::{Cell, split};
use super::codec::{Decoder, array_at, u64_at};
use super::engine::{Engine, key};
use super::{Embedded, messages, receipts};
use crate::Result;
use crate::encoding::feeds::{decode_feed, encode_feed};
use crate::feeds::{DeviceCursorRow, FeedRow, Feeds, ReceiptOfRow};

/// Where the next call of `expire` goes on: a user.
#[derive(Default)]
pub(super) struct Sweep(Mutex<[u8; 16]>);

/// How many users one call of `expire` looks at.
const SWEEP_USERS: usize = 1 << 16;

fn feed_key(user: UserId, position: u64) -> Vec<u8> {
    key(&[user.as_bytes(), &position.to_be_bytes()])
}

fn encode(row: &FeedRow) -> (Vec<u8>, Bytes) {
    (feed_key(row.user, row.position.as_u64()), encode_feed(row))
}

fn decode(user: UserId, key: &[u8], bytes: Bytes) -> Result<FeedRow> {
    decode_feed(user, Position::from_u64(u64_at("feeds", key, 16)?), bytes)
}

fn rows(
    engine: &Engine,
    user: UserId,
    after: Option<Position>,
    through: Position,
    limit: usize,
) -> Result<Vec<FeedRow>> {
    let first = match after {
        None => 0,
        Some(after) if after < through => after.as_u64() + 1,
        Some(_) => return Ok(Vec::new()),
    };
    let range = engine.tables.feeds.range(&feed_key(user, first), &feed_key(user, through.as_u64()));
    let decoded = range.take(limit).map(|row| {
        let (key, bytes) = row?;
        decode(user, &key, bytes)
    });
    decoded.collect()
}

/// Deletes each user's rows from the oldest to the first that is young enough, as positions rise with time; so a call costs
/// a read a user and what it deletes.
fn expire(engine: &Engine, before: Timestamp) -> Result<()> {
    let table = &engine.tables.feeds;
    let mut resume = engine.sweep.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sweep = messages::Sweep::new(engine, table);
    for _ in 0..SWEEP_USERS {
        let Some(first) = table.keys(&*resume, &[0xff; 24]).next().transpose()? else {
            *resume = [0; 16];
            break;
        };
        let user: [u8; 16] = array_at(table.name, &first, 0)?;
        for row in table.prefix(&user) {
            let (key, bytes) = row?;
            if Decoder::new(table.name, bytes)?.time()? >= before {
                break;
            }
            if !sweep.delete(key)? {
                *resume = user;
                return sweep.finish();
            }
        }
        *resume = u128::from_be_bytes(user).wrapping_add(1).to_be_bytes();
        if *resume == [0; 16] {
            break;
        }
    }
    sweep.finish()
}

fn device_cursors(engine: &Engine, user: UserId) -> Result<Vec<DeviceCursorRow>> {
    let table = &engine.tables.device_cursors;
    let row = |row: Result<(Bytes, Bytes)>| {
        let (key, stored) = row?;
        let (acknowledged, _) = split(table, stored)?;
        Ok(DeviceCursorRow { user, device: DeviceId::from_bytes(array_at(table.name, &key, 16)?), acknowledged })
    };
    table.prefix(user.as_bytes()).map(row).collect()
}

#[async_trait]
impl Feeds for Embedded {
    async fn put_rows(&self, rows: &[FeedRow]) -> Result<()> {
        let rows: Vec<_> = rows.iter().map(encode).collect();
        let write = move |engine: &Engine| {
            let mut batch = engine.batch();
            for (key, value) in rows {
                batch.insert(&engine.tables.feeds.keyspace, key, value);
            }
            engine.commit(batch)
        };
        self.0.blocking(write).await
    }

    async fn put_heads(&self, heads: &[(UserId, Position)]) -> Result<()> {
        let cell =
            |(user, at): &(UserId, Position)| Cell { key: user.as_bytes().to_vec(), at: *at, value: Bytes::new() };
        let cells = heads.iter().map(cell).collect();
        self.0.blocking(move |engine| engine.raise(&engine.tables.feed_heads, cells)).await
    }

    async fn heads(&self, users: &[UserId]) -> Result<Vec<Option<Position>>> {
        let users = users.to_vec();
        let read = move |engine: &Engine| {
            let table = &engine.tables.feed_heads;
            let head = |user: &UserId| match table.get(user.as_bytes())? {
                Some(stored) => Ok(Some(split(table, stored)?.0)),
                None => Ok(None),
            };
            users.iter().map(head).collect()
        };
        self.0.blocking(read).await
    }

    async fn rows(
        &self,
        user: UserId,
        after: Option<Position>,
        through: Position,
        limit: usize,
    ) -> Result<Vec<FeedRow>> {
        self.0.blocking(move |engine| rows(engine, user, after, through, limit)).await
    }

    async fn put_device_cursors(&self, cursors: &[DeviceCursorRow]) -> Result<()> {
        let cell = |row: &DeviceCursorRow| Cell {
            key: key(&[row.user.as_bytes(), row.device.as_bytes()]),
            at: row.acknowledged,
            value: Bytes::new(),
        };
        let cells = cursors.iter().map(cell).collect();
        self.0.blocking(move |engine| engine.raise(&engine.tables.device_cursors, cells)).await
    }

    async fn device_cursors(&self, user: UserId) -> Result<Vec<DeviceCursorRow>> {
        self.0.blocking(move |engine| device_cursors(engine, user)).await
    }

    async fn put_receipts_of(&self, rows: &[ReceiptOfRow]) -> Result<()> {
        let rows = receipts::by_key(rows);
        self.0.blocking(move |engine| receipts::put(engine, rows)).await
    }

    async fn receipts_of(
        &self,
        user: UserId,
        updated_after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<ReceiptOfRow>> {
        self.0.blocking(move |engine| receipts::newest(engine, user, updated_after, limit)).await
    }

    async fn expire(&self, before: Timestamp) -> Result<()> {
        self.0.blocking(move |engine| expire(engine, before)).await
    }
}
