//! The one driver of every consumer: position, digest, marks, checkpoint, replay, retry.
//!
//! A role supplies [`Fold::apply`] and [`Fold::effects`] for one partition and [`Folds`] to make it; nothing else.
//!
//! Deliberately absent: what a record means, and repeats under new positions (a producer's retry): a fold knows its own.

mod driver;
mod measure;
mod progress;
pub mod retry;
mod spans;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use wardline_domain::{Failure, Position};
use wardline_store::Checkpoints;
use wardline_store::checkpoints::Checkpoint;

use crate::seam::{EventLog, FetchLimits, Group, LogRecord, Start, Started};
use crate::topic::{Partition, Topic};

/// One partition's consumer.
#[async_trait]
pub trait Fold: Send {
    /// What a batch came to.
    type Effects: Send + Sync;

    /// Folds a batch into the state and says what must be done. Called once a batch; may read stores. On an error it must
    /// have left the state as it was: the same batch comes again.
    async fn apply(&mut self, batch: &[LogRecord]) -> Result<Self::Effects, Failure>;

    /// Does it. Every part is idempotent: after an error the same effects come again, and after a crash the same batch is
    /// folded again from the last checkpoint.
    async fn effects(&mut self, effects: &Self::Effects) -> Result<(), Failure>;

    /// What to keep in the checkpoint beside the place.
    fn marks(&self) -> Bytes {
        Bytes::new()
    }

    /// Called after the batch's effects are done and its checkpoint is written, in order.
    async fn done(&mut self, _through: Position) {}
}

/// Makes the consumers of a topic's partitions.
#[async_trait]
pub trait Folds: Send + Sync + 'static {
    /// One partition's consumer.
    type Fold: Fold + 'static;

    /// A partition was assigned. `checkpoint` is where the one before got to.
    async fn assigned(
        &self,
        partition: u32,
        checkpoint: Option<&Checkpoint>,
        started: Started,
    ) -> Result<Self::Fold, Failure>;

    /// A partition was taken away, or the driver ends. The fold is given back.
    async fn revoked(&self, _partition: u32, fold: Self::Fold) {
        drop(fold);
    }

    /// Who is told how the driver fares; nobody, unless the role says otherwise.
    fn watch(&self) -> &dyn Watch {
        &()
    }
}

/// Is told how the driver fares. For health.
pub trait Watch: Send + Sync {
    /// The topic can be followed, or cannot: the log is away, and is asked again. Told at every change, the first when the
    /// subscription stands.
    fn following(&self, following: bool);

    /// A partition cannot be started, or a batch of it not be folded or done: it is tried again after a pause.
    fn paused(&self, partition: u32, failure: &Failure);

    /// A partition that was paused goes on, or was taken away, or the driver ends.
    fn resumed(&self, partition: u32);
}

/// Nobody.
impl Watch for () {
    fn following(&self, _: bool) {}

    fn paused(&self, _: u32, _: &Failure) {}

    fn resumed(&self, _: u32) {}
}

/// How to drive.
#[derive(Debug, Clone)]
pub struct Options {
    /// The topic.
    pub topic: Topic,
    /// Who shares it.
    pub group: Group,
    /// How much a batch holds.
    pub limits: FetchLimits,
    /// Where a partition without checkpoint begins.
    pub start: Start,
    /// Whether places are kept in the store; without, every start is from `start`.
    pub checkpointed: bool,
    /// How often the store is flushed and the log trimmed behind it; only for a [`Group::Named`] with checkpoints.
    pub trim_every: Duration,
}

impl Options {
    /// Shares a topic under the group's name, each partition from its checkpoint on or else from its oldest record.
    pub fn named(topic: Topic, group: &'static str) -> Self {
        Self {
            topic,
            group: Group::Named(group),
            limits: FetchLimits::default(),
            start: Start::Oldest,
            checkpointed: true,
            trim_every: Duration::from_secs(10),
        }
    }
}

/// Why the driver ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// It was told to.
    #[error("told to stop")]
    Stopped,
    /// The log does not hold what the checkpoint names, or the store is corrupt: a person must look.
    #[error("partition {partition:?} halted: {failure}")]
    Halted {
        /// Which.
        partition: Option<Partition>,
        /// Why.
        failure: Failure,
    },
}

/// Follows the topic until `stop`. Each partition is folded by its own task, so a slow one does not hold up the others.
///
/// Promises: per partition, one fold at a time in this driver; batches in order, each record at least once and none at or
/// below the checkpoint the fold was made with; `apply`, `effects`, checkpoint, `done` in this order, each tried again, with
/// pauses that grow to 10 s, while it fails with `Unavailable` or `Timeout`. The checkpoint names the last record of a batch
/// whose effects are done. The record at the checkpoint is kept in the log and compared at the next start.
/// Whatever fails `Corrupt`, or a log that does not hold what the checkpoint names, ends the whole driver with
/// [`Ended::Halted`]: the process must not go on serving beside a partition that stands.
///
/// On `stop` each partition ends the attempt it is in: a batch that succeeds is checkpointed, one that fails is left for the
/// next owner. Then the folds are given back. The same holds for a partition that was taken away. A fold that is given back may have folded a
/// batch whose effects are not done: it must be discarded, not written.
///
/// The caller's duty: not to run two checkpointed groups on one topic, since there is one checkpoint a partition and the log
/// is trimmed behind it. Dropping the future stops everything at once, as a crash would.
pub async fn run<F: Folds>(
    log: Arc<dyn EventLog>,
    checkpoints: Arc<dyn Checkpoints>,
    folds: Arc<F>,
    options: Options,
    stop: CancellationToken,
) -> Ended {
    driver::Driver::new(log, checkpoints, folds, options).run(stop).await
}
