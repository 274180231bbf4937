//! A log in memory whose appends fail on demand. Nobody subscribes to it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::ready;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Cause, Failure, Position};
use wardline_log::{
    Appended, EventLog, FetchLimits, Group, NewRecord, Partition, Permit, Refused, Subscription, Topic,
};

pub const PARTITIONS: PartitionCount = PartitionCount::new(4).unwrap();
pub const ONE: PartitionCount = PartitionCount::new(1).unwrap();

/// How an append fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Works,
    NotApplied,
    UnknownApplied,
    UnknownNotApplied,
}

pub struct MemoryLog {
    records: Mutex<BTreeMap<Partition, Vec<NewRecord>>>,
    fault: Box<dyn Fn(usize) -> Fault + Send + Sync>,
    calls: AtomicUsize,
    budget: u32,
    /// The most bytes that one append had.
    largest: AtomicU32,
}

impl MemoryLog {
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
    pub fn with_budget(self, budget: u32) -> Self {
        Self { budget, ..self }
    }

    pub fn largest(&self) -> u32 {
        self.largest.load(Ordering::SeqCst)
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn records(&self, topic: Topic) -> BTreeMap<u32, Vec<NewRecord>> {
        let records = self.records.lock().unwrap();
        let of_topic = records.iter().filter(|(partition, _)| partition.topic == topic);
        of_topic.map(|(partition, records)| (partition.index, records.clone())).collect()
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        match topic {
            Topic::Conversations | Topic::Feeds => PARTITIONS,
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
            self.records.lock().unwrap().entry(to).or_default().extend(batch);
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
