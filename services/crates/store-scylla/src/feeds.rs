//! Tables `feeds`, `feed_heads` and `device_cursors`, and their seam.

use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::{Position, Timestamp, UserId};
use wardline_store::Result;
use wardline_store::encoding::feeds::{decode_feed, encode_feed};
use wardline_store::feeds::{DeviceCursorRow, FeedRow, Feeds, ReceiptOfRow};

use crate::batch::Write;
use crate::number::{bound, from_cql, id, limit, to_cql};
use crate::session::Cql;
use crate::statements::Preparer;
use crate::{Scylla, receipts};

/// How many rows come in a page: events are small.
const PAGE: i32 = 512;

pub(crate) struct Statements {
    put: PreparedStatement,
    rows: PreparedStatement,
    put_head: PreparedStatement,
    head: PreparedStatement,
    put_cursor: PreparedStatement,
    cursors: PreparedStatement,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            put: p.write("INSERT INTO {ks}.feeds (user, position, value) VALUES (?, ?, ?) USING TIMESTAMP ?").await?,
            rows: p
                .read_paged(
                    PAGE,
                    "SELECT position, value FROM {ks}.feeds WHERE user = ? AND position > ? AND position <= ? LIMIT ?",
                )
                .await?,
            put_head: p.write("UPDATE {ks}.feed_heads USING TIMESTAMP ? SET position = ? WHERE user = ?").await?,
            head: p.read("SELECT position FROM {ks}.feed_heads WHERE user = ?").await?,
            put_cursor: p
                .write(
                    "UPDATE {ks}.device_cursors USING TIMESTAMP ? SET acknowledged = ? WHERE user = ? AND device = ?",
                )
                .await?,
            cursors: p.read("SELECT device, acknowledged FROM {ks}.device_cursors WHERE user = ?").await?,
        })
    }
}

impl Cql {
    async fn feed_head(&self, user: UserId) -> Result<Option<Position>> {
        let found = self.one::<(i64,)>("feed_heads.get", &self.statements.feeds.head, (user.as_bytes(),)).await?;
        found.map(|(position,)| from_cql("feed_heads", position).map(Position::from_u64)).transpose()
    }
}

#[async_trait]
impl Feeds for Scylla {
    async fn put_rows(&self, rows: &[FeedRow]) -> Result<()> {
        let statement = &self.0.statements.feeds.put;
        let write = |row: &FeedRow| {
            let value = encode_feed(row);
            let bytes = value.len();
            let at = to_cql("feeds", row.at.as_micros())?;
            let values = (*row.user.as_bytes(), to_cql("feeds", row.position.as_u64())?, value, at);
            Ok(Write { partition: row.user, statement, values, bytes })
        };
        let writes = rows.iter().map(write).collect::<Result<Vec<_>>>()?;
        self.0.write_all("feeds.put", writes).await.end()
    }

    async fn put_heads(&self, heads: &[(UserId, Position)]) -> Result<()> {
        let statement = &self.0.statements.feeds.put_head;
        let write = |(user, position): &(UserId, Position)| {
            let at = to_cql("feed_heads", position.as_u64())?;
            Ok(Write { partition: *user, statement, values: (at, at, *user.as_bytes()), bytes: 24 })
        };
        let writes = heads.iter().map(write).collect::<Result<Vec<_>>>()?;
        self.0.write_all("feed_heads.put", writes).await.end()
    }

    async fn heads(&self, users: &[UserId]) -> Result<Vec<Option<Position>>> {
        self.0.each(users.iter().map(|user| self.0.feed_head(*user)).collect()).await
    }

    async fn rows(
        &self,
        user: UserId,
        after: Option<Position>,
        through: Position,
        most: usize,
    ) -> Result<Vec<FeedRow>> {
        // No row stands below 0.
        let after = after.map_or(-1, |after| bound(after.as_u64()));
        let values = (user.as_bytes(), after, bound(through.as_u64()), limit(most));
        let mut rows = Vec::new();
        if most == 0 || after >= values.2 {
            return Ok(rows);
        }
        let take = |(position, value): (i64, Bytes)| {
            rows.push(decode_feed(user, Position::from_u64(from_cql("feeds", position)?), value)?);
            Ok(ControlFlow::Continue(()))
        };
        self.0.pages("feeds.get", &self.0.statements.feeds.rows, values, take).await?;
        Ok(rows)
    }

    async fn put_device_cursors(&self, cursors: &[DeviceCursorRow]) -> Result<()> {
        let statement = &self.0.statements.feeds.put_cursor;
        let write = |row: &DeviceCursorRow| {
            let at = to_cql("device_cursors", row.acknowledged.as_u64())?;
            let values = (at, at, *row.user.as_bytes(), *row.device.as_bytes());
            Ok(Write { partition: row.user, statement, values, bytes: 48 })
        };
        let writes = cursors.iter().map(write).collect::<Result<Vec<_>>>()?;
        self.0.write_all("device_cursors.put", writes).await.end()
    }

    async fn device_cursors(&self, user: UserId) -> Result<Vec<DeviceCursorRow>> {
        let mut rows = Vec::new();
        let take = |(device, acknowledged): (Bytes, i64)| {
            let acknowledged = Position::from_u64(from_cql("device_cursors", acknowledged)?);
            rows.push(DeviceCursorRow { user, device: id("device_cursors", &device)?, acknowledged });
            Ok(ControlFlow::Continue(()))
        };
        self.0.pages("device_cursors.get", &self.0.statements.feeds.cursors, (user.as_bytes(),), take).await?;
        Ok(rows)
    }

    async fn put_receipts_of(&self, rows: &[ReceiptOfRow]) -> Result<()> {
        receipts::put(&self.0, rows).await
    }

    async fn receipts_of(
        &self,
        user: UserId,
        updated_after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<ReceiptOfRow>> {
        receipts::newest(&self.0, user, updated_after, limit).await
    }

    /// Rows go by themselves, 30 days after they were written.
    async fn expire(&self, _before: Timestamp) -> Result<()> {
        Ok(())
    }
}
