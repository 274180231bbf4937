//! The law of hand-over: whatever the order of appends, page reads, hand-overs and acknowledgements, a device is sent its
//! feed from its cursor on, in order, nothing twice, nothing left out, and never more than its window.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use wardline_domain::{Position, UserId};
use wardline_proto::internal::v1 as wire;

use super::attachment::{Acknowledged, Attachment, Item, NotSent, Offer, Phase, Then, Window};
use super::ring::{Entry, Recipient, Ring, Row};
use crate::event::FeedEvent;

const USER: UserId = UserId::from_bytes([1; 16]);
const OTHER: UserId = UserId::from_bytes([2; 16]);
const WINDOW: Window = Window { events: 4, bytes: 100 };
const RING: usize = 3;
const PAGE: usize = 2;

/// What may happen next.
#[derive(Debug, Clone)]
enum Step {
    /// A record for the user, with so large a body.
    Append(usize),
    /// A record for somebody else.
    AppendOther,
    /// The attachment's task does one thing.
    Catch,
    /// A page is read now, and only taken after the next step: others come between.
    BeginRead,
    /// A read answers without its first row: a store that lags.
    Torn,
    /// The device acknowledges so many of what it has, from the oldest.
    Acknowledge(usize),
    /// There is no room on the link for a live event.
    LinkFull,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_usize..60).prop_map(Step::Append),
        2 => Just(Step::AppendOther),
        4 => Just(Step::Catch),
        2 => Just(Step::BeginRead),
        1 => Just(Step::Torn),
        3 => (1_usize..6).prop_map(Step::Acknowledge),
        1 => Just(Step::LinkFull),
    ];
    proptest::collection::vec(step, 1..120)
}

/// The owner, with a store that has everything and a ring that has the latest.
struct World {
    ring: Ring,
    feed: Vec<Item>,
    durable: Position,
    place: Attachment,
    sent: Vec<Position>,
    unacknowledged: Vec<Position>,
    read: Option<(Vec<Item>, Option<Position>)>,
}

impl World {
    fn new(before: usize, cursor: Option<usize>) -> Self {
        let place = Attachment::new(None, None, None, Vec::new(), WINDOW);
        let mut world = Self {
            ring: Ring::new(Position::default(), RING, 1 << 20),
            feed: Vec::new(),
            durable: Position::default(),
            place,
            sent: Vec::new(),
            unacknowledged: Vec::new(),
            read: None,
        };
        for _ in 0..before {
            world.append(10, USER);
        }
        let cursor = cursor.and_then(|index| world.feed.get(index)).map(|item| item.position);
        let head = world.feed.last().map(|item| item.position);
        world.place = Attachment::new(cursor, cursor, head, Vec::new(), WINDOW);
        world
    }

    fn append(&mut self, bytes: usize, user: UserId) {
        let position = Position::from_u64(self.durable.as_u64() + 1);
        let previous = self.feed.last().map(|item| item.position).filter(|_| user == USER);
        let event = wire::feed_event_record::Event::KeyPackagesLow(wire::FeedKeyPackagesLow { suite: 1, available: 0 });
        let event = Arc::new(FeedEvent::parse(event).unwrap());
        let recipients = vec![Recipient { user, previous, devices: Vec::new() }];
        self.ring.push(Arc::new(Entry { position, event, recipients, trace: None }));
        self.durable = position;
        if user == USER {
            let item = Item { position, previous, bytes, delivered: None };
            self.feed.push(item);
            if self.place.offer(item) == Offer::Send {
                self.note(&[item]);
            }
        }
    }

    fn note(&mut self, items: &[Item]) {
        for item in items {
            self.sent.push(item.position);
            self.unacknowledged.push(item.position);
        }
        let bytes: usize = self
            .unacknowledged
            .iter()
            .map(|at| self.feed.iter().find(|item| item.position == *at).unwrap().bytes)
            .sum();
        assert!(self.unacknowledged.len() <= WINDOW.events, "more events than the window");
        assert!(bytes <= WINDOW.bytes || self.unacknowledged.len() == 1, "more bytes than the window");
    }

