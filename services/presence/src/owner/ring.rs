//! The latest events of a feeds partition, in memory: what lets a device that has caught up with the store meet the live
//! stream without a gap.
//!
//! Deliberately absent: the devices.

use std::collections::VecDeque;
use std::sync::Arc;

use wardline_domain::{DeviceId, Position, UserId};
use wardline_log::trace::TraceParent;

use crate::event::FeedEvent;

/// A sampled event's way is followed to the devices of so many of its recipients: a message to thousands would have a span for
/// each.
const FOLLOWED: usize = 16;

/// One event with those it is for.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The feeds record's place.
    pub(crate) position: Position,
    /// The event.
    pub(crate) event: Arc<FeedEvent>,
    /// By user, each once.
    pub(crate) recipients: Vec<Recipient>,
    /// The span of its filing, if it is sampled.
    pub(crate) trace: Option<TraceParent>,
}

/// One recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipient {
    /// The user.
    pub(crate) user: UserId,
    /// The user's event before.
    pub(crate) previous: Option<Position>,
    /// The devices it is for; empty means all.
    pub(crate) devices: Vec<DeviceId>,
}

impl Entry {
    /// The user's share; `None` when it is not for the user.
    pub(crate) fn row(&self, user: UserId) -> Option<Row> {
        let index = self.recipients.binary_search_by_key(&user, |recipient| recipient.user).ok()?;
        let recipient = self.recipients.get(index)?;
        Some(Row { devices: recipient.devices.clone(), ..self.row_for_all(index, recipient) })
    }

    /// The recipient's share without the devices that it is for.
    pub(crate) fn row_for_all(&self, index: usize, recipient: &Recipient) -> Row {
        Row {
            position: self.position,
            previous: recipient.previous,
            devices: Vec::new(),
            event: Arc::clone(&self.event),
            trace: self.trace.filter(|_| index < FOLLOWED),
        }
    }

    fn cost(&self) -> usize {
        self.event.cost() + self.recipients.len() * size_of::<Recipient>()
    }
}

/// One user's share of an event.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The feeds record's place.
    pub(crate) position: Position,
    /// The user's event before.
    pub(crate) previous: Option<Position>,
    /// The devices it is for; empty means all.
    pub(crate) devices: Vec<DeviceId>,
    /// The event.
    pub(crate) event: Arc<FeedEvent>,
    /// The span that its sending belongs to, if any.
    pub(crate) trace: Option<TraceParent>,
}

/// Whether an event for `devices` is for `device`.
pub(crate) fn addressed(devices: &[DeviceId], device: DeviceId) -> bool {
    devices.is_empty() || devices.contains(&device)
}

/// The latest events.
#[derive(Debug)]
pub(crate) struct Ring {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Everything above it is in here.
    floor: Position,
    max_entries: usize,
    max_bytes: usize,
}

impl Ring {
    /// Empty, complete above `floor`.
    pub(crate) const fn new(floor: Position, max_entries: usize, max_bytes: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, floor, max_entries, max_bytes }
    }

    /// Adds the next event, lets go of the oldest. A repeat changes nothing and answers false.
    pub(crate) fn push(&mut self, entry: Arc<Entry>) -> bool {
        if entry.position <= self.last() {
            return false;
        }
        self.bytes += entry.cost();
        self.entries.push_back(entry);
        while self.entries.len() > self.max_entries || (self.bytes > self.max_bytes && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.cost();
            self.floor = oldest.position;
        }
        true
    }

    /// Forgets everything up to `floor`.
    pub(crate) fn reset(&mut self, floor: Position) {
        if floor > self.floor {
            while self.entries.front().is_some_and(|entry| entry.position <= floor) {
                if let Some(entry) = self.entries.pop_front() {
                    self.bytes -= entry.cost();
                }
            }
            self.floor = floor;
        }
    }

    /// Whether every event above `seen` is in here.
    pub(crate) fn covers(&self, seen: Option<Position>) -> bool {
        seen.unwrap_or_default() >= self.floor
    }

    /// A user's events above `seen`, at most `limit`.
    pub(crate) fn rows(&self, user: UserId, seen: Option<Position>, limit: usize) -> Vec<Row> {
        let start = self.entries.partition_point(|entry| Some(entry.position) <= seen);
        self.entries.range(start..).filter_map(|entry| entry.row(user)).take(limit).collect()
    }

    /// How many events there are, and about how many bytes they take.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    fn last(&self) -> Position {
        self.entries.back().map_or(self.floor, |entry| entry.position)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use wardline_domain::envelope::{MessageKind, Sealed, Sequence};
    use wardline_domain::{ConversationId, Digest, Timestamp};
    use wardline_proto::internal::v1 as wire;
    use wardline_store::conversations::MessageRow;

    use super::*;
    use crate::event::INLINE_BYTES;

    fn named(position: u64) -> Arc<Entry> {
        let message = wire::FeedMessage {
            conversation_id: Bytes::from_static(&[7; 16]),
            sequence: position,
            sender_user_id: Bytes::from_static(&[1; 16]),
            sender_device_id: Bytes::from_static(&[2; 16]),
            by_reference: true,
            ..Default::default()
        };
        let event = FeedEvent::parse(wire::feed_event_record::Event::Message(message)).unwrap();
        let position = Position::from_u64(position);
        Arc::new(Entry { position, event: Arc::new(event), recipients: Vec::new(), trace: None })
    }

    fn supply(entry: &Entry) {
        entry.event.supply(&MessageRow {
            conversation: ConversationId::from_bytes([7; 16]),
            sequence: Sequence(entry.position.as_u64()),
            chain: Digest::of(b""),
            sender: UserId::from_bytes([1; 16]),
            device: DeviceId::from_bytes([2; 16]),
            kind: MessageKind::Application,
            accepted_at: Timestamp::default(),
            position: entry.position,
            sealed: Sealed { envelope: Bytes::new(), mls_message: Bytes::from(vec![0; INLINE_BYTES]) },
        });
    }

    /// The law: bodies that come after their event are within the ring's bytes, and the count of them never goes astray.
    #[test]
    fn bodies_that_come_later_are_within_the_bytes() {
        const BODIES: usize = 4;
        let mut ring = Ring::new(Position::default(), 1000, BODIES * (INLINE_BYTES + 256));
        for position in 1..=20 {
            let entry = named(position);
            assert!(ring.push(Arc::clone(&entry)));
            supply(&entry);
            assert!(ring.entries.len() <= BODIES);
        }
        ring.reset(Position::from_u64(20));
        assert_eq!((ring.entries.len(), ring.bytes), (0, 0));
    }
}
