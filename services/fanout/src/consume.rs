//! One partition of `conversations`: decode, load what the batch touches, apply record by record, collect effects.
//!
//! A batch works on copies, which go back to the cache when the whole batch has been folded: a store that fails in between
//! leaves the state as it was.
//!
//! Deliberately absent: retry, checkpoints and replay, which are the driver's; the meaning of outcomes ([`crate::outcome`]).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use metrics::gauge;
use wardline_domain::conversation::{Conversation, Head, Outcome, OutcomeKey, Prior, PriorOutcome, apply};
use wardline_domain::record::Record;
use wardline_domain::{Cause, ConversationId, Failure};
use wardline_log::fold::{Fold, Folds, Watch};
use wardline_log::{EventLog, Headers, LogRecord, Partition, Started, Topic};
use wardline_proto::convert::record::decode;
use wardline_runtime::consumer::{belongs, trace_context};
use wardline_runtime::health::FoldHealth;
use wardline_store::Conversations;
use wardline_store::checkpoints::Checkpoint;
use wardline_store::conversations::{HeadRow, OutcomeRow};

use crate::Options;
use crate::cache::{Cache, Entry, Share};
use crate::effects::Effects;
use crate::measures::{self as names, Measures};
use crate::outcome::{Applied, Frame};

/// How many rosters are read at once.
const ROSTER_READS: usize = 16;

/// Makes the folds of the partitions of `conversations`.
pub struct Fanout {
    log: Arc<dyn EventLog>,
    conversations: Arc<dyn Conversations>,
    health: FoldHealth,
    cache: Arc<Cache>,
    frame: Frame,
    measures: Arc<Measures>,
}

impl fmt::Debug for Fanout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fanout")
    }
}

impl Fanout {
    /// Over a log and a store.
    pub fn new(
        log: Arc<dyn EventLog>,
        conversations: Arc<dyn Conversations>,
        health: FoldHealth,
        options: &Options,
    ) -> Self {
        let frame = Frame { feeds: log.partitions(Topic::Feeds), inline_bytes: options.inline_bytes };
        let measures = Arc::new(Measures::new());
        Self { log, conversations, health, cache: Cache::new(options.cache_bytes), frame, measures }
    }
}

#[async_trait]
impl Folds for Fanout {
    type Fold = PartitionFold;

    async fn assigned(
        &self,
        partition: u32,
        _checkpoint: Option<&Checkpoint>,
        _started: Started,
    ) -> Result<PartitionFold, Failure> {
        Ok(PartitionFold {
            partition: Partition { topic: Topic::Conversations, index: partition },
            log: Arc::clone(&self.log),
            conversations: Arc::clone(&self.conversations),
            entries: self.cache.share(),
            frame: self.frame,
            measures: Arc::clone(&self.measures),
        })
    }

    fn watch(&self) -> &dyn Watch {
        &self.health
    }
}

/// Folds one partition.
pub struct PartitionFold {
    partition: Partition,
    log: Arc<dyn EventLog>,
    conversations: Arc<dyn Conversations>,
    entries: Share,
    frame: Frame,
    measures: Arc<Measures>,
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
        let records = self.decode(batch, &mut effects);
        let mut working = self.load(&records).await?;
        let mut priors = self.priors(&records, &working).await?;
        for (record, headers) in &records {
            let Some(work) = working.get_mut(&record.conversation) else { continue };
            let prior = self.prior(&mut priors, &work.entry.conversation, record).await?;
            work.fold(self.frame, record, headers, prior, &mut priors, &mut effects);
        }
        for work in working.into_values() {
            effects.heads.extend(work.head());
            self.entries.put(work.entry);
        }
        Ok(effects)
    }

    async fn effects(&mut self, effects: &Effects) -> Result<(), Failure> {
        let stages = effects.run(self.partition, &*self.log, &*self.conversations).await?;
        self.measures.done(&effects.tally, &stages);
        gauge!(names::CACHE_BYTES).set(self.entries.bytes() as f64);
        Ok(())
    }
}

/// What is known of outcomes: what the store held before the batch, and over it what the batch itself came to.
type Priors = HashMap<OutcomeKey, Prior>;

impl PartitionFold {
    /// The records that decode; the others become dead letters.
    fn decode(&self, batch: &[LogRecord], effects: &mut Effects) -> Vec<(Record, Headers)> {
        let mut records = Vec::with_capacity(batch.len());
        for raw in batch {
            match self.decode_one(raw) {
                Ok(record) => records.push((record, trace_context(raw))),
                Err(reason) => effects.dead_letters.bury(&*self.log, self.partition, raw, reason),
            }
        }
        records
    }

