//! The one producer of the process.
//!
//! It is idempotent: librdkafka repeats a request under the same sequence numbers, and the broker takes each once and in order.
//! `message.timeout.ms` is 0, so nothing is given up because time passed: callers have their own deadlines, and the budget
//! refuses when too much waits.
//!
//! An idempotent librdkafka producer that gives a message up skips it and goes on with the next. Consumers keep marks over a
//! producer's order, so that would be silent loss. Therefore, on any delivery error: the producer is marked broken in the
//! delivery callback, before that returns, and takes nothing from then on; what it holds is purged, queued or in flight, and
//! answered `Unknown` (what the broker refused for its size: `NotApplied`); then another producer is built in its place.
//! Meanwhile appends are refused `NotApplied`, so that they do not overtake what must be repeated before them.
//! `enable.gapless.guarantee` closes the moment between the error and the callback: librdkafka itself stops there, and the broker
//! refuses what was in flight behind the gap. What it took all the same is answered `Unknown`: nothing is acknowledged behind what
//! failed.
//!
//! A broker that knows nothing of a producer in a partition takes any sequence number from it (KIP-360), so it would not refuse
//! what is in flight behind a producer's first record there. Therefore that record goes alone, and the others are held here
//! until it is delivered: one round trip a partition and producer, and again after a long silence, since brokers forget.
//!
//! One thread polls. Records of one partition get their places in the order of the calls, under that partition's lock.
//!
//! Deliberately absent: retries of what was answered, and appends that wait for the rebuild: whoever waited with a budget in
//! hand would come after those who did not.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use tokio::sync::{Notify, oneshot};
use wardline_domain::{Cause, Failure, Position};
use wardline_log::{NewRecord, Permit};

use crate::context;
use crate::failure::{corrupt, not_applied, unavailable};
use crate::measures;
use crate::options::{Options, RECORD_BYTES};

/// How long the thread waits for reports before it looks whether it must end.
const POLL: Duration = Duration::from_millis(50);

/// The shortest and the longest pause between two producers, so that a cluster that refuses everything is not stormed.
const REBUILD_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// How long a log that was dropped unclosed still waits for what it took.
const ABANDONED: Duration = Duration::from_secs(10);

/// A silence after which a broker may know a producer no more. Brokers forget after `producer.id.expiration.ms`, a day unless
/// changed.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Why an append is refused meanwhile.
const REBUILT: &str = "a delivery failed; the producer is being rebuilt";

type Native = BaseProducer<Reports>;
type Answer = Result<Vec<Position>, Failure>;

/// What the engine sets of librdkafka's producer.
pub(crate) fn settings(options: &Options) -> ClientConfig {
    let mut config = options.client();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("linger.ms", options.linger.as_millis().to_string())
        .set("compression.type", options.compression.name())
        .set("message.max.bytes", (RECORD_BYTES + (32 << 10)).to_string())
        // The budget is what bounds the queue; librdkafka's own limits must not come before it.
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647")
        // A broker that is silent is left for another after this; the repeat is safe.
        .set("request.timeout.ms", "8000")
        .set("socket.timeout.ms", "10000");
    config
}

/// One partition, and what is on its way there.
pub(crate) struct Lane {
    /// The topic's name on the cluster.
    name: Arc<str>,
    partition: i32,
    incarnation: u32,
    /// Locked while a batch is handed over, which keeps it together.
    passage: Mutex<Passage>,
    /// Something may be held; so that reports need no lock otherwise.
    holding: AtomicBool,
}

#[derive(Default)]
struct Passage {
    /// The number of the producer that the rest is about.
    producer: u64,
    known: Known,
    used: Option<Instant>,
    /// Waits for the first record's report. Bounded by the budget, since each append's permit waits with it.
    held: VecDeque<(NewRecord, Arc<Pending>)>,
}

/// Whether the broker knows the producer in a partition.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Known {
    #[default]
    No,
    /// The first record is on its way.
    Asked,
    Yes,
}

