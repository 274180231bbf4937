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

    /// Supplies the messages that these events name.
    pub(crate) async fn supply(&self, events: impl Iterator<Item = &FeedEvent>) -> Result<(), Failure> {
        let wanting: Vec<(&FeedEvent, _)> = events.filter_map(|event| Some((event, event.wants_message()?))).collect();
        for chunk in wanting.chunks(MESSAGES_AT_ONCE) {
            let keys: Vec<_> = chunk.iter().map(|(_, key)| *key).collect();
            let rows = self.stores.conversations.messages_at(&keys).await?;
            for ((event, _), row) in chunk.iter().zip(rows) {
                event.supply(row.as_ref());
            }
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
