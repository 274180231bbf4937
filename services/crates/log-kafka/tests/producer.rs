//! A delivery that fails takes everything behind it with it. librdkafka's own producer skips it, which is shown here as well:
//! otherwise nobody would see whether the tests can fail.
#![allow(clippy::unwrap_used)]

mod support;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::config::ClientConfig;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use tokio::time::Instant;
use wardline_domain::Failure;
use wardline_log::{EventLog, Topic};

use self::support::proxy::Proxy;
use self::support::{PATIENCE, Topics, append, at, brokers, insist, read_to, record, within};

/// One request a record, so that several are in flight.
const ONE_BY_ONE: (&str, &str) = ("batch.num.messages", "1");
const SHORT_TIMEOUT: (&str, &str) = ("message.timeout.ms", "2000");

fn hook((key, value): (&'static str, &str)) -> (&'static str, String) {
    (key, value.to_owned())
}

/// librdkafka's idempotent producer as it comes, and what it delivered.
struct Raw {
    producer: ThreadedProducer<Reports>,
    reports: Arc<Mutex<Vec<(String, bool)>>>,
}

struct Reports(Arc<Mutex<Vec<(String, bool)>>>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        let (message, delivered) = match report {
            Ok(message) => (message, true),
            Err((_, message)) => (message, false),
        };
        let payload = String::from_utf8_lossy(message.payload().unwrap()).into_owned();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((payload, delivered));
    }
}

impl Raw {
    fn new(brokers: &[String], setting: (&str, &str)) -> Self {
        let reports = Arc::default();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers.join(","))
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("message.max.bytes", "2000000")
            .set(setting.0, setting.1)
            .create_with_context(Reports(Arc::clone(&reports)))
            .unwrap();
        Self { producer, reports }
    }

    fn send(&self, topics: &Topics, payload: &str) {
        let name = topics.name(Topic::Conversations);
        let record = BaseRecord::to(&name).partition(0).key("key").payload(payload);
        assert!(self.producer.send(record).is_ok());
    }

    /// Whether it was delivered, once that is known.
    fn report(&self, payload: &str) -> Option<bool> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.iter().find(|(reported, _)| reported == payload).map(|(_, delivered)| *delivered)
    }
}

/// Lets the topic take no record as large as [`large`].
async fn take_no_large_ones(topics: &Topics) {
    let name = topics.name(Topic::Conversations);
    let smaller = AlterConfig::new(ResourceSpecifier::Topic(&name)).set("max.message.bytes", "10000");
    let altered = topics.admin().alter_configs([&smaller], &AdminOptions::new()).await.unwrap();
    assert!(altered[0].is_ok());
}

fn large() -> String {
    "b".repeat(100_000)
}

