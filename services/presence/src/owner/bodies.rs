//! What events only name, read when a device needs it: messages in batches and once for all devices, invitations cut down
//! to the device that joins.
//!
//! Deliberately absent: whether a device may have it. The recipients in the record say so.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use quick_cache::sync::Cache;
use wardline_domain::mls::{slice_welcome, welcome_refs};
use wardline_domain::{Cause, ConversationId, DeviceId, Digest, Failure, UserId};
use wardline_proto::internal::v1 as wire;
use wardline_proto::v1::{self, event::Body};
use wardline_store::Stores;

use super::ring::{Row, addressed};
use crate::event::{FeedEvent, text};

/// Messages read at once.
const MESSAGES_AT_ONCE: usize = 64;
/// Look-ups of key packages at once.
const LOOKUPS_AT_ONCE: usize = 16;
/// A Welcome for more joiners is sent whole: finding out whose share is whose would cost more than it saves.
const MOST_REFS: usize = wardline_domain::mls::MAX_ADDS;
/// Invitations whose joiners are remembered.
const JOINERS_CACHED: usize = 1024;

/// Which share of an invitation is which device's, as far as one user's devices go.
type Joiners = Arc<HashMap<DeviceId, Digest>>;

/// Reads bodies.
pub(crate) struct Bodies {
    stores: Stores,
    joiners: Cache<(Digest, UserId), Joiners>,
}

impl std::fmt::Debug for Bodies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bodies")
    }
}

impl Bodies {
    pub(crate) fn new(stores: Stores) -> Self {
        Self { stores, joiners: Cache::new(JOINERS_CACHED) }
    }

    /// Supplies the messages that these events name, those that are there. A row may come after the event that names it:
    /// after a power cut the log may stand before the store, until fanout has folded the rest again. So a missing one is
    /// always waited for; nothing removes messages. A retention task that does must let an event go without its message
    /// only where the head is at or above its sequence and the row's store partition was dropped.
    ///
    /// # Errors
    /// `NotApplied` with cause `Unavailable` while a message is not there: try again after a pause that grows.
    pub(crate) async fn supply(&self, events: impl Iterator<Item = &FeedEvent>) -> Result<(), Failure> {
        let wanting: Vec<(&FeedEvent, _)> = events.filter_map(|event| Some((event, event.wants_message()?))).collect();
        let mut missing = false;
        for chunk in wanting.chunks(MESSAGES_AT_ONCE) {
            let keys: Vec<_> = chunk.iter().map(|(_, key)| *key).collect();
            let rows = self.stores.conversations.messages_at(&keys).await?;
            for ((event, _), row) in chunk.iter().zip(rows) {
                match row {
                    Some(row) => event.supply(&row),
                    None => missing = true,
                }
            }
        }
        if missing {
            return Err(Failure::NotApplied(Cause::unavailable("a message is not in the store yet")));
        }
        Ok(())
    }

    /// The rows' bodies for a device, in their order; `None` for those of other devices.
    pub(crate) async fn of(&self, user: UserId, device: DeviceId, rows: &[Row]) -> Result<Vec<Option<Body>>, Failure> {
        let mine = rows.iter().filter(|row| addressed(&row.devices, device));
        self.supply(mine.map(|row| &*row.event)).await?;
        let mut bodies = Vec::with_capacity(rows.len());
        for row in rows {
            bodies.push(if !addressed(&row.devices, device) {
                None
            } else if let Some(welcome) = row.event.welcome() {
                Some(Body::Welcome(self.welcome(user, device, welcome).await?))
            } else {
                row.event.ready()
            });
        }
        Ok(bodies)
    }

    async fn welcome(
        &self,
        user: UserId,
        device: DeviceId,
        welcome: &wire::FeedWelcome,
    ) -> Result<v1::Welcome, Failure> {
        Ok(v1::Welcome {
            conversation_id: text(&welcome.conversation_id),
            generation: welcome.generation,
            epoch: welcome.epoch,
            sequence: welcome.sequence,
            welcome: self.share(user, device, welcome).await?,
            chain_hash: welcome.chain_hash.clone(),
        })
    }

