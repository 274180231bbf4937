//! The fold over `feeds`: records to rows, feed heads and receipts in the store, and then to the attached devices.
//!
//! Order of effects: rows → feed heads → receipts told → devices → (checkpoint, by the driver). A record that does not
//! decode goes to `deadletters`; the partition goes on.
//!
//! Deliberately absent: who is attached.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message as _;
use wardline_domain::{DeviceId, Failure, Position, UserId};
use wardline_log::fold::{Fold, Folds, Watch};
use wardline_log::trace::TraceParent;
use wardline_log::{LogRecord, NewRecord, Partition as LogPartition, Started, Topic};
use wardline_proto::convert::{Violation, ids};
use wardline_proto::internal::v1::{self as wire, feed_record::Body};
use wardline_store::checkpoints::Checkpoint;
use wardline_store::feeds::{FeedRow, ReceiptOfRow};

use super::Shared;
use super::marks::Marks;
use super::partition::{Output, Partition};
use super::receipts::append;
use super::ring::{Entry, Recipient};
use crate::convert;
use crate::event::FeedEvent;

/// Rows written at once.
const ROWS_AT_ONCE: usize = 4096;

/// Makes the folds of the partitions assigned to this instance.
#[derive(Debug)]
pub(crate) struct FeedFolds {
    pub(crate) shared: Arc<Shared>,
}

/// The fold of one partition.
#[derive(Debug)]
pub(crate) struct FeedFold {
    shared: Arc<Shared>,
    partition: Arc<Partition>,
    marks: Marks,
    heads: HashMap<UserId, Option<Position>>,
}

/// What a batch came to.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    rows: Vec<FeedRow>,
    heads: Vec<(UserId, Position)>,
    receipts: Vec<ReceiptOfRow>,
    unreadable: Vec<(Position, Bytes)>,
    outputs: Vec<Output>,
    through: Position,
}

/// A record, read.
enum Read {
    Event(Arc<FeedEvent>, Vec<(UserId, Vec<DeviceId>)>),
    Claim(Bytes),
    Receipts(UserId, Vec<wardline_store::watermarks::WatermarkRow>),
    Repeat,
    Unreadable,
}

#[async_trait]
impl Folds for FeedFolds {
    type Fold = FeedFold;

    async fn assigned(
        &self,
        partition: u32,
        checkpoint: Option<&Checkpoint>,
        _started: Started,
    ) -> Result<FeedFold, Failure> {
        let marks = checkpoint.map_or(Ok(Marks::default()), |checkpoint| Marks::decode(&checkpoint.marks))?;
        let partition = self.shared.assigned(partition, checkpoint.map(|checkpoint| checkpoint.position));
        Ok(FeedFold { shared: Arc::clone(&self.shared), partition, marks, heads: HashMap::new() })
    }

    async fn revoked(&self, partition: u32, _fold: FeedFold) {
        self.shared.revoked(partition);
    }

    fn watch(&self) -> &dyn Watch {
        self
    }
}

impl Watch for FeedFolds {
    /// Of the log, what every instance follows tells.
    fn following(&self, _following: bool) {}

    fn paused(&self, partition: u32, failure: &Failure) {
        tracing::warn!(partition, %failure, "a feeds partition waits");
        self.shared.paused(partition, true);
    }

    fn resumed(&self, partition: u32) {
        self.shared.paused(partition, false);
    }
}

#[async_trait]
impl Fold for FeedFold {
    type Effects = Effects;

    async fn apply(&mut self, batch: &[LogRecord]) -> Result<Effects, Failure> {
        let mut marks = self.marks.clone();
        let read: Vec<(&LogRecord, Read)> = batch.iter().map(|record| (record, read(record, &mut marks))).collect();
        let heads = self.unknown_heads(&read).await?;
        if self.heads.len() + heads.len() > self.shared.options.limits.heads_cached {
            self.heads.retain(|user, _| read.iter().any(|(_, read)| read.names(*user)));
        }
        self.heads.extend(heads);
        self.marks = marks;
        let mut effects = Effects::default();
        for (record, read) in read {
            self.fold(record, read, &mut effects);
            effects.through = record.position;
        }
        Ok(effects)
    }

