//! A log in memory whose appends fail on demand: for what appends, tried without an engine.
//!
//! Deliberately absent: subscriptions, and chance ([`super::Faulty`] has it).

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::ready;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Cause, Failure, Position};

use super::toy::lock;
use crate::seam::{Appended, EventLog, FetchLimits, Group, NewRecord, Permit, Refused, Subscription};
use crate::topic::{Partition, Topic};

const FOUR: PartitionCount = PartitionCount::new(4).expect("a power of two");
const ONE: PartitionCount = PartitionCount::new(1).expect("a power of two");

/// How an append fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not.
    Works,
    /// It did not happen and says so.
    NotApplied,
    /// It happened and says `Unknown`.
    UnknownApplied,
    /// It did not happen and says `Unknown`.
    UnknownNotApplied,
}

/// Four partitions of `conversations` and of `feeds`, one of all else. Nobody subscribes to it.
pub struct MemoryLog {
    records: Mutex<BTreeMap<Partition, Vec<NewRecord>>>,
    fault: Box<dyn Fn(usize) -> Fault + Send + Sync>,
    calls: AtomicUsize,
    budget: u32,
    /// The most bytes that one append had.
    largest: AtomicU32,
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryLog({} appends)", self.calls())
    }
}

impl MemoryLog {
    /// How many partitions `conversations` and `feeds` have.
    pub const PARTITIONS: PartitionCount = FOUR;

    /// `fault` says how the nth append ends.
    pub fn new(fault: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Self {
        Self {
            records: Mutex::default(),
            fault: Box::new(fault),
            calls: AtomicUsize::new(0),
            budget: u32::MAX,
            largest: AtomicU32::new(0),
        }
    }

    /// Refuses what is larger.
    #[must_use]
    pub fn with_budget(self, budget: u32) -> Self {
        Self { budget, ..self }
    }

    /// The most bytes that one append had.
    pub fn largest(&self) -> u32 {
        self.largest.load(Ordering::SeqCst)
    }

    /// How many appends there were.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// What was appended to a topic, by partition.
    pub fn records(&self, topic: Topic) -> BTreeMap<u32, Vec<NewRecord>> {
        let records = lock(&self.records);
        let of_topic = records.iter().filter(|(partition, _)| partition.topic == topic);
        of_topic.map(|(partition, records)| (partition.index, records.clone())).collect()
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        match topic {
            Topic::Conversations | Topic::Feeds => FOUR,
            _ => ONE,
        }
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        if bytes.get() > self.budget {
            return Err(Refused::TooLarge);
        }
        Ok(Permit::new(bytes, || ()))
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        let bytes: usize = batch.iter().map(|record| record.key.len() + record.payload.len()).sum();
        assert_eq!(bytes, permit.bytes() as usize, "one permit covers the batch");
        self.largest.fetch_max(permit.bytes(), Ordering::SeqCst);
        let unknown = || Err(Failure::Unknown(Cause::timeout("injected")));
        let fault = (self.fault)(self.calls.fetch_add(1, Ordering::SeqCst));
        if matches!(fault, Fault::Works | Fault::UnknownApplied) {
            lock(&self.records).entry(to).or_default().extend(batch);
        }
        ready(match fault {
            Fault::Works => Ok(Vec::new()),
            Fault::NotApplied => Err(Failure::NotApplied(Cause::unavailable("injected"))),
            Fault::UnknownApplied | Fault::UnknownNotApplied => unknown(),
        })
        .boxed()
    }

    async fn subscribe(&self, _: Group, _: Topic, _: FetchLimits) -> Result<Box<dyn Subscription>, Failure> {
        Err(Failure::NotApplied(Cause::unavailable("nobody subscribes")))
    }

    async fn trim(&self, _: Partition, _: Position) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self, _: Instant) -> Result<(), Failure> {
        Ok(())
    }
}