impl Lane {
    pub(crate) fn new(name: Arc<str>, partition: i32, incarnation: u32) -> Self {
        Self { name, partition, incarnation, passage: Mutex::default(), holding: AtomicBool::new(false) }
    }

    fn position(&self, offset: i64) -> Option<Position> {
        Position::new(self.incarnation, u64::try_from(offset).ok()?)
    }

    /// Hands a record over, or holds it. The caller has the lock.
    fn pass(
        &self,
        passage: &mut Passage,
        native: &Native,
        record: &NewRecord,
        pending: &Arc<Pending>,
    ) -> Result<(), KafkaError> {
        if passage.known == Known::Asked {
            passage.held.push_back((record.clone(), Arc::clone(pending)));
            return Ok(());
        }
        if passage.known == Known::No {
            passage.known = Known::Asked;
            // Before the record can be reported.
            self.holding.store(true, Ordering::Release);
        }
        send(native, self, record, Arc::clone(pending))
    }

    /// Hands over what was held.
    fn go_on(&self, native: &Native) -> Result<(), KafkaError> {
        let mut passage = lock(&self.passage);
        self.holding.store(false, Ordering::Release);
        passage.known = Known::Yes;
        while let Some((record, pending)) = passage.held.pop_front() {
            if let Err(error) = send(native, self, &record, Arc::clone(&pending)) {
                passage.held.push_front((record, pending));
                // Before another call has the lock: its record must not be taken in this one's place.
                native.context().broken.store(true, Ordering::Release);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Answers what is held: it never left.
    fn give_up(&self) {
        let held = std::mem::take(&mut lock(&self.passage).held);
        for (_, pending) in held {
            pending.never_sent(1);
        }
    }
}

impl Passage {
    /// Whether the broker still knows the producer of this number is asked anew when it may have forgotten.
    fn meet(&mut self, producer: u64) {
        let now = Instant::now();
        let forgotten = self.used.is_none_or(|used| now.duration_since(used) > FORGOTTEN);
        if self.producer != producer || (forgotten && self.known == Known::Yes) {
            // What a producer before it held is answered: that one is empty.
            (self.producer, self.known) = (producer, Known::No);
        }
        self.used = Some(now);
    }
}

pub(crate) struct Producer {
    shared: Arc<Shared>,
}

enum State {
    Open(Arc<Native>),
    /// Purged; another is being built.
    Broken,
    Closed,
}

struct Shared {
    settings: ClientConfig,
    state: RwLock<State>,
    /// Appends without answer.
    waiting: AtomicUsize,
    answered: Notify,
    /// When those who still wait are given up.
    give_up: OnceLock<Instant>,
    /// Something was delivered by the present producer.
    delivered: AtomicBool,
    /// How many producers were built.
    built: AtomicU64,
    /// Called now and then by the polling thread.
    tick: Box<dyn Fn() + Send + Sync>,
}

impl Producer {
    /// Builds it; that needs no broker yet.
    pub(crate) fn start(settings: ClientConfig, tick: impl Fn() + Send + Sync + 'static) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            settings,
            state: RwLock::new(State::Broken),
            waiting: AtomicUsize::new(0),
            answered: Notify::new(),
            give_up: OnceLock::new(),
            delivered: AtomicBool::new(false),
            built: AtomicU64::new(0),
            tick: Box::new(tick),
        });
        let first = shared.build().map_err(|error| corrupt(format!("librdkafka refuses its settings: {error}")))?;
        shared.install(&first);
        let polled = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("wardline-kafka-producer".to_owned())
            .spawn(move || polled.run(first))
            .map_err(unavailable)?;
        Ok(Self { shared })
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(&*read(&self.shared.state), State::Closed)
    }

    /// Hands a batch to librdkafka.
    pub(crate) fn append(
        &self,
        lane: &Arc<Lane>,
        batch: &[NewRecord],
        permit: Permit,
    ) -> Result<oneshot::Receiver<Answer>, Failure> {
        if let Some(size) = batch.iter().map(size).find(|size| *size > RECORD_BYTES) {
            return Err(corrupt(format!("a record of {size} bytes; the log takes {RECORD_BYTES}")));
        }
        let state = read(&self.shared.state);
        let native = match &*state {
            State::Open(native) => native,
            State::Broken => return Err(unavailable(REBUILT)),
            State::Closed => return Err(unavailable("the log is closed")),
        };
        let (pending, answered) = Pending::new(&self.shared, lane, batch.len(), permit);
        let mut passage = lock(&lane.passage);
        let Reports { broken, number, .. } = &**native.context();
        if broken.load(Ordering::Acquire) {
            return Err(unavailable(REBUILT));
        }
        passage.meet(*number);
        for (nth, record) in batch.iter().enumerate() {
            if let Err(error) = lane.pass(&mut passage, native, record, &pending) {
                // Before another call has the partition's lock: its record must not be taken in this one's place.
                broken.store(true, Ordering::Release);
                drop((passage, state));
                self.shared.fail(&error);
                return if nth == 0 {
                    Err(not_applied(&error))
                } else {
                    pending.never_sent(batch.len() - nth);
                    Ok(answered)
                };
            }
        }
        Ok(answered)
    }

    /// Takes nothing more and waits for the answers of what was taken, at the longest until `deadline`. What has none then is
    /// purged and answered `Unknown`.
    pub(crate) async fn close(&self, deadline: tokio::time::Instant) -> Result<(), Failure> {
        self.shared.close();
        if tokio::time::timeout_at(deadline, self.shared.drained()).await.is_ok() {
            return Ok(());
        }
        // Whoever was first decides.
        let _ = self.shared.give_up.set(Instant::now());
        Err(Failure::Unknown(Cause::timeout("the log did not drain before the deadline")))
    }
}

impl Drop for Producer {
    /// Does not wait: the thread ends by itself when all that was taken is answered, or given up.
    fn drop(&mut self) {
        self.shared.close();
        // A close that waits in vain has said so before.
        let _ = self.shared.give_up.set(Instant::now() + ABANDONED);
    }
}

impl Shared {
    fn build(self: &Arc<Self>) -> Result<Arc<Native>, KafkaError> {
        let number = self.built.fetch_add(1, Ordering::Relaxed) + 1;
        let broken = AtomicBool::new(false);
        let reports = Reports { number, shared: Arc::downgrade(self), native: OnceLock::new(), broken };
        let native = Arc::new(Native::from_config_and_context(&self.settings, reports)?);
        // A context is new with each producer, so this is the first.
        let _ = native.context().native.set(Arc::downgrade(&native));
        Ok(native)
    }

