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
//! refuses what was in flight behind the gap.
//!
//! One thread polls. Records of one partition get their places in the order of the calls, under that partition's lock.
//!
//! Deliberately absent: retries of what was answered, and appends that wait for the rebuild: whoever waited with a budget in
//! hand would come after those who did not.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use tokio::sync::{Notify, oneshot};
use wardline_domain::{Cause, Failure, Position};
use wardline_log::{NewRecord, Permit, Topic};

use crate::context;
use crate::failure::{corrupt, not_applied, unavailable};
use crate::options::{Options, RECORD_BYTES};

/// How long the thread waits for reports before it looks whether it must end.
const POLL: Duration = Duration::from_millis(50);

/// The shortest and the longest pause between two producers, so that a cluster that refuses everything is not stormed.
const REBUILD_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// How long a log that was dropped unclosed still waits for what it took.
const ABANDONED: Duration = Duration::from_secs(10);

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

/// Where a record goes.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) topic: Topic,
    pub(crate) name: &'a str,
    pub(crate) partition: i32,
    pub(crate) incarnation: u32,
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

    /// Hands a batch to librdkafka. `lane` is the partition's lock: it keeps the batch together.
    pub(crate) fn append(
        &self,
        lane: &Mutex<()>,
        to: Target<'_>,
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
        let (pending, answered) = Pending::new(&self.shared, to, batch.len(), permit);
        let together = lock(lane);
        let broken = &native.context().broken;
        if broken.load(Ordering::Acquire) {
            return Err(unavailable(REBUILT));
        }
        for (nth, record) in batch.iter().enumerate() {
            if let Err(error) = send(native, to, record, Arc::clone(&pending)) {
                // Before another call has the partition's lock: its record must not be taken in this one's place.
                broken.store(true, Ordering::Release);
                drop((together, state));
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
        let reports = Reports { shared: Arc::downgrade(self), native: OnceLock::new(), broken: AtomicBool::new(false) };
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
    fn fail(&self, error: &KafkaError) {
        let mut state = write(&self.state);
        let State::Open(native) = &*state else { return };
        let native = Arc::clone(native);
        *state = State::Broken;
        drop(state);
        tracing::warn!(%error, "a delivery failed: the producer is rebuilt");
        metrics::counter!("wardline_log_producer_rebuilds_total").increment(1);
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

fn send(native: &Native, to: Target<'_>, record: &NewRecord, pending: Arc<Pending>) -> Result<(), KafkaError> {
    let mut new = BaseRecord::with_opaque_to(to.name, pending)
        .partition(to.partition)
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
    fn fail(&self, error: &KafkaError) {
        if self.broken.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(shared) = self.shared.upgrade() else { return };
        shared.fail(error);
        // A closed log is not rebuilt, but what is behind the failure must not be sent either.
        if let Some(native) = self.native.get().and_then(Weak::upgrade)
            && matches!(&*read(&shared.state), State::Closed)
        {
            purge(&native);
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, report: &DeliveryResult<'_>, pending: Arc<Pending>) {
        match report {
            Ok(message) => pending.delivered(message.offset()),
            Err((error, _)) => {
                self.fail(error);
                pending.failed(error);
            }
        }
    }
}

/// One append on its way.
struct Pending {
    shared: Arc<Shared>,
    topic: Topic,
    incarnation: u32,
    began: Instant,
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
        to: Target<'_>,
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
        let pending = Self {
            shared: Arc::clone(shared),
            topic: to.topic,
            incarnation: to.incarnation,
            began: Instant::now(),
            progress: Mutex::new(progress),
        };
        (Arc::new(pending), answered)
    }

    fn delivered(&self, offset: i64) {
        self.shared.delivered.store(true, Ordering::Relaxed);
        let position = u64::try_from(offset).ok().and_then(|offset| Position::new(self.incarnation, offset));
        let mut progress = lock(&self.progress);
        match position {
            Some(position) if progress.positions.last().is_none_or(|last| *last < position) => {
                progress.positions.push(position);
            }
            // It is in the log, but nobody told where.
            _ => progress.fail(Failure::Unknown(Cause::unavailable("delivered without a usable position"))),
        }
        self.count(progress, 1);
    }

    fn failed(&self, error: &KafkaError) {
        let failure = match error.rdkafka_error_code() {
            // The broker takes a request whole or not at all, and repeats none that it refused for its size.
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                unavailable("larger than the topic takes: see its max.message.bytes")
            }
            _ => Failure::Unknown(crate::failure::cause(error)),
        };
        let mut progress = lock(&self.progress);
        progress.fail(failure);
        self.count(progress, 1);
    }

    /// The rest of a batch that librdkafka did not take.
    fn never_sent(&self, records: usize) {
        let mut progress = lock(&self.progress);
        progress.fail(Failure::Unknown(Cause::unavailable("a part of the batch was not taken")));
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
        let outcome = match &result {
            Ok(_) => "ok",
            Err(Failure::NotApplied(_)) => "not_applied",
            Err(Failure::Unknown(_)) => "unknown",
        };
        metrics::histogram!("wardline_log_append_seconds", "topic" => self.topic.name(), "outcome" => outcome)
            .record(self.began.elapsed().as_secs_f64());
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
