//! The seam that every log engine fills.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Digest, Failure, Position, Timestamp};

use crate::topic::{Partition, Topic};

/// A record to append.
#[derive(Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// What compaction goes by, and what the caller partitioned by.
    pub key: Bytes,
    /// The record.
    pub payload: Bytes,
    /// Small named values that travel beside it, such as the trace context.
    pub headers: Headers,
}

/// Small named values beside a record.
pub type Headers = Vec<(&'static str, Bytes)>;

impl fmt::Debug for NewRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewRecord({} bytes)", self.payload.len())
    }
}

/// A record as read.
#[derive(Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Its place.
    pub position: Position,
    /// When the engine appended it, by the engine's clock.
    pub appended_at: Timestamp,
    /// Its key.
    pub key: Bytes,
    /// The record.
    pub payload: Bytes,
    /// Small named values beside it.
    pub headers: Vec<(String, Bytes)>,
}

impl LogRecord {
    /// SHA-256 of the payload.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.payload)
    }
}

impl fmt::Debug for LogRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogRecord({} {} bytes)", self.position, self.payload.len())
    }
}

/// Room for bytes in the log's memory, held until they are durable. Dropping it gives the room back.
pub struct Permit {
    bytes: u32,
    release: Option<Box<dyn FnOnce() + Send>>,
}

impl Permit {
    /// For engines: a permit that runs `release` when it is dropped.
    pub fn new(bytes: NonZeroU32, release: impl FnOnce() + Send + 'static) -> Self {
        Self { bytes: bytes.get(), release: Some(Box::new(release)) }
    }

    /// How many bytes it is for.
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({} bytes)", self.bytes)
    }
}

/// No room now. Nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The budget is used up: try again after about this long.
    #[error("over the log's byte budget")]
    Overloaded {
        /// A hint.
        retry_after: Duration,
    },
    /// More than the whole budget.
    #[error("larger than the log's byte budget")]
    TooLarge,
    /// The log is closing or away.
    #[error("the log is closed")]
    Closed,
}

/// The answer to an append: positions in the order given. Dropping it does not undo the append.
pub type Appended = BoxFuture<'static, Result<Vec<Position>, Failure>>;

/// Who shares the partitions of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Each partition goes to one member of the group of this name.
    Named(&'static str),
    /// Every subscriber gets every partition.
    Everyone,
}

/// How much one [`Event::Records`] carries at most (at least one record).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// Records.
    pub records: usize,
    /// Payload bytes.
    pub bytes: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { records: 1024, bytes: 1 << 20 }
    }
}

/// Where a subscriber begins in a partition it was assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record kept.
    Oldest,
    /// At this position, or the oldest record kept above it.
    At(Position),
    /// Behind the newest record that is readable now.
    Newest,
}

/// What a subscription tells.
#[derive(Debug)]
pub enum Event {
    /// A partition is this subscriber's now. Nothing of it comes before [`Subscription::start`].
    Assigned(u32),
    /// A partition is no longer this subscriber's. Records of it that were given out may be given to another one.
    Revoked(u32),
    /// Records of one partition, in order.
    Records {
        /// The partition.
        partition: u32,
        /// The records; positions rise, offsets may have gaps.
        records: Vec<LogRecord>,
    },
}

/// Where a subscriber began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The oldest position kept; `None` in an empty partition.
    pub oldest: Option<Position>,
    /// The position after the newest record that was readable at the start: all below it will be given out.
    pub end: Position,
}

/// The event log.
///
/// Promises: a record is readable, and its append answers `Ok`, only when it is durable. Each partition has one order; what
/// one caller appends to a partition, in order of the calls, is in that order, and an append that fails `NotApplied` is
/// nowhere. After `Unknown` the record may be there or may still come; the caller may append it again, so a reader may see it
/// twice.
/// The caller's duty: reserve before building what is appended; one permit covers the batch's keys and payloads.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// How many partitions a topic has. Fixed at its creation.
    fn partitions(&self, topic: Topic) -> PartitionCount;

    /// Room for `bytes`. Answers at once.
    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused>;

    /// Appends a batch to one partition, whole and adjacent in order. The order of calls is the order in the log. The future
    /// need not be polled for the append to happen.
    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended;

    /// Begins to follow a topic. [`Event::Assigned`] tells of partitions.
    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure>;

    /// Tells that nobody needs the records at or below `through` any more; `through` must lie in a durable checkpoint.
    /// Engines that keep records by time do nothing, and none does anything to a compacted topic.
    async fn trim(&self, partition: Partition, through: Position) -> Result<(), Failure>;

    /// Takes no more appends and waits until all accepted ones have their answer, until `deadline`.
    async fn close(&self, deadline: Instant) -> Result<(), Failure>;
}

/// A subscriber's side. Dropping it leaves the group.
#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next event. Cancel-safe: a dropped call loses nothing.
    async fn next(&mut self) -> Result<Event, Failure>;

    /// Begins an assigned partition. Fails `NotApplied` with cause `Corrupt` when the position lies beyond the end: the log is
    /// not the one that the checkpoint was made on.
    async fn start(&mut self, partition: u32, from: Start) -> Result<Started, Failure>;

    /// Stops giving out records of a partition, until `resume`. It stays assigned.
    fn pause(&mut self, partition: u32);

    /// Gives out records of a paused partition again.
    fn resume(&mut self, partition: u32);

    /// Tells how far the effects have come: for lag only; what counts is the checkpoint in the store.
    fn ack(&mut self, partition: u32, through: Position);
}
