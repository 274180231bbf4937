//! Records of the topic `feeds`: one event for the users that live in one partition.
//!
//! A record is put together from three encodings that are each made once: its place, the partition's recipients (once a
//! roster version) and the event (once a message). That is the same as encoding it whole, which a test holds it to.
//!
//! Deliberately absent: keys. Feeds partitions are named, not hashed from a key, and nothing compacts them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use wardline_domain::partition::PartitionCount;
use wardline_domain::roster::{Audience, Recipient};
use wardline_domain::{Position, UserId};
use wardline_log::append::Pending;
use wardline_log::{Headers, NewRecord};
use wardline_proto::convert::ids::bytes16;
use wardline_proto::internal::v1 as wire;

/// The most recipients of one record.
pub(crate) const MAX_RECIPIENTS: usize = 4096;

/// The key of `FeedRecord.event`: field 1, length-delimited.
const EVENT_KEY: u8 = (1 << 3) | 2;

/// An audience by feeds partition.
#[derive(Debug)]
pub(crate) struct Grouping {
    audience: Option<Audience>,
    /// By partition, then by user.
    pub(crate) parts: Vec<Part>,
}

/// Recipients that live in one partition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) partition: u32,
    /// A FeedEventRecord with nothing but its recipients.
    recipients: Bytes,
}

impl Grouping {
    /// Groups an audience. Depends on the audience and the number of partitions only.
    pub(crate) fn of(audience: &Audience, feeds: PartitionCount) -> Self {
        let mut partitions: BTreeMap<u32, Vec<&Recipient>> = BTreeMap::new();
        for recipient in audience.iter() {
            partitions.entry(feeds.partition_of(recipient.user.as_bytes())).or_default().push(recipient);
        }
        let parts = partitions.iter().flat_map(|(partition, recipients)| {
            recipients.chunks(MAX_RECIPIENTS).map(|chunk| Part::of(*partition, chunk.iter().map(|who| named(who))))
        });
        Self { parts: parts.collect(), audience: Some(Arc::clone(audience)) }
    }

    /// All devices of one user, members of the conversation or not.
    pub(crate) fn of_user(user: UserId, feeds: PartitionCount) -> Self {
        let everywhere = wire::RecipientRecord { user_id: bytes16(user.as_bytes()), device_ids: Vec::new() };
        let partition = feeds.partition_of(user.as_bytes());
        Self { parts: vec![Part::of(partition, std::iter::once(everywhere))], audience: None }
    }

    /// Whether it was made of this very audience.
    pub(crate) fn is_of(&self, audience: &Audience) -> bool {
        self.audience.as_ref().is_some_and(|own| Arc::ptr_eq(own, audience))
    }
}

impl Part {
    fn of(partition: u32, recipients: impl Iterator<Item = wire::RecipientRecord>) -> Self {
        let record = wire::FeedEventRecord { recipients: recipients.collect(), ..Default::default() };
        Self { partition, recipients: record.encode_to_vec().into() }
    }
}

fn named(recipient: &Recipient) -> wire::RecipientRecord {
    wire::RecipientRecord {
        user_id: bytes16(recipient.user.as_bytes()),
        device_ids: recipient.devices.iter().map(|device| bytes16(device.as_bytes())).collect(),
    }
}

/// One event of one source record, and who gets it.
#[derive(Debug, Clone)]
pub(crate) struct FeedEvent {
    pub(crate) position: Position,
    pub(crate) to: Arc<Grouping>,
    /// A FeedEventRecord with nothing but its event.
    event: Bytes,
    headers: Headers,
}

impl FeedEvent {
    pub(crate) fn new(
        position: Position,
        to: Arc<Grouping>,
        event: wire::feed_event_record::Event,
        headers: Headers,
    ) -> Self {
        let event = wire::FeedEventRecord { event: Some(event), ..Default::default() }.encode_to_vec().into();
        Self { position, to, event, headers }
    }
}

/// Numbers the records that one source record gives one feeds partition, from 0.
///
/// The caller's duty: events in source order.
#[derive(Debug, Default)]
pub(crate) struct Numbering {
    position: Option<Position>,
    next: HashMap<u32, u32>,
}

impl Numbering {
    fn number(&mut self, position: Position, partition: u32) -> u32 {
        if self.position != Some(position) {
            self.position = Some(position);
            self.next.clear();
        }
        let next = self.next.entry(partition).or_default();
        let number = *next;
        *next += 1;
        number
    }

    /// An event's records with their partitions.
    pub(crate) fn records<'e>(&mut self, source: u32, event: &'e FeedEvent) -> Vec<(u32, PendingRecord<'e>)> {
        let place = |number| wire::FeedEventRecord {
            source,
            source_position: event.position.as_u64(),
            part: number,
            ..Default::default()
        };
        let numbered = event.to.parts.iter().map(|part| (part, self.number(event.position, part.partition)));
        numbered.map(|(part, number)| (part.partition, PendingRecord { place: place(number), part, event })).collect()
    }
}

