//! A toy store and owners of a partition that die and wake up: rows → feeds → heads → checkpoint, every write an upsert
//! with its record's position as timestamp.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use wardline_domain::Position;
use wardline_domain::conversation::{Conversation, Head, Outcome, OutcomeKey, Prior, PriorOutcome, apply};
use wardline_domain::record::{Body, Record};
use wardline_domain::roster::{Roster, RosterDelta};

use crate::support::CONVERSATION;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Outcome(OutcomeKey),
    Message(u64),
    Members(u64),
    Feed(Position),
    Head,
    Checkpoint,
}

impl Key {
    /// The stage in the order of effects.
    const fn stage(&self) -> u8 {
        match self {
            Self::Outcome(_) | Self::Message(_) | Self::Members(_) => 0,
            Self::Feed(_) => 1,
            Self::Head => 2,
            Self::Checkpoint => 3,
        }
    }
}

/// A write: what, when (the position), and the bytes, or the value printed where there is no encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    key: Key,
    at: Position,
    value: Vec<u8>,
    /// Of an outcome row.
    prior: Option<PriorOutcome>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Store {
    cells: BTreeMap<Key, Write>,
}

impl Store {
    /// The newest timestamp wins. The law of the whole design: two owners never write different bytes at one position.
    fn write(&mut self, write: Write) {
        match self.cells.get(&write.key) {
            Some(there) if there.at > write.at => {}
            Some(there) if there.at == write.at => assert_eq!(*there, write, "two values at one position"),
            _ => drop(self.cells.insert(write.key.clone(), write)),
        }
    }

    fn checkpoint(&self) -> Position {
        self.cells.get(&Key::Checkpoint).map_or(Position::from_u64(0), |write| write.at)
    }

    fn load(&self) -> Conversation {
        let Some(head) = self.cells.get(&Key::Head) else { return Conversation::absent(CONVERSATION) };
        let decoded = Head::decode(&head.value).expect("what was encoded");
        assert_eq!(decoded.last, head.at);
        assert_eq!(decoded.encode(), head.value);
        let mut roster = Roster::default();
        for version in 1..=decoded.members_version {
            let delta = &self.cells[&Key::Members(version)];
            roster.apply(&RosterDelta::decode(&delta.value).expect("what was encoded")).expect("in order");
        }
        let roster = Roster::decode(&roster.encode()).expect("what was encoded");
        Conversation { id: CONVERSATION, head: Some(decoded), roster: Arc::new(roster) }
    }
}

/// One owner: what it holds in memory.
pub(crate) struct Owner {
    conversation: Conversation,
    next: usize,
    /// Effects computed and not yet written, in order.
    effects: VecDeque<Write>,
}

impl Owner {
    pub(crate) fn start(store: &Store, log: &[Record]) -> Self {
        let from = store.checkpoint();
        let next = log.iter().position(|record| record.position > from).unwrap_or(log.len());
        Self { conversation: store.load(), next, effects: VecDeque::new() }
    }

    pub(crate) fn is_done(&self, log: &[Record]) -> bool {
        self.next == log.len() && self.effects.is_empty()
    }

    /// Takes a batch, or writes one effect of the last.
    pub(crate) fn step(
        &mut self,
        store: &mut Store,
        log: &[Record],
        batch: usize,
        seen: &mut dyn FnMut(usize, &Outcome),
    ) {
        match self.effects.pop_front() {
            Some(write) => store.write(write),
            None => self.batch(store, log, batch, seen),
        }
    }

    /// Dies: of the stage it is in, the writes chosen by `lost` never happen; of later ones none does.
    pub(crate) fn die(self, store: &mut Store, mut lost: u64) {
        let Some(stage) = self.effects.front().map(|write| write.key.stage()) else { return };
        for write in self.effects.into_iter().take_while(|write| write.key.stage() == stage) {
            if lost & 1 == 0 {
                store.write(write);
            }
            lost = lost.rotate_right(1);
        }
    }

    fn batch(&mut self, store: &Store, log: &[Record], size: usize, seen: &mut dyn FnMut(usize, &Outcome)) {
        let mut overlay: BTreeMap<OutcomeKey, PriorOutcome> = BTreeMap::new();
        let mut writes = Vec::new();
        for (number, record) in log.iter().enumerate().skip(self.next).take(size) {
            let prior = match self.conversation.lookup(record) {
                None => None,
                Some(key) => {
                    let row = || store.cells.get(&Key::Outcome(key)).and_then(|write| write.prior.clone());
                    overlay.get(&key).cloned().or_else(row)
                }
            };
            let outcome = apply(&mut self.conversation, prior.map_or(Prior::None, Prior::Known), record);
            if outcome != Outcome::Replayed {
                seen(number, &outcome);
            }
            rows(record, &outcome, &mut writes);
            for write in &writes {
                if let (Key::Outcome(key), Some(prior)) = (&write.key, &write.prior) {
                    overlay.insert(*key, prior.clone());
                }
            }
            self.next = number + 1;
        }
        self.finish(log, writes);
    }

    fn finish(&mut self, log: &[Record], mut writes: Vec<Write>) {
        let Some(last) = self.next.checked_sub(1).map(|last| log[last].position) else { return };
        if let Some(head) = &self.conversation.head {
            writes.push(Write { key: Key::Head, at: head.last, value: head.encode().to_vec(), prior: None });
        }
        writes.push(Write { key: Key::Checkpoint, at: last, value: Vec::new(), prior: None });
        writes.sort_by_key(|write| write.key.stage());
        self.effects = writes.into();
    }
}

/// What an outcome writes before the head.
fn rows(record: &Record, outcome: &Outcome, writes: &mut Vec<Write>) {
    let at = record.position;
    let mut write = |key, value: String| writes.push(Write { key, at, value: value.into_bytes(), prior: None });
    let printed = || format!("{outcome:?}");
    let (delta, payload) = match outcome {
        Outcome::Replayed | Outcome::Repeat | Outcome::Ignored | Outcome::CreateRepeated { .. } => return,
        Outcome::Conflict(_) => return write(Key::Feed(at), printed()),
        Outcome::Created { delta } => (Some(delta), None),
        Outcome::Changed { delta, .. } => (delta.as_ref(), None),
        Outcome::Rejected(rejection) => (None, Some(rejection.payload)),
        Outcome::Sequenced(done) => {
            write(Key::Message(done.sequence.0), printed());
            (done.commit.as_ref().and_then(|commit| commit.delta.as_ref()), Some(done.payload))
        }
    };
    write(Key::Feed(at), printed());
    if let (Some(payload), Body::Submission(submission)) = (payload, &record.body) {
        let (device, message) = (submission.envelope.device, submission.envelope.message);
        let key = Key::Outcome(OutcomeKey { conversation: record.conversation, device, message });
        let prior = Some(PriorOutcome { position: at, payload });
        writes.push(Write { key, at, value: printed().into_bytes(), prior });
    }
    if let Some(delta) = delta {
        writes.push(Write { key: Key::Members(delta.to), at, value: delta.encode().to_vec(), prior: None });
    }
}
