//! A log whose use is measured, whatever the engine.
//!
//! Deliberately absent: reading. The fold driver measures what consumers do.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use metrics::{Counter, Histogram, counter, histogram};
use wardline_domain::Failure;
use wardline_domain::partition::PartitionCount;

use crate::measures as names;
use crate::seam::{Appended, EventLog, FetchLimits, Group, NewRecord, Permit, Refused, Subscription};
use crate::topic::{Partition, Topic};

/// The same log; what it is asked to append and what it refuses is measured.
pub fn measured(log: Arc<dyn EventLog>) -> Arc<dyn EventLog> {
    let refused = |reason: &'static str| counter!(names::RESERVE_REFUSED, "reason" => reason);
    Arc::new(Measured {
        log,
        topics: Topic::ALL.into_iter().map(|topic| (topic, Arc::new(OfTopic::new(topic.name())))).collect(),
        overloaded: refused("overloaded"),
        too_large: refused("too_large"),
        closed: refused("closed"),
    })
}

struct Measured {
    log: Arc<dyn EventLog>,
    topics: HashMap<Topic, Arc<OfTopic>>,
    overloaded: Counter,
    too_large: Counter,
    closed: Counter,
}

struct OfTopic {
    records: Counter,
    bytes: Counter,
    ok: Histogram,
    not_applied: Histogram,
    unknown: Histogram,
}

impl OfTopic {
    fn new(topic: &'static str) -> Self {
        let seconds = |outcome: &'static str| histogram!(names::APPEND_SECONDS, "topic" => topic, "outcome" => outcome);
        Self {
            records: counter!(names::APPENDED_RECORDS, "topic" => topic),
            bytes: counter!(names::APPENDED_BYTES, "topic" => topic),
            ok: seconds("ok"),
            not_applied: seconds("not_applied"),
            unknown: seconds("unknown"),
        }
    }
}

#[async_trait]
impl EventLog for Measured {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        self.log.partitions(topic)
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        let reserved = self.log.reserve(bytes);
        match &reserved {
            Ok(_) => {}
            Err(Refused::Overloaded { .. }) => self.overloaded.increment(1),
            Err(Refused::TooLarge) => self.too_large.increment(1),
            Err(Refused::Closed) => self.closed.increment(1),
        }
        reserved
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        let Some(topic) = self.topics.get(&to.topic).map(Arc::clone) else {
            return self.log.append(permit, to, batch);
        };
        let (records, bytes) = (batch.len() as u64, u64::from(permit.bytes()));
        let began = Instant::now();
        let appended = self.log.append(permit, to, batch);
        Box::pin(async move {
            let answer = appended.await;
            let seconds = match &answer {
                Ok(_) => {
                    topic.records.increment(records);
                    topic.bytes.increment(bytes);
                    &topic.ok
                }
                Err(Failure::NotApplied(_)) => &topic.not_applied,
                Err(Failure::Unknown(_)) => &topic.unknown,
            };
            seconds.record(began.elapsed());
            answer
        })
    }

    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure> {
        self.log.subscribe(group, topic, limits).await
    }

    async fn trim(&self, partition: Partition, through: wardline_domain::Position) -> Result<(), Failure> {
        self.log.trim(partition, through).await
    }

    async fn close(&self, deadline: tokio::time::Instant) -> Result<(), Failure> {
        self.log.close(deadline).await
    }
}
