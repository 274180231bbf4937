//! The driver's and its tasks' hands on the metrics. Handles are made once; a measurement takes no lookup.
//!
//! Deliberately absent: labels of anything but topic, partition, step and cause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use wardline_domain::failure::CauseKind;
use wardline_domain::{Failure, Timestamp};

use super::progress::Progress;
use crate::measures as names;
use crate::seam::LogRecord;

/// How often the gauges are set.
pub(super) const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What one topic's driver measures. Cheap to clone.
#[derive(Clone)]
pub(super) struct Measures(Arc<OfTopic>);

struct OfTopic {
    topic: &'static str,
    records: Counter,
    batch: Histogram,
    apply: Histogram,
    effects: Histogram,
    checkpoint: Histogram,
    age: Histogram,
    partitions: Gauge,
    paused: Gauge,
}

/// A step of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Apply,
    Effects,
    Checkpoint,
}

impl Measures {
    pub(super) fn of(topic: &'static str) -> Self {
        let step = |step: &'static str| histogram!(names::FOLD_SECONDS, "topic" => topic, "step" => step);
        Self(Arc::new(OfTopic {
            topic,
            records: counter!(names::FOLD_RECORDS, "topic" => topic),
            batch: histogram!(names::FOLD_BATCH, "topic" => topic),
            apply: step("apply"),
            effects: step("effects"),
            checkpoint: step("checkpoint"),
            age: histogram!(names::FOLD_AGE, "topic" => topic),
            partitions: gauge!(names::FOLD_PARTITIONS, "topic" => topic),
            paused: gauge!(names::FOLD_PAUSED, "topic" => topic),
        }))
    }

    /// Does a step, and takes its time if it succeeds.
    pub(super) async fn timed<T>(
        &self,
        step: Step,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        let done = work.await;
        if done.is_ok() {
            let histogram = match step {
                Step::Apply => &self.0.apply,
                Step::Effects => &self.0.effects,
                Step::Checkpoint => &self.0.checkpoint,
            };
            histogram.record(began.elapsed());
        }
        done
    }

    /// A batch is done.
    pub(super) fn done(&self, batch: &[LogRecord]) {
        let Some(first) = batch.first() else { return };
        self.0.records.increment(batch.len() as u64);
        self.0.batch.record(batch.len() as f64);
        self.0.age.record(age(first.appended_at));
    }

    /// Something is tried again after a pause.
    pub(super) fn paused(&self, failure: &Failure) {
        counter!(names::FOLD_PAUSES, "topic" => self.0.topic, "cause" => cause(failure)).increment(1);
    }

    /// The fold ended.
    pub(super) fn halted(&self, failure: &Failure) {
        counter!(names::FOLD_HALTS, "topic" => self.0.topic, "cause" => cause(failure)).increment(1);
    }

    /// How many partitions there are, and how many of them wait for an engine.
    pub(super) fn partitions(&self, all: usize, paused: usize) {
        self.0.partitions.set(all as f64);
        self.0.paused.set(paused as f64);
    }
}

/// What one partition measures. Its gauges go to 0 when it is dropped.
pub(super) struct PartitionMeasures {
    lag: Gauge,
    waiting: Gauge,
    waiting_age: Gauge,
    waits: Waits,
}

/// Whether a partition waits for an engine: told by its task, read by the driver.
#[derive(Debug, Clone, Default)]
pub(super) struct Waits(Arc<AtomicBool>);

impl Waits {
    pub(super) fn set(&self, waits: bool) {
        self.0.store(waits, Ordering::Relaxed);
    }
}

impl PartitionMeasures {
    pub(super) fn of(topic: &'static str, partition: u32) -> Self {
        let of = |name: &'static str| gauge!(name, "topic" => topic, "partition" => partition.to_string());
        Self {
            lag: of(names::FOLD_LAG),
            waiting: of(names::FOLD_WAITING),
            waiting_age: of(names::FOLD_WAITING_AGE),
            waits: Waits::default(),
        }
    }

    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waits.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, progress: &Progress) {
        self.lag.set(progress.lag() as f64);
        self.waiting.set(progress.batches() as f64);
        self.waiting_age.set(progress.oldest().map_or(Duration::ZERO, age).as_secs_f64());
    }
}

impl Drop for PartitionMeasures {
    fn drop(&mut self) {
        self.set(&Progress::default());
    }
}

/// How long ago something was appended, by this machine's clock; zero when that lies before it.
fn age(appended_at: Timestamp) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_micros(appended_at.as_micros()))
}

const fn cause(failure: &Failure) -> &'static str {
    match failure.cause().kind {
        CauseKind::Unavailable => "unavailable",
        CauseKind::Timeout => "timeout",
        CauseKind::Corrupt => "corrupt",
    }
}