    fn items(&self, rows: &[Row]) -> Vec<Item> {
        rows.iter().map(|row| *self.feed.iter().find(|item| item.position == row.position).unwrap()).collect()
    }

    /// What the attachment's task would do, with what it would read.
    fn look(&self) -> Option<(Vec<Item>, Option<Position>)> {
        if self.place.phase() != Phase::Behind {
            return None;
        }
        let seen = self.place.seen();
        if self.ring.covers(seen) {
            return Some((self.items(&self.ring.rows(USER, seen, PAGE)), None));
        }
        let above = self.feed.iter().filter(|item| Some(item.position) > seen && item.position <= self.durable);
        let rows: Vec<Item> = above.take(PAGE).copied().collect();
        let end = (rows.len() < PAGE).then_some(self.durable);
        Some((rows, end))
    }

    fn take(&mut self, rows: &[Item], end: Option<Position>) -> Option<Then> {
        let page = self.place.page(rows, end);
        self.note(&rows[page.from..page.to]);
        Some(page.then)
    }

    fn catch(&mut self) {
        let Some((rows, end)) = self.look() else { return };
        if rows.is_empty() && self.ring.covers(self.place.seen()) {
            assert!(self.place.hand_over());
        } else {
            assert_ne!(self.take(&rows, end), Some(Then::Broken), "the store had every row");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(bytes) => self.append(bytes, USER),
            Step::AppendOther => self.append(1, OTHER),
            Step::Catch => match self.read.take() {
                Some((rows, end)) => {
                    self.take(&rows, end);
                }
                None => self.catch(),
            },
            Step::BeginRead => self.read = self.read.take().or_else(|| self.look()),
            Step::Torn => {
                if self.read.is_none()
                    && let Some((rows, end)) = self.look()
                    && rows.len() > 1
                    && self.place.seen().is_some()
                {
                    assert_eq!(self.take(&rows[1..], end), Some(Then::Broken), "a missing row was passed over");
                }
            }
            Step::Acknowledge(count) => self.acknowledge(count),
            Step::LinkFull => {
                self.place.fall_behind();
            }
        }
    }

    fn acknowledge(&mut self, count: usize) {
        let count = count.min(self.unacknowledged.len());
        let Some(last) = count.checked_sub(1).map(|last| self.unacknowledged[last]) else { return };
        assert!(matches!(self.place.acknowledge(last), Ok(Acknowledged::Through { .. })));
        assert_eq!(self.place.acknowledge(last), Ok(Acknowledged::Nothing));
        self.unacknowledged.drain(..count);
    }

    /// Everybody is patient: whatever there is arrives.
    fn settle(&mut self) {
        if let Some((rows, end)) = self.read.take() {
            self.take(&rows, end);
        }
        for _ in 0..10 * (self.feed.len() + 10) {
            self.acknowledge(usize::MAX);
            self.catch();
        }
        assert_eq!(self.place.phase(), Phase::Live);
    }
}

proptest! {
    #[test]
    fn what_is_sent_is_the_feed(before in 0_usize..8, cursor in proptest::option::of(0_usize..8), steps in steps()) {
        let mut world = World::new(before, cursor);
        let from = world.place.seen();
        for step in steps {
            world.step(step);
        }
        world.settle();
        let feed: Vec<Position> = world.feed.iter().map(|item| item.position).filter(|at| Some(*at) > from).collect();
        prop_assert_eq!(world.sent, feed);
    }
}

fn at(number: u64) -> Position {
    Position::from_u64(number)
}

fn item(position: u64, previous: Option<u64>) -> Item {
    Item { position: at(position), previous: previous.map(at), bytes: 1, delivered: None }
}

