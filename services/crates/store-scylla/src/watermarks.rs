//! Table `watermarks`: conversation, user, device → merged receipts, without a read before the write.
//!
//! Each number is a cell of its own that is written at itself as timestamp: whatever the order, the greatest stands. Ranges
//! are elements of a set that is only ever added to; reading makes one sorted list of them.

use std::ops::ControlFlow;

use async_trait::async_trait;
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::{ConversationId, DeviceId, Timestamp, UserId};
use wardline_store::Result;
use wardline_store::watermarks::{WatermarkRow, Watermarks, union};

use crate::Scylla;
use crate::batch::{Either, Write};
use crate::number::{from_cql, id, to_cql};
use crate::session::Cql;
use crate::statements::Preparer;

const TABLE: &str = "watermarks";

/// How many rows come in a page.
const PAGE: i32 = 1000;

pub(crate) struct Statements {
    delivered: PreparedStatement,
    read: PreparedStatement,
    recorded: PreparedStatement,
    skipped: PreparedStatement,
    get: PreparedStatement,
    of: PreparedStatement,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            delivered: p.write(&set("delivered = ?")).await?,
            read: p.write(&set("read = ?")).await?,
            recorded: p.write(&set("recorded = ?")).await?,
            skipped: p.write(&set("recorded = ?, skipped = skipped + ?")).await?,
            get: p
                .read(
                    "SELECT delivered, read, recorded, skipped FROM {ks}.watermarks \
                     WHERE conversation = ? AND user = ? AND device = ?",
                )
                .await?,
            of: p
                .read_paged(
                    PAGE,
                    "SELECT user, device, delivered, read, recorded, skipped FROM {ks}.watermarks WHERE conversation = ?",
                )
                .await?,
        })
    }
}

fn set(what: &str) -> String {
    format!("UPDATE {{ks}}.watermarks USING TIMESTAMP ? SET {what} WHERE conversation = ? AND user = ? AND device = ?")
}

/// A row's numbers and ranges as CQL keeps them.
pub(crate) struct Cells {
    pub(crate) delivered: i64,
    pub(crate) read: i64,
    pub(crate) recorded: i64,
    pub(crate) skipped: Vec<(i64, i64)>,
}

impl Cells {
    pub(crate) fn of(table: &'static str, row: &WatermarkRow) -> Result<Self> {
        let range = |(first, last): (u64, u64)| Ok((to_cql(table, first)?, to_cql(table, last)?));
        Ok(Self {
            delivered: to_cql(table, row.delivered)?,
            read: to_cql(table, row.read)?,
            recorded: to_cql(table, row.when.as_micros())?,
            skipped: union(&row.skipped, &[]).into_iter().map(range).collect::<Result<_>>()?,
        })
    }

    /// About how many bytes they are.
    pub(crate) fn bytes(&self) -> usize {
        100 + 24 * self.skipped.len()
    }
}

/// The cells of a row that were read. Those that are not there stand for 0.
pub(crate) type Found = (Option<i64>, Option<i64>, Option<i64>, Option<Vec<(i64, i64)>>);

/// The row that cells make.
pub(crate) fn row_of(
    table: &'static str,
    (conversation, user, device): (ConversationId, UserId, DeviceId),
    (delivered, read, recorded, skipped): Found,
) -> Result<WatermarkRow> {
    let number = |cell: Option<i64>| from_cql(table, cell.unwrap_or(0));
    let range = |(first, last)| Ok((from_cql(table, first)?, from_cql(table, last)?));
    let skipped: Vec<_> = skipped.unwrap_or_default().into_iter().map(range).collect::<Result<_>>()?;
    Ok(WatermarkRow {
        conversation,
        user,
        device,
        delivered: number(delivered)?,
        read: number(read)?,
        skipped: union(&skipped, &[]),
        when: Timestamp::from_micros(number(recorded)?),
    })
}

type Id = [u8; 16];
type Number = (i64, i64, Id, Id, Id);
type Skipped = (i64, i64, Vec<(i64, i64)>, Id, Id, Id);
type Merge<'a> = Write<'a, ConversationId, Either<Number, Skipped>>;

impl Statements {
    /// What merges a row.
    fn merge<'a>(&'a self, row: &WatermarkRow, writes: &mut Vec<Merge<'a>>) -> Result<()> {
        let cells = Cells::of(TABLE, row)?;
        let (partition, bytes) = (row.conversation, cells.bytes());
        let (conversation, user, device) = (*partition.as_bytes(), *row.user.as_bytes(), *row.device.as_bytes());
        let mut add = |statement, values| writes.push(Write { partition, statement, values, bytes });
        let number = |number| Either::A((number, number, conversation, user, device));
        if cells.delivered > 0 {
            add(&self.delivered, number(cells.delivered));
        }
        if cells.read > 0 {
            add(&self.read, number(cells.read));
        }
        if cells.skipped.is_empty() {
            add(&self.recorded, number(cells.recorded));
        } else {
            let values = (cells.recorded, cells.recorded, cells.skipped, conversation, user, device);
            add(&self.skipped, Either::B(values));
        }
        Ok(())
    }
}

impl Cql {
    async fn watermark(&self, of: (ConversationId, UserId, DeviceId)) -> Result<Option<WatermarkRow>> {
        let key = (of.0.as_bytes(), of.1.as_bytes(), of.2.as_bytes());
        let found = self.one::<Found>("watermarks.get", &self.statements.watermarks.get, key).await?;
        found.map(|cells| row_of(TABLE, of, cells)).transpose()
    }
}

#[async_trait]
impl Watermarks for Scylla {
    async fn put(&self, rows: &[WatermarkRow]) -> Result<()> {
        let mut writes = Vec::with_capacity(3 * rows.len());
        for row in rows {
            self.0.statements.watermarks.merge(row, &mut writes)?;
        }
        self.0.write_all("watermarks.put", writes).await.end()
    }

    async fn get(&self, keys: &[(ConversationId, UserId, DeviceId)]) -> Result<Vec<Option<WatermarkRow>>> {
        self.0.each(keys.iter().map(|key| self.0.watermark(*key)).collect()).await
    }

    async fn of(&self, conversation: ConversationId) -> Result<Vec<WatermarkRow>> {
        type Row = (bytes::Bytes, bytes::Bytes, Option<i64>, Option<i64>, Option<i64>, Option<Vec<(i64, i64)>>);
        let mut rows = Vec::new();
        let take = |(user, device, delivered, read, recorded, skipped): Row| {
            let key = (conversation, id(TABLE, &user)?, id(TABLE, &device)?);
            rows.push(row_of(TABLE, key, (delivered, read, recorded, skipped))?);
            Ok(ControlFlow::Continue(()))
        };
        let of = &self.0.statements.watermarks.of;
        self.0.pages("watermarks.of", of, (conversation.as_bytes(),), take).await?;
        Ok(rows)
    }
}