    /// Makes a producer the one that appends go to, unless the log was closed.
    fn install(&self, native: &Arc<Native>) {
        let mut state = write(&self.state);
        if matches!(*state, State::Broken) {
            *state = State::Open(Arc::clone(native));
        }
    }

    fn close(&self) {
        *write(&self.state) = State::Closed;
        self.answered.notify_waiters();
    }

    /// Marks the producer broken and purges it. Nothing that was not handed to librdkafka before gets there after this.
    fn fail(&self, error: &impl Display) {
        let mut state = write(&self.state);
        let State::Open(native) = &*state else { return };
        let native = Arc::clone(native);
        *state = State::Broken;
        drop(state);
        tracing::warn!(%error, "a delivery failed: the producer is rebuilt");
        metrics::counter!(measures::REBUILDS).increment(1);
        purge(&native);
    }

    async fn drained(&self) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if self.waiting.load(Ordering::Acquire) == 0 {
                return;
            }
            answered.await;
        }
    }

    /// The polling thread: reports are handled here and nowhere else.
    fn run(self: Arc<Self>, first: Arc<Native>) {
        let mut native = first;
        let mut pause = REBUILD_PAUSE.0;
        loop {
            native.poll(POLL);
            (self.tick)();
            let (broken, closed) = match &*read(&self.state) {
                State::Open(_) => (false, false),
                State::Broken => (true, false),
                State::Closed => (false, true),
            };
            if broken {
                pause = if self.delivered.swap(false, Ordering::Relaxed) { REBUILD_PAUSE.0 } else { pause };
                empty(&native);
                std::thread::sleep(pause);
                pause = (pause * 2).min(REBUILD_PAUSE.1);
                match self.build() {
                    Ok(next) => {
                        native = next;
                        self.install(&native);
                    }
                    Err(error) => tracing::error!(%error, "cannot build a producer"),
                }
            }
            if closed && self.is_over(&native) {
                return;
            }
        }
    }

    /// Whether a closed producer has nothing left to report.
    fn is_over(&self, native: &Native) -> bool {
        if self.give_up.get().is_some_and(|at| *at <= Instant::now()) {
            empty(native);
        }
        self.waiting.load(Ordering::Acquire) == 0 || native.in_flight_count() == 0
    }
}

