//! One partition of `receipts`: decode, read the watermarks the batch touches, merge, say who is told.
//!
//! A batch tells each user once about each device, with the state after the batch: what it says of earlier records of the
//! batch is contained in it.
//!
//! Deliberately absent: a cache. The read is one a batch, and what it read is as new as the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use wardline_domain::{Failure, UserId};
use wardline_log::fold::{Fold, Folds, Watch};
use wardline_log::trace::{self, TraceParent};
use wardline_log::{EventLog, LogRecord, Partition, Started, Topic};
use wardline_proto::convert::ids::bytes16;
use wardline_proto::internal::v1 as wire;
use wardline_runtime::consumer::belongs;
use wardline_runtime::health::FoldHealth;
use wardline_store::Watermarks;
use wardline_store::checkpoints::Checkpoint;
use wardline_store::feeds::WatermarkKey;
use wardline_store::watermarks::WatermarkRow;

use crate::effects::{Effects, Summary};
use crate::record::{Flush, decode};
use crate::watermark::{advance, unreported};

/// The most watermarks of one summary; more make several.
const MAX_WATERMARKS: usize = 1024;

/// Makes the folds of the partitions of `receipts`.
pub struct Receipts {
    log: Arc<dyn EventLog>,
    watermarks: Arc<dyn Watermarks>,
    health: FoldHealth,
}

impl fmt::Debug for Receipts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receipts")
    }
}

impl Receipts {
    /// Over a log and a store.
    pub fn new(log: Arc<dyn EventLog>, watermarks: Arc<dyn Watermarks>, health: FoldHealth) -> Self {
        Self { log, watermarks, health }
    }
}

#[async_trait]
impl Folds for Receipts {
    type Fold = PartitionFold;

    async fn assigned(
        &self,
        partition: u32,
        _checkpoint: Option<&Checkpoint>,
        _started: Started,
    ) -> Result<PartitionFold, Failure> {
        let partition = Partition { topic: Topic::Receipts, index: partition };
        Ok(PartitionFold { partition, log: Arc::clone(&self.log), watermarks: Arc::clone(&self.watermarks) })
    }

    fn watch(&self) -> &dyn Watch {
        &self.health
    }
}

/// Folds one partition.
pub struct PartitionFold {
    partition: Partition,
    log: Arc<dyn EventLog>,
    watermarks: Arc<dyn Watermarks>,
}

impl fmt::Debug for PartitionFold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartitionFold({})", self.partition.index)
    }
}

#[async_trait]
impl Fold for PartitionFold {
    type Effects = Effects;

    async fn apply(&mut self, batch: &[LogRecord]) -> Result<Effects, Failure> {
        let mut effects = Effects::default();
        let flushes = self.decode(batch, &mut effects);
        let mut rows = self.read(&flushes).await?;
        for flush in &flushes {
            for report in &flush.reports {
                let key = (flush.conversation, report.user, report.device);
                advance(rows.entry(key).or_insert_with(|| unreported(key)), report, flush.at);
            }
        }
        self.summarize(&told(&flushes), &rows, &mut effects);
        effects.watermarks = rows.into_values().collect();
        effects.reports = flushes.iter().map(|flush| flush.reports.len() as u64).sum();
        effects.gathered = flushes.iter().map(|flush| flush.at).collect();
        Ok(effects)
    }

    async fn effects(&mut self, effects: &Effects) -> Result<(), Failure> {
        effects.run(&*self.log, &*self.watermarks).await
    }
}

type Rows = BTreeMap<WatermarkKey, WatermarkRow>;
/// Who is told what.
type Told = BTreeMap<UserId, Tidings>;

/// What one user is told.
#[derive(Debug, Default)]
struct Tidings {
    /// Of which devices.
    of: BTreeSet<WatermarkKey>,
    /// The spans that it comes from, few.
    traces: Vec<TraceParent>,
}

impl Tidings {
    fn add(&mut self, key: WatermarkKey, traces: &[TraceParent]) {
        self.of.insert(key);
        for trace in traces {
            if self.traces.len() < trace::MOST && !self.traces.contains(trace) {
                self.traces.push(*trace);
            }
        }
    }
}

/// Senders are told of everybody else's devices; a reader's other devices of what was read on one.
fn told(flushes: &[Flush]) -> Told {
    let mut told = Told::new();
    for flush in flushes {
        for report in &flush.reports {
            let key = (flush.conversation, report.user, report.device);
            for sender in flush.senders.iter().filter(|sender| **sender != report.user) {
                told.entry(*sender).or_default().add(key, &flush.traces);
            }
            if report.read > 0 {
                told.entry(report.user).or_default().add(key, &flush.traces);
            }
        }
    }
    told
}

impl PartitionFold {
    fn decode(&self, batch: &[LogRecord], effects: &mut Effects) -> Vec<Flush> {
        let mut flushes = Vec::with_capacity(batch.len());
        for raw in batch {
            match self.decode_one(raw) {
                Ok(flush) => flushes.push(flush),
                Err(reason) => effects.dead_letters.bury(&*self.log, self.partition, raw, reason),
            }
        }
        flushes
    }

    fn decode_one(&self, raw: &LogRecord) -> Result<Flush, String> {
        let flush = decode(raw).map_err(|violation| violation.to_string())?;
        belongs(&*self.log, flush.conversation.as_bytes(), self.partition)?;
        Ok(flush)
    }

    /// The stored rows of the devices that report.
    async fn read(&self, flushes: &[Flush]) -> Result<Rows, Failure> {
        let keys: Vec<WatermarkKey> = devices(flushes).into_iter().collect();
        if keys.is_empty() {
            return Ok(Rows::new());
        }
        let rows = self.watermarks.get(&keys).await?;
        Ok(keys.into_iter().zip(rows).filter_map(|(key, row)| Some((key, row?))).collect())
    }

    fn summarize(&self, told: &Told, rows: &Rows, effects: &mut Effects) {
        let feeds = self.log.partitions(Topic::Feeds);
        for (user, tidings) in told {
            let to = Partition { topic: Topic::Feeds, index: feeds.partition_of(user.as_bytes()) };
            let states: Vec<_> = tidings.of.iter().filter_map(|key| rows.get(key)).map(state).collect();
            let traces: Arc<[TraceParent]> = tidings.traces.as_slice().into();
            let summary = |watermarks: &[wire::WatermarkRecord]| {
                let user_id = bytes16(user.as_bytes());
                let summary = wire::ReceiptSummaryRecord { user_id, watermarks: watermarks.to_vec() };
                (to, Summary::new(summary, Arc::clone(&traces)))
            };
            effects.summaries.extend(states.chunks(MAX_WATERMARKS).map(summary));
        }
    }
}

fn devices(flushes: &[Flush]) -> BTreeSet<WatermarkKey> {
    let of_flush = |flush: &Flush| {
        let conversation = flush.conversation;
        flush.reports.iter().map(move |report| (conversation, report.user, report.device)).collect::<Vec<_>>()
    };
    flushes.iter().flat_map(of_flush).collect()
}

fn state(row: &WatermarkRow) -> wire::WatermarkRecord {
    wire::WatermarkRecord {
        conversation_id: bytes16(row.conversation.as_bytes()),
        user_id: bytes16(row.user.as_bytes()),
        device_id: bytes16(row.device.as_bytes()),
        delivered: row.delivered,
        read: row.read,
        skipped: row.skipped.iter().flat_map(|(first, last)| [*first, *last]).collect(),
        when_us: row.when.as_micros(),
    }
}