/// A feed record that has a place and no bytes yet.
#[derive(Debug)]
pub(crate) struct PendingRecord<'a> {
    place: wire::FeedEventRecord,
    part: &'a Part,
    event: &'a FeedEvent,
}

impl PendingRecord<'_> {
    fn inner(&self) -> usize {
        self.place.encoded_len() + self.part.recipients.len() + self.event.event.len()
    }
}

impl Pending for PendingRecord<'_> {
    fn bytes(&self) -> usize {
        let inner = self.inner();
        1 + prost::length_delimiter_len(inner) + inner
    }

    fn build(&self) -> NewRecord {
        let mut payload = BytesMut::with_capacity(self.bytes());
        payload.put_u8(EVENT_KEY);
        // A BytesMut grows, so neither call can run out of room.
        let _ = prost::encode_length_delimiter(self.inner(), &mut payload);
        let _ = self.place.encode(&mut payload);
        payload.extend_from_slice(&self.part.recipients);
        payload.extend_from_slice(&self.event.event);
        NewRecord { key: Bytes::new(), payload: payload.freeze(), headers: self.event.headers.clone() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use wardline_domain::DeviceId;

    use super::*;

    fn audience(users: u32) -> Audience {
        let user = |n: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Recipient { user: UserId::from_bytes(id), devices: vec![DeviceId::from_bytes(id)] }
        };
        (0..users).map(user).collect()
    }

    fn event() -> wire::feed_event_record::Event {
        wire::feed_event_record::Event::Message(wire::FeedMessage {
            conversation_id: Bytes::from_static(&[7; 16]),
            sequence: 300,
            mls_message: Bytes::from_static(&[9; 3000]),
            ..Default::default()
        })
    }

    fn count(n: u32) -> PartitionCount {
        PartitionCount::new(n).unwrap()
    }

    /// The law: a record's bytes are those of the whole message's encoding, and as many as were reserved.
    #[test]
    fn a_record_is_the_encoding_of_the_whole_message() {
        let to = Arc::new(Grouping::of(&audience(50), count(4)));
        let place = Position::new(1, 9).unwrap();
        let feed_event = FeedEvent::new(place, to, event(), Vec::new());
        let mut numbering = Numbering::default();
        let mut users = 0;
        for _ in 0..2 {
            for (partition, pending) in numbering.records(0x0100_0002, &feed_event) {
                let built = pending.build();
                let decoded = wire::FeedRecord::decode(built.payload.clone()).unwrap();
                assert_eq!(decoded.encode_to_vec(), built.payload);
                assert_eq!(built.payload.len() + built.key.len(), pending.bytes());
                let Some(wire::feed_record::Body::Event(decoded)) = decoded.body else { panic!("an event") };
                assert_eq!((decoded.source, decoded.source_position), (0x0100_0002, place.as_u64()));
                assert_eq!(decoded.event, Some(event()));
                for recipient in &decoded.recipients {
                    let user = UserId::try_from(&recipient.user_id[..]).unwrap();
                    assert_eq!(count(4).partition_of(user.as_bytes()), partition);
                    users += 1;
                }
            }
        }
        assert_eq!(users, 2 * 50);
    }

    #[test]
    fn parts_are_numbered_within_a_source_record_and_partition() {
        let to = Arc::new(Grouping::of(&audience(9000), count(1)));
        assert_eq!(to.parts.len(), 3);
        let at = |offset| FeedEvent::new(Position::new(1, offset).unwrap(), Arc::clone(&to), event(), Vec::new());
        let mut numbering = Numbering::default();
        let mut numbers = |event: &FeedEvent| -> Vec<u32> {
            numbering.records(1, event).iter().map(|(_, record)| record.place.part).collect()
        };
        assert_eq!(numbers(&at(5)), [0, 1, 2]);
        assert_eq!(numbers(&at(5)), [3, 4, 5]);
        assert_eq!(numbers(&at(6)), [0, 1, 2]);
    }

    #[test]
    fn a_part_has_at_most_4096_recipients() {
        let sizes = |users| -> Vec<usize> {
            let grouping = Grouping::of(&audience(users), count(1));
            let decode = |part: &Part| wire::FeedEventRecord::decode(part.recipients.clone()).unwrap();
            grouping.parts.iter().map(|part| decode(part).recipients.len()).collect()
        };
        assert_eq!(sizes(4096), [4096]);
        assert_eq!(sizes(4097), [4096, 1]);
    }

    #[test]
    fn grouping_depends_on_the_audience_only() {
        let (a, b) = (Grouping::of(&audience(500), count(8)), Grouping::of(&audience(500), count(8)));
        assert_eq!(a.parts, b.parts);
        assert!(a.parts.is_sorted_by_key(|part| part.partition));
    }
}
