//! Table `checkpoints`: topic, partition, incarnation → one cell, written at its position.

use async_trait::async_trait;
use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_store::Result;
use wardline_store::checkpoints::{Checkpoint, Checkpoints, PartitionName};
use wardline_store::encoding::{Decoder, Encoder};

use crate::Scylla;
use crate::number::{corrupt, from_cql, to_cql};
use crate::statements::Preparer;

const TABLE: &str = "checkpoints";

pub(crate) struct Statements {
    put: PreparedStatement,
    get: PreparedStatement,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            put: p
                .write(
                    "UPDATE {ks}.checkpoints USING TIMESTAMP ? SET checkpoint = ? \
                     WHERE topic = ? AND partition = ? AND incarnation = ?",
                )
                .await?,
            // The latest incarnation comes first.
            get: p
                .read(
                    "SELECT checkpoint, WRITETIME(checkpoint) FROM {ks}.checkpoints \
                     WHERE topic = ? AND partition = ? LIMIT 1",
                )
                .await?,
        })
    }
}

fn partition_of((topic, partition): PartitionName) -> Result<(&'static str, i32)> {
    let partition = i32::try_from(partition).map_err(|_| corrupt("checkpoints: a partition above what is counted"))?;
    Ok((topic, partition))
}

fn encode(checkpoint: &Checkpoint) -> Bytes {
    let mut value = Encoder::new(40 + checkpoint.marks.len());
    value.position(checkpoint.position).raw(checkpoint.digest.as_bytes()).raw(&checkpoint.marks);
    value.finish()
}

fn decode(bytes: Bytes) -> Result<Checkpoint> {
    let mut value = Decoder::new(TABLE, bytes)?;
    Ok(Checkpoint { position: value.position()?, digest: value.digest()?, marks: value.rest() })
}

#[async_trait]
impl Checkpoints for Scylla {
    async fn put(&self, partition: PartitionName, checkpoint: &Checkpoint) -> Result<()> {
        let (topic, partition) = partition_of(partition)?;
        let at = to_cql(TABLE, checkpoint.position.as_u64())?;
        let incarnation = i32::try_from(checkpoint.position.incarnation())
            .map_err(|_| corrupt("checkpoints: an incarnation above what is counted"))?;
        let values = (at, encode(checkpoint), topic, partition, incarnation);
        self.0.write("checkpoints.put", &self.0.statements.checkpoints.put, values).await
    }

    async fn get(&self, partition: PartitionName) -> Result<Option<Checkpoint>> {
        let get = &self.0.statements.checkpoints.get;
        let found = self.0.one::<(Bytes, i64)>("checkpoints.get", get, partition_of(partition)?).await?;
        let Some((value, at)) = found else { return Ok(None) };
        let checkpoint = decode(value)?;
        if checkpoint.position.as_u64() != from_cql(TABLE, at)? {
            return Err(corrupt("checkpoints: a cell's write timestamp is not its position"));
        }
        Ok(Some(checkpoint))
    }

    /// What a quorum has answered is on the disks of a quorum when their `commitlog_sync` is `batch` or `group`, and it was
    /// answered in order: effects before the checkpoint. Nothing is left to be done.
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}
