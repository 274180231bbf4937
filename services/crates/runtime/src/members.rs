//! Heads and rosters as the stores have them, cached: what every role authorises against.
//!
//! The cache may lag the log; whoever is refused by it is looked up again before the refusal is believed.
//!
//! Deliberately absent: conversations that do not exist. Only what the store has is kept, so a prober fills no memory.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, counter};
use quick_cache::sync::Cache;
use wardline_domain::conversation::Head;
use wardline_domain::roster::Roster;
use wardline_domain::{ConversationId, DeviceId, Failure, Timestamp, UserId};
use wardline_proto::reason::Reason;
use wardline_store::Conversations;

use crate::measures as names;
use crate::{Clock, Refusal};

/// Versions above a head's may exist: the rows of a batch are written before its heads.
const LATEST: u64 = u64::MAX;

/// A conversation as the stores had it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its head.
    pub head: Arc<Head>,
    /// The latest roster in the store: it may be ahead of the head by a batch.
    pub roster: Arc<Roster>,
}

/// A bounded cache of conversations. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    shared: Arc<Shared>,
}

struct Shared {
    conversations: Arc<dyn Conversations>,
    cache: Cache<ConversationId, Entry>,
    fresh_for: Duration,
    clock: Clock,
    cached: Counter,
    stored: Counter,
}

#[derive(Clone)]
struct Entry {
    seen: Seen,
    at: Timestamp,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Members({} conversations)", self.shared.cache.len())
    }
}

impl Members {
    /// Keeps at most `capacity` conversations, each for at most `fresh_for`.
    pub fn new(conversations: Arc<dyn Conversations>, capacity: usize, fresh_for: Duration, clock: Clock) -> Self {
        let lookups = |from: &'static str| counter!(names::MEMBERS_LOOKUPS, "from" => from);
        let (cached, stored) = (lookups("cache"), lookups("store"));
        let cache = Cache::new(capacity);
        Self { shared: Arc::new(Shared { conversations, cache, fresh_for, clock, cached, stored }) }
    }

    /// The conversation, from the cache when fresh enough. `None` when the store has none.
    pub async fn get(&self, conversation: ConversationId) -> Result<Option<Seen>, Failure> {
        let now = self.shared.clock.now();
        match self.shared.cache.get(&conversation) {
            Some(entry) if now.since(entry.at) < self.shared.fresh_for => {
                self.shared.cached.increment(1);
                Ok(Some(entry.seen))
            }
            _ => self.reload(conversation).await,
        }
    }

    /// The conversation, from the store.
    pub async fn reload(&self, conversation: ConversationId) -> Result<Option<Seen>, Failure> {
        // The time and the head before the roster: an entry is never taken for younger than it is, nor its roster older than
        // its head's.
        let at = self.shared.clock.now();
        self.shared.stored.increment(1);
        let Some(head) = self.shared.conversations.head(conversation).await? else {
            return Ok(None);
        };
        let roster = self.shared.conversations.roster(conversation, LATEST).await?;
        let seen = Seen { head: Arc::new(head), roster: Arc::new(roster) };
        self.shared.cache.insert(conversation, Entry { seen: seen.clone(), at });
        Ok(Some(seen))
    }

    /// The conversation, if the user has a leaf that receives in it; else `NotAMember` (also when there is no such
    /// conversation, so that ids cannot be probed).
    pub async fn of_user(&self, conversation: ConversationId, user: UserId) -> Result<Seen, Refusal> {
        self.admitting(conversation, |roster| roster.has_user(user)).await
    }

    /// The conversation, if the device has a leaf that receives in it; else `NotAMember`.
    pub async fn of_device(
        &self,
        conversation: ConversationId,
        user: UserId,
        device: DeviceId,
    ) -> Result<Seen, Refusal> {
        self.admitting(conversation, |roster| {
            roster.leaf_of(user, device).is_some_and(|(_, leaf)| !leaf.removal_pending)
        })
        .await
    }

    async fn admitting(&self, conversation: ConversationId, admits: impl Fn(&Roster) -> bool) -> Result<Seen, Refusal> {
        if let Some(seen) = self.get(conversation).await?.filter(|seen| admits(&seen.roster)) {
            return Ok(seen);
        }
        let seen = self.reload(conversation).await?.filter(|seen| admits(&seen.roster));
        seen.ok_or(Refusal::new(Reason::NotAMember))
    }
}