    async fn effects(&mut self, effects: &Effects) -> Result<(), Failure> {
        let feeds = &self.shared.stores.feeds;
        for rows in effects.rows.chunks(ROWS_AT_ONCE) {
            feeds.put_rows(rows).await?;
        }
        for heads in effects.heads.chunks(ROWS_AT_ONCE) {
            feeds.put_heads(heads).await?;
        }
        for receipts in effects.receipts.chunks(ROWS_AT_ONCE) {
            feeds.put_receipts_of(receipts).await?;
        }
        self.set_aside(&effects.unreadable).await?;
        self.filed(&effects.outputs);
        self.prepare(&effects.outputs).await;
        if self.partition.publish(&effects.outputs, effects.through) {
            tracing::info!(partition = self.partition.index, "another instance took a feeds partition");
            self.shared.reclaim.notify_one();
        }
        Ok(())
    }

    fn marks(&self) -> Bytes {
        self.marks.encode()
    }
}

impl FeedFold {
    async fn unknown_heads(&self, read: &[(&LogRecord, Read)]) -> Result<HashMap<UserId, Option<Position>>, Failure> {
        let named = read.iter().flat_map(|(_, read)| match read {
            Read::Event(_, recipients) => recipients.as_slice(),
            _ => &[],
        });
        let unknown: HashSet<UserId> =
            named.map(|(user, _)| *user).filter(|user| !self.heads.contains_key(user)).collect();
        let unknown: Vec<UserId> = unknown.into_iter().collect();
        if unknown.is_empty() {
            return Ok(HashMap::new());
        }
        let heads = self.shared.stores.feeds.heads(&unknown).await?;
        Ok(unknown.into_iter().zip(heads).collect())
    }

    fn fold(&mut self, record: &LogRecord, read: Read, effects: &mut Effects) {
        let position = record.position;
        match read {
            Read::Repeat => {}
            Read::Unreadable => effects.unreadable.push((position, record.payload.clone())),
            Read::Claim(instance) => effects.outputs.push(Output::Claim(position, instance)),
            Read::Receipts(user, watermarks) => {
                let told = watermarks.iter().map(convert::watermark).collect();
                effects.outputs.push(Output::Receipts(position, user, told));
                let rows = watermarks.into_iter();
                effects.receipts.extend(rows.map(|watermark| ReceiptOfRow { user, watermark, updated: position }));
            }
            Read::Event(event, recipients) => self.fold_event(record, event, recipients, effects),
        }
    }

    fn fold_event(
        &mut self,
        record: &LogRecord,
        event: Arc<FeedEvent>,
        recipients: Vec<(UserId, Vec<DeviceId>)>,
        effects: &mut Effects,
    ) {
        let position = record.position;
        let at = event.accepted_at().unwrap_or(record.appended_at);
        let stored = event.encode();
        let count = recipients.len();
        let mut fresh = Vec::with_capacity(count);
        for (user, devices) in recipients {
            let head = self.heads.entry(user).or_default();
            if *head >= Some(position) {
                continue;
            }
            let previous = head.replace(position);
            effects.heads.push((user, position));
            let row = FeedRow { user, position, previous, at, devices: devices.clone(), event: stored.clone() };
            effects.rows.push(row);
            fresh.push(Recipient { user, previous, devices });
        }
        effects.outputs.push(if fresh.len() < count {
            Output::Replayed(position)
        } else {
            let trace = TraceParent::all(&record.headers).next();
            Output::Event(Arc::new(Entry { position, event, recipients: fresh, trace }))
        });
    }

    fn filed(&self, outputs: &[Output]) {
        let now = self.shared.clock.now();
        let events = outputs.iter().filter_map(|output| match output {
            Output::Event(entry) => entry.event.accepted_at(),
            _ => None,
        });
        events.for_each(|accepted_at| self.shared.messages.filed.record(now.since(accepted_at)));
    }

