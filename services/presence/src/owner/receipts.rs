//! From acknowledgements to the `receipts` topic: gathered for a moment, one record per (feeds partition, conversation,
//! flush), and only when those are durable the devices' acknowledged positions in the store.
//!
//! Nothing is let go of before the log has it. What is not yet flushed when the process ends is found again by comparing
//! the device's next cursor with its stored one ([`super::open`]).
//!
//! Deliberately absent: watermarks. They are the receipt role's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{gauge, histogram};
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, DeviceId, Position, UserId};
use wardline_log::trace::{self, TraceParent};
use wardline_log::{EventLog, NewRecord, Partition, Topic};
use wardline_proto::convert::ids;
use wardline_proto::internal::v1 as wire;
use wardline_runtime::Clock;
use wardline_store::Feeds;
use wardline_store::feeds::DeviceCursorRow;

use super::attachment::Delivered;
use crate::backoff::Backoff;
use crate::measures as names;
use crate::options::{Limits, Timings};

/// How many bytes go into one append.
const APPEND_BYTES: usize = 256 << 10;

/// Who reports, from which feeds partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reporter {
    pub(crate) partition: u32,
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
}

#[derive(Debug, Default)]
struct Pending {
    conversations: HashMap<(u32, ConversationId), Report>,
    cursors: HashMap<(UserId, DeviceId), Position>,
    entries: usize,
    /// How many flushes have taken what was pending.
    taken: u64,
}

#[derive(Debug, Default)]
struct Report {
    /// In the order in which they are to be applied, never none.
    devices: BTreeMap<(UserId, DeviceId), Vec<Progress>>,
    senders: BTreeSet<UserId>,
    /// The spans of deliveries among them, few.
    traces: Vec<TraceParent>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    delivered: u64,
    read: u64,
    skipped_through: u64,
}

/// Gathers what devices report.
pub(crate) struct Receipts {
    log: Arc<dyn EventLog>,
    feeds: Arc<dyn Feeds>,
    clock: Clock,
    limits: Limits,
    timings: Timings,
    pending: Mutex<Pending>,
    some: Notify,
    many: Notify,
    /// How many flushes are durable.
    done: watch::Sender<u64>,
}

impl std::fmt::Debug for Receipts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receipts")
    }
}

impl Receipts {
    pub(crate) fn new(
        log: Arc<dyn EventLog>,
        feeds: Arc<dyn Feeds>,
        clock: Clock,
        limits: Limits,
        timings: Timings,
    ) -> Self {
        let (done, _) = watch::channel(0);
        Self {
            log,
            feeds,
            clock,
            limits,
            timings,
            pending: Mutex::default(),
            some: Notify::new(),
            many: Notify::new(),
            done,
        }
    }

    /// Sets the gauge of what waits.
    pub(crate) fn watch(&self) {
        gauge!(names::REPORTS_WAITING).set(self.lock().entries as f64);
    }

