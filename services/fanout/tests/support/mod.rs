//! A care team's records, a log in memory that fails on demand, and the owner of a feeds partition in short.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod script;

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use wardline_domain::conversation::Head;
use wardline_domain::roster::Roster;
use wardline_domain::{ConversationId, Position};
use wardline_fanout::{Fanout, Options, PartitionFold};
use wardline_log::fold::{Fold as _, Folds as _};
use wardline_log::laws::MemoryLog;
use wardline_log::{EventLog, LogRecord, Partition, Started, Topic};
use wardline_proto::internal::v1 as wire;
use wardline_runtime::health::FoldHealth;
use wardline_store::Stores;
use wardline_store::conversations::{MembershipRow, MessageRow, OutcomeRow};

use self::script::{Script, user};

/// Embedded stores in a folder that lives as long as they are used.
pub fn stores() -> (Stores, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (wardline_store::embedded::open(dir.path()).unwrap(), dir)
}

pub async fn fold(log: &Arc<MemoryLog>, stores: &Stores, options: &Options, partition: u32) -> PartitionFold {
    let log: Arc<dyn EventLog> = Arc::clone(log) as _;
    let fanout = Fanout::new(log, Arc::clone(&stores.conversations), FoldHealth::default(), options);
    let started = Started { oldest: None, end: Position::default() };
    fanout.assigned(partition, None, started).await.unwrap()
}

/// Folds all, giving up on nothing: the calm run.
pub async fn drive(fold: &mut PartitionFold, records: &[LogRecord], batch: usize) {
    for records in records.chunks(batch) {
        let effects = fold.apply(records).await.unwrap();
        fold.effects(&effects).await.unwrap();
    }
}

/// What the owner of each feeds partition takes in: what lies above its mark.
pub fn feeds(log: &MemoryLog) -> BTreeMap<u32, Vec<wire::FeedEventRecord>> {
    let mut taken = BTreeMap::new();
    for (partition, records) in log.records(Topic::Feeds) {
        let mut marks = BTreeMap::new();
        let events = records.iter().filter_map(|record| {
            let record = wire::FeedRecord::decode(record.payload.clone()).unwrap();
            let Some(wire::feed_record::Body::Event(event)) = record.body else { panic!("an event") };
            let (mark, place) = (marks.get(&event.source), (event.source_position, event.part));
            if mark.is_some_and(|mark| place <= *mark) {
                return None;
            }
            marks.insert(event.source, place);
            Some(event)
        });
        taken.insert(partition, events.collect());
    }
    taken
}

/// Dead letters, each once.
pub fn dead_letters(log: &MemoryLog) -> BTreeMap<u64, wire::DeadLetterRecord> {
    let records = log.records(Topic::DeadLetters).into_values().flatten();
    let letters = records.map(|record| wire::DeadLetterRecord::decode(record.payload).unwrap());
    letters.map(|letter| (letter.position, letter)).collect()
}

/// All that a run leaves.
#[derive(Debug, PartialEq)]
pub struct Left {
    pub feeds: BTreeMap<u32, Vec<wire::FeedEventRecord>>,
    pub dead_letters: BTreeMap<u64, wire::DeadLetterRecord>,
    pub heads: Vec<Option<Head>>,
    pub rosters: Vec<Roster>,
    pub messages: Vec<Vec<MessageRow>>,
    pub outcomes: Vec<Option<OutcomeRow>>,
    pub memberships: Vec<Vec<MembershipRow>>,
}

pub async fn left(log: &MemoryLog, stores: &Stores, script: &Script) -> Left {
    let conversations = &stores.conversations;
    let (mut rosters, mut messages, mut memberships) = (Vec::new(), Vec::new(), Vec::new());
    for id in &script.conversations {
        rosters.push(conversations.roster(*id, u64::MAX).await.unwrap());
        messages.push(conversations.messages(*id, Default::default(), 1000, 1 << 20).await.unwrap());
    }
    for n in 0..20 {
        memberships.push(conversations.memberships(user(n), None, 100).await.unwrap());
    }
    Left {
        feeds: feeds(log),
        dead_letters: dead_letters(log),
        heads: conversations.heads(&script.conversations).await.unwrap(),
        rosters,
        messages,
        outcomes: conversations.outcomes(&script.keys).await.unwrap(),
        memberships,
    }
}

pub fn source(partition: u32) -> u32 {
    Partition { topic: Topic::Conversations, index: partition }.source()
}

/// A conversation id of the partition.
pub fn conversation_in(partition: u32, nth: usize) -> ConversationId {
    let ids = (0u32..).map(|n| {
        let mut id = [0xc0; 16];
        id[12..].copy_from_slice(&n.to_be_bytes());
        id
    });
    let of_partition = ids.filter(|id| MemoryLog::PARTITIONS.partition_of(id) == partition);
    of_partition.map(ConversationId::from_bytes).nth(nth).unwrap()
}