/// Until the lowered limit is in force.
async fn until_large_ones_fail(raw: &Raw, topics: &Topics) {
    within(async {
        for n in 0.. {
            let payload = format!("{n}{}", large());
            raw.send(topics, &payload);
            while raw.report(&payload).is_none() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if raw.report(&payload) == Some(false) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_behind_a_record_that_the_broker_refuses_is_delivered() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers.clone()).await;
    take_no_large_ones(&topics).await;
    let raw = Raw::new(&brokers, ONE_BY_ONE);
    until_large_ones_fail(&raw, &topics).await;

    for payload in ["raw a", &large(), "raw c"] {
        raw.send(&topics, payload);
    }
    raw.producer.flush(PATIENCE).unwrap();
    assert_eq!(raw.report(&large()), Some(false));
    assert_eq!(raw.report("raw c"), Some(true), "without the engine's care, what follows is delivered");

    // The engine would refuse to open a topic that takes so little.
    let log = topics_that_shrink(&brokers).await;
    let answers = pipelined(&*log.1, &["a", &large(), "c", "d"]).await;
    assert!(matches!(answers[1], Err(Failure::NotApplied(_) | Failure::Unknown(_))), "{:?}", answers[1]);
    assert!(answers[2].is_err() && answers[3].is_err(), "{answers:?}");
    let whole = NonZeroU32::new(log.0.options.budget_bytes).unwrap();
    assert!(log.1.reserve(whole).is_ok(), "what failed has given its room back");

    // What must come first can be repeated first.
    for payload in ["b again", "c again", "end"] {
        insist(&*log.1, at(0), payload).await;
    }
    let read = read_to(&*log.1, at(0), "end").await;
    let after_a: Vec<&str> = read.iter().map(String::as_str).filter(|payload| *payload != "a").collect();
    assert_eq!(after_a, ["b again", "c again", "end"]);
}

/// A broker takes any sequence number from a producer that it does not know of in that partition, so what is in flight behind
/// the first record of all needs care of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_behind_the_first_record_is_delivered_when_that_is_refused() {
    let Some(brokers) = brokers() else { return };
    let (_topics, log) = topics_that_shrink(&brokers).await;
    for round in 0..3 {
        let answers = pipelined(&*log, &[&large(), "c", "d", "e"]).await;
        assert!(answers.iter().all(Result::is_err), "round {round}: {answers:?}");
        insist(&*log, at(3), "rebuilt").await;
    }
    insist(&*log, at(0), "end").await;
    assert_eq!(read_to(&*log, at(0), "end").await, ["end"]);
}

/// A log whose topic takes less than when it was opened.
async fn topics_that_shrink(brokers: &[String]) -> (Arc<Topics>, Arc<dyn EventLog>) {
    let topics = Topics::create(brokers.to_vec()).await;
    let log = topics.open_with(|_, environment| environment.producer.push(hook(ONE_BY_ONE))).await;
    take_no_large_ones(&topics).await;
    // Another partition tells when the limit is in force.
    within(async { while append(&*log, at(3), large()).await.is_ok() {} }).await;
    insist(&*log, at(3), "rebuilt").await;
    (topics, log)
}

async fn pipelined(log: &dyn EventLog, payloads: &[&str]) -> Vec<Result<Vec<wardline_log::Position>, Failure>> {
    let appended: Vec<_> = payloads.iter().map(|payload| append(log, at(0), (*payload).to_owned())).collect();
    within(join_all(appended)).await
}

/// Appends b and then c after c, while nothing gets through, until b is given up; then everything gets through again.
async fn give_up_b(proxy: &Proxy, mut send: impl FnMut(&str), mut given_up: impl FnMut() -> bool) -> usize {
    proxy.silence();
    send("b");
    let mut count = 0;
    within(async {
        while !given_up() {
            send(&format!("c{count}"));
            count += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    proxy.heal();
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_behind_a_record_that_was_given_up_is_delivered() {
    let Some(brokers) = brokers() else { return };
    let proxy = Proxy::before(&brokers).await;

    let topics = Topics::create(brokers.clone()).await;
    let raw = Raw::new(&proxy.addresses(), SHORT_TIMEOUT);
    raw.send(&topics, "a");
    within(async {
        while raw.report("a").is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let sent = give_up_b(&proxy, |payload| raw.send(&topics, payload), || raw.report("b").is_some()).await;
    raw.producer.flush(PATIENCE).unwrap();
    assert_eq!(raw.report("b"), Some(false));
    let delivered = (0..sent).filter(|n| raw.report(&format!("c{n}")) == Some(true)).count();
    assert!(delivered > 0, "without the engine's care, what follows is delivered");

    let topics = Topics::create(brokers).await;
    let proxied = proxy.addresses();
    let log = topics
        .open_with(|options, environment| {
            options.brokers = proxied;
            environment.producer.push(hook(SHORT_TIMEOUT));
        })
        .await;
    insist(&*log, at(0), "a").await;
    let answers = Mutex::new(Vec::new());
    let mut first = None;
    let sent = give_up_b(
        &proxy,
        |payload| answers.lock().unwrap().push(Some(append(&*log, at(0), payload.to_owned()))),
        || {
            let mut answers = answers.lock().unwrap();
            first = first.take().or_else(|| answers[0].as_mut().unwrap().now_or_never());
            first.is_some()
        },
    )
    .await;
    assert!(matches!(first, Some(Err(Failure::Unknown(_)))), "{first:?}");
    // The last one may have come to the new producer, after b was answered.
    let behind: Vec<_> = answers.into_inner().unwrap().drain(1..sent).flatten().collect();
    assert!(within(join_all(behind)).await.iter().all(Result::is_err));
    insist(&*log, at(0), "end").await;
    let read = read_to(&*log, at(0), "end").await;
    let behind: Vec<String> = (0..sent - 1).map(|n| format!("c{n}")).collect();
    assert!(!read.iter().any(|payload| behind.contains(payload)), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_loses_nothing_and_repeats_nothing() {
    let Some(brokers) = brokers() else { return };
    let proxy = Proxy::before(&brokers).await;
    let topics = Topics::create(brokers).await;
    let proxied = proxy.addresses();
    let log = topics.open_with(|options, _| options.brokers = proxied).await;
    let mut appended = Vec::new();
    for n in 0..500 {
        appended.push(append(&*log, at(0), n.to_string()));
        if n % 50 == 25 {
            proxy.cut();
            tokio::task::yield_now().await;
        }
    }
    assert!(within(join_all(appended)).await.iter().all(Result::is_ok));
    let expected: Vec<_> = (0..500).map(|n| n.to_string()).collect();
    assert_eq!(read_to(&*log, at(0), "499").await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_waits_in_vain_says_unknown_and_leaves_nobody_waiting() {
    let Some(brokers) = brokers() else { return };
    let proxy = Proxy::before(&brokers).await;
    let topics = Topics::create(brokers).await;
    let proxied = proxy.addresses();
    let log = topics.open_with(|options, _| options.brokers = proxied).await;
    insist(&*log, at(0), "a").await;
    proxy.silence();
    let appended = append(&*log, at(0), "b");
    let closed = log.close(Instant::now() + Duration::from_millis(50)).await;
    assert!(matches!(closed, Err(Failure::Unknown(_))), "{closed:?}");
    assert!(matches!(within(appended).await, Err(Failure::Unknown(_))));
    proxy.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_no_topic_takes_is_refused_and_harms_no_other() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let log = topics.open_with(|options, _| options.budget_bytes = 8 << 20).await;
    let batch = vec![record("small"), record(vec![0; 3 << 20])];
    let permit = log.reserve(NonZeroU32::new(4 << 20).unwrap()).unwrap();
    let (refused, taken) = (log.append(permit, at(0), batch), append(&*log, at(0), "end"));
    assert!(matches!(within(refused).await, Err(Failure::NotApplied(_))));
    assert!(within(taken).await.is_ok());
    let largest = vec![b'x'; (2 << 20) - (64 << 10) - 3];
    let permit = log.reserve(NonZeroU32::new(4 << 20).unwrap()).unwrap();
    within(log.append(permit, at(1), vec![record(largest)])).await.unwrap();
    assert_eq!(read_to(&*log, at(0), "end").await, ["end"], "nothing of the refused batch is there");
}