fn purge(native: &Native) {
    native.purge(PurgeConfig::default().queue().inflight());
}

/// Purges a producer and handles all its reports: every append that it holds gets its answer.
fn empty(native: &Native) {
    purge(native);
    while native.in_flight_count() > 0 {
        native.poll(Duration::from_millis(1));
    }
}

/// What is counted against the largest record.
fn size(record: &NewRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.len() + record.payload.len() + headers
}

fn send(native: &Native, lane: &Lane, record: &NewRecord, pending: Arc<Pending>) -> Result<(), KafkaError> {
    let mut new = BaseRecord::with_opaque_to(&lane.name, pending)
        .partition(lane.partition)
        .key(&record.key[..])
        .payload(&record.payload[..]);
    if !record.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        new = new.headers(
            record
                .headers
                .iter()
                .fold(headers, |headers, (name, value)| headers.insert(Header { key: name, value: Some(&value[..]) })),
        );
    }
    native.send(new).map_err(|(error, _)| error)
}

/// What a producer reports to.
struct Reports {
    /// Tells producers apart.
    number: u64,
    /// Weak, since `Shared` holds the producer.
    shared: Weak<Shared>,
    native: OnceLock<Weak<Native>>,
    /// It takes nothing more.
    broken: AtomicBool,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::trouble(&error, reason);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.fail(&error);
        }
    }
}

impl Reports {
    fn fail(&self, error: &impl Display) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.stop(error);
        }
    }

    fn stop(&self, error: &impl Display) {
        let Some(shared) = self.shared.upgrade() else { return };
        shared.fail(error);
        // A closed log is not rebuilt, but what is behind the failure must not be sent either.
        if let Some(native) = self.native.get().and_then(Weak::upgrade)
            && matches!(&*read(&shared.state), State::Closed)
        {
            purge(&native);
        }
    }

    fn delivered(&self, pending: &Pending, offset: i64) {
        let position = pending.lane.position(offset);
        if position.is_none() {
            self.fail(&"a record was delivered and nobody told where");
        }
        match position {
            Some(position) if !self.broken.load(Ordering::Acquire) => {
                pending.delivered(position);
                self.go_on(&pending.lane);
            }
            _ => {
                pending.failed(Failure::Unknown(Cause::unavailable("delivered, in the wake of a failure")));
                pending.lane.give_up();
            }
        }
    }

    fn go_on(&self, lane: &Lane) {
        if !lane.holding.load(Ordering::Acquire) {
            return;
        }
        // It is being polled, so it is there.
        let Some(native) = self.native.get().and_then(Weak::upgrade) else { return lane.give_up() };
        if let Err(error) = lane.go_on(&native) {
            self.stop(&error);
            lane.give_up();
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, report: &DeliveryResult<'_>, pending: Arc<Pending>) {
        match report {
            Ok(message) => self.delivered(&pending, message.offset()),
            Err((error, _)) => {
                self.fail(error);
                pending.failed(failure(error));
                pending.lane.give_up();
            }
        }
    }
}