    fn decode_one(&self, raw: &LogRecord) -> Result<Record, String> {
        let record = decode(raw.position, raw.payload.clone()).map_err(|violation| violation.to_string())?;
        belongs(&*self.log, record.conversation.as_bytes(), self.partition)?;
        Ok(record)
    }

    /// Copies of all conversations that the records name.
    async fn load(&self, records: &[(Record, Headers)]) -> Result<BTreeMap<ConversationId, Work>, Failure> {
        let mut working = BTreeMap::new();
        let mut missing = Vec::new();
        for (record, _) in records {
            let id = record.conversation;
            if working.contains_key(&id) {
                continue;
            }
            let entry = self.entries.get(id).unwrap_or_else(|| {
                missing.push(id);
                Entry { conversation: Conversation::absent(id), grouping: None }
            });
            working.insert(id, Work { entry, changed: false });
        }
        self.measures.cached.increment(working.len().saturating_sub(missing.len()) as u64);
        self.measures.loaded.increment(missing.len() as u64);
        for conversation in self.read(&missing).await? {
            let work = Work { entry: Entry { conversation, grouping: None }, changed: false };
            working.insert(work.entry.conversation.id, work);
        }
        Ok(working)
    }

    /// Those of the conversations that the store has.
    async fn read(&self, ids: &[ConversationId]) -> Result<Vec<Conversation>, Failure> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let heads = self.conversations.heads(ids).await?;
        let mut reads = Vec::with_capacity(ids.len());
        for (id, head) in ids.iter().zip(heads) {
            reads.extend(head.map(|head| self.with_roster(*id, head)));
        }
        stream::iter(reads).buffer_unordered(ROSTER_READS).try_collect().await
    }

    async fn with_roster(&self, id: ConversationId, head: Head) -> Result<Conversation, Failure> {
        let roster = self.conversations.roster(id, head.members_version).await?;
        if roster.version() != head.members_version {
            return Err(Failure::NotApplied(Cause::corrupt("a head names a roster version that is not stored")));
        }
        Ok(Conversation { id, head: Some(head), roster: Arc::new(roster) })
    }

    /// The outcomes that the records ask for, in one read.
    async fn priors(
        &self,
        records: &[(Record, Headers)],
        working: &BTreeMap<ConversationId, Work>,
    ) -> Result<Priors, Failure> {
        let mut keys = lookups(records, working);
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(Priors::new());
        }
        let rows = self.conversations.outcomes(&keys).await?;
        Ok(keys.into_iter().zip(rows.into_iter().map(known)).collect())
    }

    /// What the record's key got before it. Records of this batch may have changed what must be asked since [`Self::priors`]:
    /// a device whose ids do not rise within a batch costs a read of its own.
    async fn prior(&self, priors: &mut Priors, conversation: &Conversation, record: &Record) -> Result<Prior, Failure> {
        let Some(key) = conversation.lookup(record) else { return Ok(Prior::None) };
        if let Some(prior) = priors.get(&key) {
            return Ok(prior.clone());
        }
        let mut rows = self.conversations.outcomes(&[key]).await?;
        let prior = known(rows.pop().flatten());
        priors.insert(key, prior.clone());
        Ok(prior)
    }
}

fn lookups(records: &[(Record, Headers)], working: &BTreeMap<ConversationId, Work>) -> Vec<OutcomeKey> {
    let lookup = |record: &Record| working.get(&record.conversation)?.entry.conversation.lookup(record);
    records.iter().filter_map(|(record, _)| lookup(record)).collect()
}

fn known(row: Option<OutcomeRow>) -> Prior {
    row.map_or(Prior::None, |row| Prior::Known(PriorOutcome { position: row.position, payload: row.payload }))
}

/// A conversation as the batch changes it.
#[derive(Debug)]
struct Work {
    entry: Entry,
    changed: bool,
}

impl Work {
    fn fold(
        &mut self,
        frame: Frame,
        record: &Record,
        headers: &Headers,
        prior: Prior,
        priors: &mut Priors,
        effects: &mut Effects,
    ) {
        let before = Arc::clone(&self.entry.conversation.roster);
        let outcome = apply(&mut self.entry.conversation, prior, record);
        self.changed |= outcome != Outcome::Replayed;
        effects.tally.add(&outcome, record.accepted_at);
        let applied = Applied { record, headers, before: &before, entry: &mut self.entry, effects };
        if let Some((key, prior)) = applied.describe(frame, &outcome) {
            priors.insert(key, Prior::Known(prior));
        }
    }

    /// The head to write.
    fn head(&self) -> Option<HeadRow> {
        let Conversation { id, head, .. } = &self.entry.conversation;
        let head = head.as_ref().filter(|_| self.changed)?.clone();
        Some(HeadRow { conversation: *id, head })
    }
}
