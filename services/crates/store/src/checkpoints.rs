//! Consumers' places in the log.

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{Digest, Position};

use crate::Result;

/// Table `checkpoints`: (topic, incarnation, partition). One cell; `position` is its write timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last record whose effects are all in the store.
    pub position: Position,
    /// That record's digest.
    pub digest: Digest,
    /// What the consumer must remember beside its place, in its own encoding.
    pub marks: Bytes,
}

/// A partition by name: the topic's constant name and the index.
pub type PartitionName = (&'static str, u32);

/// Consumers' places.
///
/// Promise: when a power cut leaves a checkpoint, it leaves all that was written to the same stores before it.
/// The caller's duty: effects first, then the checkpoint.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// Writes a place; a lower position changes nothing.
    async fn put(&self, partition: PartitionName, checkpoint: &Checkpoint) -> Result<()>;

    /// Reads a place.
    async fn get(&self, partition: PartitionName) -> Result<Option<Checkpoint>>;

    /// Makes everything written so far survive a power cut, and answers when it does. The log may drop only what lies at or
    /// below a checkpoint read before a later `flush`.
    async fn flush(&self) -> Result<()>;
}
