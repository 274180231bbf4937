//! Real topics for tests: their own prefix each, deleted when nobody holds them any more.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

pub mod proxy;

use std::num::NonZeroU32;
use std::sync::{Arc, Once};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Failure, Position};
use wardline_log::{
    Appended, Event, EventLog, FetchLimits, Group, NewRecord, Partition, Permit, Refused, Start, Subscription, Topic,
};
use wardline_log_kafka::{Environment, Options, migrate, open_in};

/// Longer than anything takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The brokers to test with. `None`, said once, when there are none; where tests must not be left out, a panic.
pub fn brokers() -> Option<Vec<String>> {
    static SAID: Once = Once::new();
    if let Ok(brokers) = std::env::var("WARDLINE_TEST_KAFKA") {
        return Some(brokers.split(',').map(str::to_owned).collect());
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "WARDLINE_TEST_KAFKA is not set");
    SAID.call_once(|| println!("skipped: WARDLINE_TEST_KAFKA is not set"));
    None
}

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("waited for what never came")
}

/// Small topics of one test. Deleted with the last holder.
pub struct Topics {
    pub options: Options,
}

impl Topics {
    pub fn options(brokers: Vec<String>) -> Options {
        let count = |n| PartitionCount::new(n).unwrap();
        Options {
            conversations: count(4),
            feeds: count(4),
            receipts: count(2),
            replication: 1,
            min_insync_replicas: 1,
            budget_bytes: 1 << 20,
            ..Options::new(brokers, format!("test-{}", uuid::Uuid::new_v4().simple()))
        }
    }

    pub async fn create(brokers: Vec<String>) -> Arc<Self> {
        let topics = Arc::new(Self { options: Self::options(brokers) });
        within(migrate(&topics.options)).await.unwrap();
        topics
    }

    pub async fn open(self: &Arc<Self>) -> Arc<dyn EventLog> {
        self.open_with(|_, _| ()).await
    }

    pub async fn open_with(self: &Arc<Self>, change: impl FnOnce(&mut Options, &mut Environment)) -> Arc<dyn EventLog> {
        let (mut options, mut environment) = (self.options.clone(), Environment::default());
        change(&mut options, &mut environment);
        let log = within(open_in(options, environment)).await.unwrap();
        Arc::new(Held { log, topics: Arc::clone(self) })
    }

    pub fn name(&self, topic: Topic) -> String {
        self.options.topic_name(topic)
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", self.options.brokers.join(",")).create().unwrap()
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        let options = self.options.clone();
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let names = Topic::ALL.map(|topic| options.topic_name(topic));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let admin: AdminClient<DefaultClientContext> =
                ClientConfig::new().set("bootstrap.servers", options.brokers.join(",")).create().unwrap();
            // What is left behind is in nobody's way.
            let _ = runtime.block_on(admin.delete_topics(&names, &AdminOptions::new()));
        });
        let _ = deleted.join();
    }
}

/// A log that keeps its topics.
struct Held {
    log: Arc<dyn EventLog>,
    topics: Arc<Topics>,
}

#[async_trait]
impl EventLog for Held {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        self.log.partitions(topic)
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        self.log.reserve(bytes)
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        self.log.append(permit, to, batch)
    }

    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure> {
        self.log.subscribe(group, topic, limits).await
    }

    async fn trim(&self, partition: Partition, through: Position) -> Result<(), Failure> {
        self.log.trim(partition, through).await
    }

    async fn close(&self, deadline: Instant) -> Result<(), Failure> {
        self.log.close(deadline).await
    }
}

pub const fn at(index: u32) -> Partition {
    Partition { topic: Topic::Conversations, index }
}

pub fn record(payload: impl Into<Bytes>) -> NewRecord {
    NewRecord { key: Bytes::from_static(b"key"), payload: payload.into(), headers: Vec::new() }
}

/// Hands a record to the log, within the budget.
pub fn append(log: &dyn EventLog, to: Partition, payload: impl Into<Bytes>) -> Appended {
    let permit = log.reserve(NonZeroU32::MIN).unwrap();
    log.append(permit, to, vec![record(payload)])
}

/// Appends until it is acknowledged, which may make it stand there more than once.
pub async fn insist(log: &dyn EventLog, to: Partition, payload: &str) -> Position {
    within(async {
        loop {
            match append(log, to, payload.to_owned()).await {
                Ok(positions) => return positions[0],
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

/// What the records of a partition hold, up to one that holds `last`.
pub async fn read_to(log: &dyn EventLog, of: Partition, last: &str) -> Vec<String> {
    within(async {
        let mut subscription = log.subscribe(Group::Everyone, of.topic, FetchLimits::default()).await.unwrap();
        let mut read = Vec::new();
        while read.last().is_none_or(|read| read != last) {
            match subscription.next().await.unwrap() {
                Event::Assigned(index) if index == of.index => {
                    subscription.start(index, Start::Oldest).await.unwrap();
                }
                Event::Records { records, .. } => {
                    read.extend(records.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned()));
                }
                _ => {}
            }
        }
        read
    })
    .await
}
