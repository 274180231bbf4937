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
    Appended, EventLog, FetchLimits, Group, NewRecord, Partition, Permit, Refused, Subscription, Topic,
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