/// Without a cursor any first event will do; with one, only the next.
#[test]
fn a_new_device_takes_any_first_event() {
    let mut new = Attachment::new(None, None, Some(at(9)), Vec::new(), WINDOW);
    assert_eq!(new.page(&[item(9, Some(5))], Some(at(9))).then, Then::Continue);
    let mut known = Attachment::new(Some(at(3)), Some(at(3)), Some(at(9)), Vec::new(), WINDOW);
    assert_eq!(known.page(&[item(9, Some(5))], Some(at(9))).then, Then::Broken);
    // All rows behind the cursor are gone: nothing to read is a break too.
    assert_eq!(known.page(&[], Some(at(9))).then, Then::Broken);
}

/// Nothing passes a gap before it is acknowledged.
#[test]
fn a_gap_waits_for_its_acknowledgement() {
    let mut place = Attachment::new(Some(at(3)), Some(at(3)), Some(at(9)), Vec::new(), WINDOW);
    place.expire(at(9));
    assert_eq!(place.offer(item(10, Some(9))), Offer::Hold);
    assert_eq!(place.acknowledge(at(11)), Err(NotSent));
    assert_eq!(place.acknowledge(at(9)), Ok(Acknowledged::Resume(at(9))));
    assert_eq!(place.phase(), Phase::Expired { resume: at(9) });
    place.resumed(at(9));
    let page = place.page(&[item(10, Some(9))], None);
    assert_eq!((page.from, page.to, page.then), (0, 1, Then::Continue));
}

/// What another owner sent may be acknowledged; what nobody sent may not.
#[test]
fn only_what_was_sent_is_acknowledged() {
    let sent = vec![item(4, Some(3)), item(6, Some(4))];
    let mut place = Attachment::new(Some(at(6)), Some(at(3)), Some(at(6)), sent, WINDOW);
    assert_eq!(place.acknowledge(at(5)), Err(NotSent));
    assert!(matches!(place.acknowledge(at(4)), Ok(Acknowledged::Through { .. })));
    assert_eq!(place.acknowledge(at(7)), Err(NotSent));
    assert_eq!(place.acknowledge(at(4)), Ok(Acknowledged::Nothing));
}

/// A repeat of what was sent, as after a replay, is not sent again.
#[test]
fn a_replay_is_not_pushed_again() {
    let mut place = Attachment::new(Some(at(3)), Some(at(3)), Some(at(3)), Vec::new(), WINDOW);
    assert!(place.hand_over());
    assert_eq!(place.offer(item(3, Some(1))), Offer::Hold);
    assert_eq!(place.offer(item(5, Some(3))), Offer::Send);
    assert_eq!(place.offer(item(5, Some(3))), Offer::Hold);
    assert_eq!(place.phase(), Phase::Live);
}

/// A stored event comes back as it was, without ciphertext.
#[test]
fn a_row_keeps_the_reference() {
    let message = wire::FeedMessage {
        conversation_id: Bytes::from_static(&[3; 16]),
        sequence: 7,
        sender_user_id: Bytes::from_static(&[4; 16]),
        sender_device_id: Bytes::from_static(&[5; 16]),
        envelope: Bytes::from_static(b"envelope"),
        mls_message: Bytes::from_static(&[0; 1000]),
        accepted_at_us: 9,
        ..Default::default()
    };
    let event = FeedEvent::parse(wire::feed_event_record::Event::Message(message)).unwrap();
    assert!(event.ready().is_some() && event.wants_message().is_none());
    let row = event.encode();
    assert!(row.len() < 100, "{} bytes", row.len());
    let read = FeedEvent::decode(&row).unwrap();
    assert_eq!(read.delivered(), event.delivered());
    assert!(read.ready().is_none() && read.wants_message().is_some());
    assert_eq!(read.encode(), row);
    assert!(FeedEvent::decode(&Bytes::from_static(b"\x02garbage")).is_err());
}
