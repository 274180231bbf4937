//! Table `receipts_of`: user, conversation, reader, device → what the user was told. Merged as `watermarks` are.

use std::ops::ControlFlow;

use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::{Position, UserId};
use wardline_store::Result;
use wardline_store::feeds::ReceiptOfRow;

use crate::batch::{Either, Write};
use crate::number::{from_cql, id, to_cql};
use crate::session::Cql;
use crate::statements::Preparer;
use crate::watermarks::{Cells, row_of};

const TABLE: &str = "receipts_of";

/// How many rows come in a page.
const PAGE: i32 = 1000;

pub(crate) struct Statements {
    delivered: PreparedStatement,
    read: PreparedStatement,
    recorded: PreparedStatement,
    updated: PreparedStatement,
    skipped: PreparedStatement,
    of: PreparedStatement,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            delivered: p.write(&set("delivered = ?")).await?,
            read: p.write(&set("read = ?")).await?,
            recorded: p.write(&set("recorded = ?")).await?,
            updated: p.write(&set("updated = ?")).await?,
            skipped: p.write(&set("recorded = ?, skipped = skipped + ?")).await?,
            of: p
                .read_paged(
                    PAGE,
                    "SELECT conversation, reader, device, delivered, read, recorded, skipped, updated \
                     FROM {ks}.receipts_of WHERE user = ?",
                )
                .await?,
        })
    }
}

fn set(what: &str) -> String {
    format!(
        "UPDATE {{ks}}.receipts_of USING TIMESTAMP ? SET {what} \
         WHERE user = ? AND conversation = ? AND reader = ? AND device = ?"
    )
}

type Id = [u8; 16];
type Number = (i64, i64, Id, Id, Id, Id);
type Skipped = (i64, i64, Vec<(i64, i64)>, Id, Id, Id, Id);
type Merge<'a> = Write<'a, UserId, Either<Number, Skipped>>;

impl Statements {
    /// What merges a row.
    fn merge<'a>(&'a self, row: &ReceiptOfRow, writes: &mut Vec<Merge<'a>>) -> Result<()> {
        let (partition, of) = (row.user, &row.watermark);
        let (cells, updated) = (Cells::of(TABLE, of)?, to_cql(TABLE, row.updated.as_u64())?);
        let (user, reader, device) = (*partition.as_bytes(), *of.user.as_bytes(), *of.device.as_bytes());
        let (conversation, bytes) = (*of.conversation.as_bytes(), cells.bytes());
        let mut add = |statement, values| writes.push(Write { partition, statement, values, bytes });
        let number = |number| Either::A((number, number, user, conversation, reader, device));
        add(&self.updated, number(updated));
        if cells.delivered > 0 {
            add(&self.delivered, number(cells.delivered));
        }
        if cells.read > 0 {
            add(&self.read, number(cells.read));
        }
        if cells.skipped.is_empty() {
            add(&self.recorded, number(cells.recorded));
        } else {
            let values = (cells.recorded, cells.recorded, cells.skipped, user, conversation, reader, device);
            add(&self.skipped, Either::B(values));
        }
        Ok(())
    }
}

pub(crate) async fn put(cql: &Cql, rows: &[ReceiptOfRow]) -> Result<()> {
    let mut writes = Vec::with_capacity(4 * rows.len());
    for row in rows {
        cql.statements.receipts_of.merge(row, &mut writes)?;
    }
    cql.write_all("receipts_of.put", writes).await.end()
}

/// The most recent rows above `after`, oldest first.
pub(crate) async fn newest(
    cql: &Cql,
    user: UserId,
    after: Option<Position>,
    limit: usize,
) -> Result<Vec<ReceiptOfRow>> {
    type Numbers = Option<i64>;
    type Row = (Bytes, Bytes, Bytes, Numbers, Numbers, Numbers, Option<Vec<(i64, i64)>>, Numbers);
    let mut rows: Vec<ReceiptOfRow> = Vec::new();
    let take = |(conversation, reader, device, delivered, read, recorded, skipped, updated): Row| {
        let updated = Position::from_u64(from_cql(TABLE, updated.unwrap_or(0))?);
        if after.is_none_or(|after| updated > after) {
            let key = (id(TABLE, &conversation)?, id(TABLE, &reader)?, id(TABLE, &device)?);
            let watermark = row_of(TABLE, key, (delivered, read, recorded, skipped))?;
            rows.push(ReceiptOfRow { user, watermark, updated });
        }
        if rows.len() >= limit.saturating_mul(2).saturating_add(1024) {
            keep_newest(&mut rows, limit);
        }
        Ok(ControlFlow::Continue(()))
    };
    cql.pages("receipts_of.get", &cql.statements.receipts_of.of, (user.as_bytes(),), take).await?;
    keep_newest(&mut rows, limit);
    Ok(rows)
}

fn keep_newest(rows: &mut Vec<ReceiptOfRow>, limit: usize) {
    rows.sort_by_key(|row| row.updated);
    rows.drain(..rows.len().saturating_sub(limit));
}
