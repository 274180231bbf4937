//! Mutable cells: the value stands behind its write timestamp, and a lower timestamp never shadows a higher one.

use bytes::{BufMut, Bytes, BytesMut};
use fjall::OwnedWriteBatch;
use std::sync::MutexGuard;
use wardline_domain::Position;

use super::codec::u64_at;
use super::engine::{Engine, Table};
use crate::Result;

/// A cell to be written.
pub(super) struct Cell {
    pub(super) key: Vec<u8>,
    pub(super) at: Position,
    pub(super) value: Bytes,
}

impl Engine {
    /// Writes those cells that are not older than what is stored.
    pub(super) fn raise(&self, table: &Table, cells: Vec<Cell>) -> Result<()> {
        let mut batch = self.batch();
        let _guards = self.raise_into(&mut batch, table, cells)?;
        self.commit(batch)
    }

    /// Adds those cells that are not older than what is stored. The guards must live until the batch is committed.
    pub(super) fn raise_into(
        &self,
        batch: &mut OwnedWriteBatch,
        table: &Table,
        mut cells: Vec<Cell>,
    ) -> Result<Vec<MutexGuard<'_, ()>>> {
        cells.sort_by(|a, b| (&a.key, a.at).cmp(&(&b.key, b.at)));
        let guards = self.stripes.lock(cells.iter().map(|cell| cell.key.as_slice()));
        let mut cells = cells.into_iter().peekable();
        while let Some(cell) = cells.next() {
            if cells.peek().is_some_and(|next| next.key == cell.key) {
                continue;
            }
            let stored = table.get(&cell.key)?;
            let stored_at = stored.map(|stored| u64_at(table.name, &stored, 0)).transpose()?;
            if stored_at.is_none_or(|stored_at| stored_at <= cell.at.as_u64()) {
                batch.insert(&table.keyspace, cell.key, stamped(cell.at, &cell.value));
            }
        }
        Ok(guards)
    }
}

fn stamped(at: Position, value: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + value.len());
    bytes.put_u64(at.as_u64());
    bytes.put_slice(value);
    bytes.freeze()
}

/// A stored cell's timestamp and value.
pub(super) fn split(table: &Table, stored: Bytes) -> Result<(Position, Bytes)> {
    let at = u64_at(table.name, &stored, 0)?;
    Ok((Position::from_u64(at), stored.slice(8..)))
}