    /// Reads what is only named, once for all who are attached. Who is not served so will read it when catching up.
    async fn prepare(&self, outputs: &[Output]) {
        let wanted = outputs.iter().filter_map(|output| match output {
            Output::Event(entry) if entry.event.wants_message().is_some() => Some(entry),
            _ => None,
        });
        let wanted = wanted.filter(|entry| self.partition.attached(entry.recipients.iter().map(|to| to.user)));
        if let Err(failure) = self.shared.bodies.supply(wanted.map(|entry| &*entry.event)).await {
            tracing::warn!(%failure, "large messages wait to be read");
        }
    }

    async fn set_aside(&self, unreadable: &[(Position, Bytes)]) -> Result<(), Failure> {
        for (position, payload) in unreadable {
            let digest = wardline_domain::Digest::of(payload);
            let record = wire::DeadLetterRecord {
                topic: Topic::Feeds.name().to_owned(),
                partition: self.partition.index,
                position: position.as_u64(),
                reason: "FEED_RECORD_UNREADABLE".to_owned(),
                digest: ids::bytes32(&digest),
            };
            let key = Bytes::copy_from_slice(&digest.as_bytes()[..16]);
            let record = NewRecord { key, payload: record.encode_to_vec().into(), headers: Vec::new() };
            let to = LogPartition { topic: Topic::DeadLetters, index: 0 };
            append(&*self.shared.log, to, vec![record])
                .await
                .map_err(|problem| Failure::Unknown(wardline_domain::Cause::unavailable(problem)))?;
            tracing::error!(partition = self.partition.index, %position, "a feeds record does not decode");
        }
        Ok(())
    }
}

impl Read {
    fn names(&self, user: UserId) -> bool {
        matches!(self, Self::Event(_, recipients) if recipients.binary_search_by_key(&user, |(user, _)| *user).is_ok())
    }
}

fn read(record: &LogRecord, marks: &mut Marks) -> Read {
    let Ok(decoded) = wire::FeedRecord::decode(record.payload.clone()) else { return Read::Unreadable };
    match decoded.body {
        None => Read::Unreadable,
        Some(Body::OwnerClaim(claim)) => Read::Claim(claim.instance),
        Some(Body::ReceiptSummary(summary)) => read_summary(&summary).unwrap_or(Read::Unreadable),
        Some(Body::Event(event)) => {
            let (source, source_position, part) = (event.source, Position::from_u64(event.source_position), event.part);
            match read_event(event) {
                Err(_) => Read::Unreadable,
                Ok(_) if !marks.admit(source, source_position, part) => Read::Repeat,
                Ok(read) => read,
            }
        }
    }
}

fn read_event(record: wire::FeedEventRecord) -> Result<Read, Violation> {
    let mut recipients: BTreeMap<UserId, Vec<DeviceId>> = BTreeMap::new();
    for recipient in &record.recipients {
        let user = ids::user_bytes(&recipient.user_id, "recipient.user_id")?;
        let devices = recipient.device_ids.iter().map(|device| ids::device_bytes(device, "recipient.device_ids"));
        let devices = devices.collect::<Result<Vec<_>, _>>()?;
        let known = recipients.entry(user).or_insert_with(|| devices.clone());
        if devices.is_empty() {
            known.clear();
        } else if !known.is_empty() {
            known.extend(devices);
            known.sort_unstable();
            known.dedup();
        }
    }
    let event = FeedEvent::parse(record.event.ok_or(Violation::new("event", "is required"))?)?;
    Ok(Read::Event(Arc::new(event), recipients.into_iter().collect()))
}

fn read_summary(summary: &wire::ReceiptSummaryRecord) -> Result<Read, Violation> {
    let user = ids::user_bytes(&summary.user_id, "receipt_summary.user_id")?;
    let rows = summary.watermarks.iter().map(convert::watermark_row).collect::<Result<Vec<_>, _>>()?;
    Ok(Read::Receipts(user, rows))
}