/// Why a record was not delivered.
fn failure(error: &KafkaError) -> Failure {
    match error.rdkafka_error_code() {
        // The broker takes a request whole or not at all, and repeats none that it refused for its size.
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            unavailable("larger than the topic takes: see its max.message.bytes")
        }
        _ => Failure::Unknown(crate::failure::cause(error)),
    }
}

/// One append on its way.
struct Pending {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    progress: Mutex<Progress>,
}

struct Progress {
    /// Records without report.
    left: usize,
    positions: Vec<Position>,
    failure: Option<Failure>,
    answer: Option<(oneshot::Sender<Answer>, Permit)>,
}

impl Pending {
    fn new(
        shared: &Arc<Shared>,
        lane: &Arc<Lane>,
        records: usize,
        permit: Permit,
    ) -> (Arc<Self>, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        let progress = Progress {
            left: records,
            positions: Vec::with_capacity(records),
            failure: None,
            answer: Some((answer, permit)),
        };
        let pending = Self { shared: Arc::clone(shared), lane: Arc::clone(lane), progress: Mutex::new(progress) };
        (Arc::new(pending), answered)
    }

    fn delivered(&self, position: Position) {
        self.shared.delivered.store(true, Ordering::Relaxed);
        let mut progress = lock(&self.progress);
        if progress.positions.last().is_none_or(|last| *last < position) {
            progress.positions.push(position);
        } else {
            progress.fail(Failure::Unknown(Cause::unavailable("delivered out of order")));
        }
        self.count(progress, 1);
    }

    fn failed(&self, failure: Failure) {
        let mut progress = lock(&self.progress);
        progress.fail(failure);
        self.count(progress, 1);
    }

    /// Records that librdkafka did not take or was not given. What it took before of the batch says what becomes of that.
    fn never_sent(&self, records: usize) {
        let mut progress = lock(&self.progress);
        progress.fail(unavailable(REBUILT));
        self.count(progress, records);
    }

    /// Answers with the last report.
    fn count(&self, mut progress: MutexGuard<'_, Progress>, reports: usize) {
        progress.left = progress.left.saturating_sub(reports);
        if progress.left > 0 {
            return;
        }
        let Some((answer, permit)) = progress.answer.take() else { return };
        let positions = std::mem::take(&mut progress.positions);
        let result = match progress.failure.take() {
            None => Ok(positions),
            // A part of it is there.
            Some(Failure::NotApplied(cause)) if !positions.is_empty() => Err(Failure::Unknown(cause)),
            Some(failure) => Err(failure),
        };
        drop(progress);
        // The room first: whoever has the answer may use it.
        drop(permit);
        // Whoever does not wait for the answer has it in the log all the same.
        let _ = answer.send(result);
    }
}

impl Progress {
    /// `Unknown` outweighs `NotApplied`.
    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() || matches!(failure, Failure::Unknown(_)) {
            self.failure = Some(failure);
        }
    }
}

