//! What the engine costs over librdkafka alone: records of 1 KiB to 8 partitions, acks=all, so many in flight. The two take
//! turns, so that both meet the same machine; the ratio is the engine's rate over librdkafka's of the same round. Prints, asserts
//! nothing.
//!
//! `WARDLINE_TEST_KAFKA=127.0.0.1:9092 cargo bench -p wardline-log-kafka --bench append`
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use wardline_domain::partition::PartitionCount;
use wardline_log::{Appended, EventLog, Topic};
use wardline_log_kafka::{Environment, Options, migrate, open_in};

use self::support::{Topics, append, at, brokers};

const PARTITIONS: u32 = 8;
const RECORD_BYTES: usize = 1024;
const ROUNDS: usize = 7;

/// Records in flight, and records a round.
const SIZES: [(usize, usize); 3] = [(64, 20_000), (1_000, 100_000), (4_000, 200_000)];

fn main() {
    let Some(brokers) = brokers() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(brokers));
}

async fn measure(brokers: Vec<String>) {
    let options = Options {
        conversations: PartitionCount::new(PARTITIONS).unwrap(),
        budget_bytes: 64 << 20,
        ..Topics::options(brokers)
    };
    migrate(&options).await.unwrap();
    let topics = Arc::new(Topics { options });
    let log = open_in(topics.options.clone(), Environment::default()).await.unwrap();
    let raw = Raw::new(&topics);
    let payload = Bytes::from(vec![0x5a; RECORD_BYTES]);
    for (in_flight, records) in SIZES {
        let mut rounds = Vec::new();
        for round in 0..=ROUNDS {
            let alone = raw.round(&payload, in_flight, records);
            let engine = engine(&*log, &payload, in_flight, records).await;
            // The first warms up.
            if round > 0 {
                rounds.push((rate(records, alone), rate(records, engine)));
            }
        }
        tell(in_flight, &rounds);
    }
    log.close(tokio::time::Instant::now() + Duration::from_secs(30)).await.unwrap();
}

fn rate(records: usize, took: Duration) -> f64 {
    records as f64 / took.as_secs_f64()
}

fn tell(in_flight: usize, rounds: &[(f64, f64)]) {
    let sorted = |of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        (all[0], all[all.len() / 2], all[all.len() - 1])
    };
    let (alone, engine, ratio) = (sorted(|round| round.0), sorted(|round| round.1), sorted(|round| round.1 / round.0));
    println!(
        "{in_flight} in flight, median of {} (least to most): librdkafka {:.0}/s ({:.0} to {:.0}), the engine {:.0}/s \
         ({:.0} to {:.0}), ratio {:.2} ({:.2} to {:.2})",
        rounds.len(),
        alone.1,
        alone.0,
        alone.2,
        engine.1,
        engine.0,
        engine.2,
        ratio.1,
        ratio.0,
        ratio.2,
    );
}

async fn engine(log: &dyn EventLog, payload: &Bytes, in_flight: usize, records: usize) -> Duration {
    let began = Instant::now();
    let mut appended: FuturesUnordered<Appended> = FuturesUnordered::new();
    for n in 0..records {
        if appended.len() == in_flight {
            appended.next().await.unwrap().unwrap();
        }
        appended.push(append(log, at(u32::try_from(n).unwrap() % PARTITIONS), payload.clone()));
    }
    while let Some(answer) = appended.next().await {
        answer.unwrap();
    }
    began.elapsed()
}

/// librdkafka with what the engine sets of it, and no more than a counter around it.
struct Raw {
    producer: BaseProducer<Counting>,
    topic: String,
}

struct Counting {
    waiting: AtomicUsize,
}

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        assert!(report.is_ok());
        self.waiting.fetch_sub(1, Ordering::Release);
    }
}

impl Raw {
    fn new(topics: &Topics) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", topics.options.brokers.join(","))
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("message.timeout.ms", "0")
            .set("socket.nagle.disable", "true")
            .create_with_context(Counting { waiting: AtomicUsize::new(0) })
            .unwrap();
        Self { producer, topic: topics.name(Topic::Conversations) }
    }

    fn round(&self, payload: &Bytes, in_flight: usize, records: usize) -> Duration {
        let began = Instant::now();
        let waiting = &self.producer.context().waiting;
        for n in 0..records {
            while waiting.load(Ordering::Acquire) >= in_flight {
                self.producer.poll(Duration::from_millis(1));
            }
            waiting.fetch_add(1, Ordering::Release);
            let partition = i32::try_from(n % PARTITIONS as usize).unwrap();
            let record = BaseRecord::to(&self.topic).partition(partition).key(&b"key"[..]).payload(&payload[..]);
            assert!(self.producer.send(record).is_ok());
        }
        while waiting.load(Ordering::Acquire) > 0 {
            self.producer.poll(Duration::from_millis(1));
        }
        began.elapsed()
    }
}