    /// The device's share, or the whole where that cannot be found out.
    async fn share(&self, user: UserId, device: DeviceId, welcome: &wire::FeedWelcome) -> Result<Bytes, Failure> {
        let missing = || Failure::NotApplied(Cause::corrupt("an invitation's blob is not in the store"));
        let conversation = ConversationId::try_from(&*welcome.conversation_id).map_err(|_| missing())?;
        let name = welcome.welcome.as_ref().ok_or_else(missing)?;
        let digest = Digest::try_from(&*name.digest).map_err(|_| missing())?;
        let whole = self.stores.blobs.get(conversation, digest).await?.ok_or_else(missing)?;
        let refs = welcome_refs(&whole).unwrap_or_default();
        if refs.len() < 2 || refs.len() > MOST_REFS {
            return Ok(whole);
        }
        let joiners = match self.joiners.get(&(digest, user)) {
            Some(joiners) => joiners,
            None => {
                let joiners = Arc::new(self.look_up(user, suite_of(&whole), &refs).await?);
                self.joiners.insert((digest, user), Arc::clone(&joiners));
                joiners
            }
        };
        let share = joiners.get(&device).and_then(|reference| slice_welcome(&whole, *reference).ok());
        Ok(share.unwrap_or(whole))
    }

    /// Tries every reference: the Welcome does not say whose it is, the directory knows which it served.
    async fn look_up(&self, user: UserId, suite: u16, refs: &[Digest]) -> Result<HashMap<DeviceId, Digest>, Failure> {
        let found = futures::stream::iter(refs.iter().copied().map(|reference| async move {
            let package = self.stores.directory.served_key_package(user, suite, reference).await?;
            Ok::<_, Failure>(package.map(|package| (package.device, reference)))
        }));
        found.buffer_unordered(LOOKUPS_AT_ONCE).try_filter_map(|found| async move { Ok(found) }).try_collect().await
    }
}

/// The suite stands behind version and wire format, two bytes each.
fn suite_of(welcome: &Bytes) -> u16 {
    welcome.get(4..6).and_then(|suite| suite.try_into().ok()).map_or(0, u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use wardline_domain::envelope::{MessageKind, Sealed, Sequence};
    use wardline_domain::failure::CauseKind;
    use wardline_domain::{Position, Timestamp};
    use wardline_proto::internal::v1::feed_event_record::Event;
    use wardline_store::conversations::{MessageRow, RowBatch};

    use super::*;

    const CONVERSATION: ConversationId = ConversationId::from_bytes([7; 16]);

    fn named(sequence: u64) -> FeedEvent {
        let message = wire::FeedMessage {
            conversation_id: Bytes::copy_from_slice(CONVERSATION.as_bytes()),
            sequence,
            sender_user_id: Bytes::from_static(&[1; 16]),
            sender_device_id: Bytes::from_static(&[2; 16]),
            by_reference: true,
            ..Default::default()
        };
        FeedEvent::parse(Event::Message(message)).unwrap()
    }

    async fn store(stores: &Stores, sequence: u64) {
        let message = MessageRow {
            conversation: CONVERSATION,
            sequence: Sequence(sequence),
            chain: Digest::of(b"chain"),
            sender: UserId::from_bytes([1; 16]),
            device: DeviceId::from_bytes([2; 16]),
            kind: MessageKind::Application,
            accepted_at: Timestamp::default(),
            position: Position::from_u64(sequence),
            sealed: Sealed { envelope: Bytes::from_static(b"envelope"), mls_message: Bytes::from_static(b"sealed") },
        };
        stores.conversations.put_rows(&RowBatch { messages: vec![message], ..RowBatch::default() }).await.unwrap();
    }

    fn chain(event: &FeedEvent) -> Option<Bytes> {
        match event.ready()? {
            Body::Message(message) => Some(message.chain_hash),
            _ => None,
        }
    }

    /// The law: an event whose message is not there yet gets no body, whatever else is there, and the whole one later.
    #[tokio::test]
    async fn a_message_that_is_not_there_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let stores = wardline_store::embedded::open(dir.path()).unwrap();
        let bodies = Bodies::new(stores.clone());
        let events = [named(1), named(2)];
        store(&stores, 2).await;
        let failure = bodies.supply(events.iter()).await.unwrap_err();
        assert!(matches!(&failure, Failure::NotApplied(cause) if cause.kind == CauseKind::Unavailable), "{failure}");
        assert!(chain(&events[0]).is_none());
        assert!(chain(&events[1]).is_some());
        store(&stores, 1).await;
        bodies.supply(events.iter()).await.unwrap();
        assert_eq!(chain(&events[0]).unwrap(), Digest::of(b"chain").as_bytes().as_slice());
    }
}