impl Drop for Pending {
    /// Nobody holds it any more: it is answered, or the sender drops and the waiter is told `Unknown`.
    fn drop(&mut self) {
        if self.shared.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.answered.notify_waiters();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU32;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::budget::Budget;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Bench {
        cluster: MockCluster<'static, DefaultProducerContext>,
        producer: Producer,
        lane: Arc<Lane>,
        budget: Budget,
    }

    impl Bench {
        fn new() -> Self {
            let cluster = MockCluster::new(1).unwrap();
            cluster.create_topic("t", 1, 1).unwrap();
            let mut settings = settings(&Options::new(vec![cluster.bootstrap_servers()], "p"));
            settings.set("batch.num.messages", "1");
            settings.set("max.in.flight.requests.per.connection", "1");
            let producer = Producer::start(settings, || ()).unwrap();
            let lane = Arc::new(Lane::new("t".into(), 0, 1));
            Self { cluster, producer, lane, budget: Budget::new(1000) }
        }

        fn append(&self, payload: &'static str) -> Result<oneshot::Receiver<Answer>, Failure> {
            let record = NewRecord { key: "k".into(), payload: payload.into(), headers: Vec::new() };
            let permit = self.budget.reserve(NonZeroU32::MIN).unwrap();
            self.producer.append(&self.lane, &[record], permit)
        }
    }

    async fn answer(appended: Result<oneshot::Receiver<Answer>, Failure>) -> Answer {
        tokio::time::timeout(PATIENCE, appended?).await.expect("every append is answered").unwrap()
    }

    /// Whatever the broker answers: nothing is acknowledged behind what was not, positions rise, and the next producer works.
    #[tokio::test]
    async fn nothing_is_acknowledged_behind_what_failed() {
        use RDKafkaRespErr::{
            RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH as INVALID_EPOCH,
            RD_KAFKA_RESP_ERR_INVALID_RECORD as INVALID_RECORD, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as TOO_LARGE,
            RD_KAFKA_RESP_ERR_NO_ERROR as NONE, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS as FEW_REPLICAS,
            RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER as OUT_OF_ORDER,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED as FORBIDDEN,
            RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID as UNKNOWN_ID,
        };
        // The mock broker checks no sequence numbers: what a real one answers behind a gap is said here.
        let fails = [
            vec![NONE, INVALID_RECORD, OUT_OF_ORDER, OUT_OF_ORDER],
            vec![NONE, TOO_LARGE, OUT_OF_ORDER, OUT_OF_ORDER],
            vec![NONE, OUT_OF_ORDER, OUT_OF_ORDER, OUT_OF_ORDER],
            vec![NONE, UNKNOWN_ID, UNKNOWN_ID, UNKNOWN_ID],
            vec![NONE, INVALID_EPOCH, INVALID_EPOCH, INVALID_EPOCH],
            vec![FORBIDDEN; 4],
            vec![FEW_REPLICAS, FEW_REPLICAS],
        ];
        let mut failed = 0;
        for errors in fails {
            let bench = Bench::new();
            answer(bench.append("first")).await.unwrap();
            bench.cluster.request_errors(RDKafkaApiKey::Produce, &errors);
            let pipelined: Vec<_> = ["a", "b", "c", "d"].map(|payload| bench.append(payload)).into_iter().collect();
            let answers = futures::future::join_all(pipelined.into_iter().map(answer)).await;
            let acknowledged = answers.iter().take_while(|answer| answer.is_ok()).count();
            assert!(answers[acknowledged..].iter().all(Result::is_err), "{errors:?}: {answers:?}");
            let positions: Vec<_> = answers.iter().flatten().flatten().collect();
            assert!(positions.is_sorted_by(|a, b| a < b), "{errors:?}: {positions:?}");
            failed += usize::from(acknowledged < 4);

            bench.cluster.clear_request_errors(RDKafkaApiKey::Produce);
            let again = async { while answer(bench.append("again")).await.is_err() {} };
            tokio::time::timeout(PATIENCE, again).await.expect("there is another producer");
            assert_eq!(bench.budget.used(), 0, "{errors:?}: every permit came back");
        }
        assert!(failed >= 4, "most of these errors are not for librdkafka to mend: {failed}");
    }

    #[tokio::test]
    async fn a_producer_that_is_dropped_answers_what_it_took() {
        let bench = Bench::new();
        let appended: Vec<_> = (0..100).map(|_| bench.append("a")).collect();
        let Bench { cluster, producer, .. } = bench;
        drop(producer);
        assert!(futures::future::join_all(appended.into_iter().map(answer)).await.iter().all(Result::is_ok));
        drop(cluster);
    }
}
