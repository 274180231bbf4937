//! Table `checkpoints`: topic and partition → one cell.

use async_trait::async_trait;

use super::Embedded;
use super::cells::{Cell, split};
use super::codec::{Decoder, Encoder};
use super::engine::key;
use crate::Result;
use crate::checkpoints::{Checkpoint, Checkpoints, PartitionName};

fn checkpoint_key((topic, partition): PartitionName) -> Vec<u8> {
    key(&[topic.as_bytes(), &[0], &partition.to_be_bytes()])
}

#[async_trait]
impl Checkpoints for Embedded {
    async fn put(&self, partition: PartitionName, checkpoint: &Checkpoint) -> Result<()> {
        let mut value = Encoder::new(32 + checkpoint.marks.len());
        value.raw(checkpoint.digest.as_bytes()).raw(&checkpoint.marks);
        let cell = Cell { key: checkpoint_key(partition), at: checkpoint.position, value: value.finish() };
        self.0.blocking(move |engine| engine.raise(&engine.tables.checkpoints, vec![cell])).await
    }

    async fn get(&self, partition: PartitionName) -> Result<Option<Checkpoint>> {
        let table = &self.0.tables.checkpoints;
        let Some(stored) = table.get(&checkpoint_key(partition))? else { return Ok(None) };
        let (position, value) = split(table, stored)?;
        let mut value = Decoder::new(table.name, value)?;
        Ok(Some(Checkpoint { position, digest: value.digest()?, marks: value.rest() }))
    }

    async fn flush(&self) -> Result<()> {
        // What the log derives asks for no sync when it is written, so nothing is known to be synced here.
        self.0.syncer.written();
        self.0.syncer.synced().await
    }
}