    /// Whether so much waits for the log that no more should be taken in.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().entries >= self.limits.pending_entries
    }

    /// Everything of the feed through `at` is safe on the device; these messages are among it.
    pub(crate) fn delivered(&self, from: Reporter, at: Position, messages: &[Delivered]) {
        let mut pending = self.lock();
        for message in messages {
            match message.sender {
                Some(sender) => {
                    let (progress, senders) = pending.progress(from, message.conversation);
                    progress.delivered = progress.delivered.max(message.sequence.0);
                    senders.insert(sender);
                    if let Some(sent) = message.sent {
                        pending.trace(from, message.conversation, sent.from);
                    }
                }
                None => pending.skip(from, message.conversation, message.sequence),
            }
        }
        let cursor = pending.cursors.entry((from.user, from.device)).or_insert(at);
        *cursor = at.max(*cursor);
        self.wake(pending);
    }

    /// The person has seen the conversation through `sequence`.
    pub(crate) fn read(&self, from: Reporter, conversation: ConversationId, sequence: Sequence, senders: &[UserId]) {
        let mut pending = self.lock();
        let (progress, named) = pending.progress(from, conversation);
        progress.read = progress.read.max(sequence.0);
        named.extend(senders);
        self.wake(pending);
    }

    /// The device passes over what lies between its watermarks and these, and resumes at `at`.
    pub(crate) fn skipped(&self, from: Reporter, at: Position, through: &[(ConversationId, Sequence)]) {
        let mut pending = self.lock();
        for (conversation, sequence) in through {
            pending.skip(from, *conversation, *sequence);
        }
        let cursor = pending.cursors.entry((from.user, from.device)).or_insert(at);
        *cursor = at.max(*cursor);
        self.wake(pending);
    }

    /// Waits until everything gathered before the call is durable.
    pub(crate) async fn flushed(&self) {
        let wanted = {
            let pending = self.lock();
            pending.taken + u64::from(!pending.is_empty())
        };
        let mut done = self.done.subscribe();
        self.some.notify_one();
        self.many.notify_one();
        // The sender lives as long as `self`.
        let _ = done.wait_for(|done| *done >= wanted).await;
    }

    /// Flushes until `stop`, and then what is left within `grace`.
    pub(crate) async fn run(&self, stop: CancellationToken, grace: Duration) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = self.some.notified() => {}
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(self.timings.flush_delay) => {}
                () = self.many.notified() => {}
                () = stop.cancelled() => {}
            }
            tokio::select! {
                biased;
                () = self.flush() => {}
                () = async { stop.cancelled().await; tokio::time::sleep(grace).await } => {
                    tracing::warn!("receipts were left unflushed at the end; devices will report them again");
                    return;
                }
            }
        }
        if tokio::time::timeout(grace, self.flush()).await.is_err() {
            tracing::warn!("receipts were left unflushed at the end; devices will report them again");
        }
    }

    async fn flush(&self) {
        let (taken, batch) = {
            let mut pending = self.lock();
            if pending.is_empty() {
                return;
            }
            let number = pending.taken + 1;
            (number, std::mem::replace(&mut *pending, Pending { taken: number, ..Pending::default() }))
        };
        let began = Instant::now();
        for (partition, records) in self.records(&batch) {
            self.append(partition, &records).await;
        }
        self.put_cursors(&batch).await;
        histogram!(names::FLUSH_SECONDS).record(began.elapsed());
        self.done.send_replace(taken);
    }

    fn records(&self, batch: &Pending) -> Vec<(Partition, Vec<NewRecord>)> {
        let now = self.clock.now().as_micros();
        let count = self.log.partitions(Topic::Receipts);
        let mut by_partition: BTreeMap<u32, Vec<NewRecord>> = BTreeMap::new();
        for ((_, conversation), report) in &batch.conversations {
            let index = count.partition_of(conversation.as_bytes());
            by_partition.entry(index).or_default().push(NewRecord {
                key: ids::bytes16(conversation.as_bytes()),
                payload: report.record(*conversation, now).encode_to_vec().into(),
                headers: report.traces.iter().map(|trace| trace.header()).collect(),
            });
        }
        let mut out = Vec::new();
        for (index, mut records) in by_partition {
            while !records.is_empty() {
                let mut bytes = 0;
                let fits = records.iter().take_while(|record| {
                    bytes += record.payload.len();
                    bytes <= APPEND_BYTES
                });
                let rest = records.split_off(fits.count().max(1));
                out.push((Partition { topic: Topic::Receipts, index }, std::mem::replace(&mut records, rest)));
            }
        }
        out
    }

    /// Appends until the log has it. A repeat is safe: receipts are merged by maximum.
    async fn append(&self, to: Partition, records: &[NewRecord]) {
        let mut backoff = Backoff::new(&self.timings);
        while let Err(problem) = append(&*self.log, to, records.to_vec()).await {
            tracing::warn!(%problem, "receipts wait for the log");
            backoff.pause().await;
        }
    }

    async fn put_cursors(&self, batch: &Pending) {
        let rows: Vec<DeviceCursorRow> = batch
            .cursors
            .iter()
            .map(|((user, device), at)| DeviceCursorRow { user: *user, device: *device, acknowledged: *at })
            .collect();
        let mut backoff = Backoff::new(&self.timings);
        while let Err(failure) = self.feeds.put_device_cursors(&rows).await {
            tracing::warn!(%failure, "acknowledged positions wait for the store");
            backoff.pause().await;
        }
    }

    fn wake(&self, pending: MutexGuard<'_, Pending>) {
        let many = pending.entries >= self.limits.flush_entries;
        drop(pending);
        self.some.notify_one();
        if many {
            self.many.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Additions are whole or absent.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reserves and appends.
pub(crate) async fn append(
    log: &dyn EventLog,
    to: Partition,
    records: Vec<NewRecord>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let bytes: usize = records.iter().map(|record| record.key.len() + record.payload.len()).sum();
    let bytes = u32::try_from(bytes).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    let permit = log.reserve(bytes)?;
    log.append(permit, to, records).await?;
    Ok(())
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.conversations.is_empty() && self.cursors.is_empty()
    }

    /// The device's latest progress.
    fn progress(&mut self, from: Reporter, conversation: ConversationId) -> (&mut Progress, &mut BTreeSet<UserId>) {
        let report = self.conversations.entry((from.partition, conversation)).or_default();
        let device = report.devices.entry((from.user, from.device)).or_insert_with(|| {
            self.entries += 1;
            vec![Progress::default()]
        });
        (device.last_mut().expect("a device that is named has progress"), &mut report.senders)
    }

    /// The record of the conversation continues one more trace, if there is room.
    fn trace(&mut self, from: Reporter, conversation: ConversationId, trace: TraceParent) {
        let traces = &mut self.conversations.entry((from.partition, conversation)).or_default().traces;
        if traces.len() < trace::MOST {
            traces.push(trace);
        }
    }

    /// The device passes over what lies above its delivered watermark. A record's skip is applied before its `delivered`, so
    /// what was delivered before the skip stands in a record of its own, before it.
    fn skip(&mut self, from: Reporter, conversation: ConversationId, through: Sequence) {
        let (progress, _) = self.progress(from, conversation);
        if progress.delivered == 0 {
            progress.skipped_through = progress.skipped_through.max(through.0);
        } else if progress.delivered < through.0 {
            let after = Progress { skipped_through: through.0, ..Progress::default() };
            let report = self.conversations.entry((from.partition, conversation)).or_default();
            report.devices.entry((from.user, from.device)).or_default().push(after);
            self.entries += 1;
        }
    }
}

impl Report {
    fn record(&self, conversation: ConversationId, now: u64) -> wire::ReceiptRecord {
        let each = self.devices.iter().flat_map(|(device, all)| all.iter().map(move |progress| (device, progress)));
        let devices = each.map(|((user, device), progress)| wire::DeviceReceiptRecord {
            user_id: ids::bytes16(user.as_bytes()),
            device_id: ids::bytes16(device.as_bytes()),
            delivered: progress.delivered,
            read: progress.read,
            skipped_through: progress.skipped_through,
        });
        wire::ReceiptRecord {
            conversation_id: ids::bytes16(conversation.as_bytes()),
            flushed_at_us: now,
            devices: devices.collect(),
            sender_user_ids: self.senders.iter().map(|user| Bytes::copy_from_slice(user.as_bytes())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CONVERSATION: ConversationId = ConversationId::from_bytes([7; 16]);
    const FROM: Reporter =
        Reporter { partition: 0, user: UserId::from_bytes([1; 16]), device: DeviceId::from_bytes([2; 16]) };

    async fn receipts(dir: &std::path::Path) -> Receipts {
        let options = wardline_log::embedded::Options::small(&dir.join("log"));
        let log = wardline_log::embedded::open(options).await.unwrap();
        let stores = wardline_store::embedded::open(&dir.join("store")).unwrap();
        Receipts::new(log, stores.feeds, Clock::system(), Limits::default(), Timings::default())
    }

    fn message(sequence: u64) -> Delivered {
        let sender = Some(UserId::from_bytes([9; 16]));
        Delivered { conversation: CONVERSATION, sequence: Sequence(sequence), sender, accepted_at: None, sent: None }
    }

    fn welcome(sequence: u64) -> Delivered {
        Delivered { sender: None, ..message(sequence) }
    }

    /// (delivered, read, skipped through) of each of the device's records, in order.
    fn reported(receipts: &Receipts) -> Vec<(u64, u64, u64)> {
        let records = receipts.records(&receipts.lock());
        let records = records.into_iter().flat_map(|(_, records)| records);
        let records = records.flat_map(|record| wire::ReceiptRecord::decode(record.payload).unwrap().devices);
        records.map(|device| (device.delivered, device.read, device.skipped_through)).collect()
    }

    /// The law: what was delivered before a skip of the same flush is not said to be skipped. A record's skip is applied
    /// first, so the earlier deliveries have a record of their own before it.
    #[tokio::test]
    async fn what_was_delivered_before_a_skip_stands_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let receipts = receipts(dir.path()).await;
        let at = Position::from_u64;
        receipts.delivered(FROM, at(1), &[message(4), message(5), welcome(9), message(10)]);
        assert_eq!(reported(&receipts), [(5, 0, 0), (10, 0, 9)]);
        receipts.read(FROM, CONVERSATION, Sequence(10), &[]);
        receipts.skipped(FROM, at(2), &[(CONVERSATION, Sequence(20))]);
        receipts.delivered(FROM, at(3), &[message(21)]);
        assert_eq!(reported(&receipts), [(5, 0, 0), (10, 10, 9), (21, 0, 20)]);
        assert_eq!(receipts.lock().entries, 3);
    }

    /// A skip that nothing was delivered before needs no record of its own, nor does one that passes over nothing.
    #[tokio::test]
    async fn a_skip_shares_a_record_where_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let receipts = receipts(dir.path()).await;
        let at = Position::from_u64;
        receipts.delivered(FROM, at(1), &[welcome(9)]);
        receipts.skipped(FROM, at(2), &[(CONVERSATION, Sequence(12))]);
        receipts.delivered(FROM, at(3), &[message(13)]);
        receipts.skipped(FROM, at(4), &[(CONVERSATION, Sequence(13))]);
        assert_eq!(reported(&receipts), [(13, 0, 12)]);
    }
}
