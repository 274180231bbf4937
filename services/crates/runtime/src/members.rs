//! Heads and rosters as the stores have them, cached: what every role authorises against.
//!
//! The cache may lag the log; whoever is refused by it is looked up again before the refusal is believed.

use std::sync::Arc;

use wardline_domain::conversation::Head;
use wardline_domain::roster::Roster;
use wardline_domain::{ConversationId, DeviceId, Failure, UserId};
use wardline_store::Conversations;

use crate::{Clock, Refusal};

/// A conversation as the stores had it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its head.
    pub head: Arc<Head>,
    /// The latest roster in the store: it may be ahead of the head by a batch.
    pub roster: Arc<Roster>,
}

/// A bounded cache of conversations. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Members {}

#[allow(clippy::todo, unused_variables)]
impl Members {
    /// Keeps at most `capacity` conversations, each for at most `fresh_for`.
    pub fn new(
        conversations: Arc<dyn Conversations>,
        capacity: usize,
        fresh_for: std::time::Duration,
        clock: Clock,
    ) -> Self {
        todo!()
    }

    /// The conversation, from the cache when fresh enough. `None` when the store has none.
    pub async fn get(&self, conversation: ConversationId) -> Result<Option<Seen>, Failure> {
        todo!()
    }

    /// The conversation, from the store.
    pub async fn reload(&self, conversation: ConversationId) -> Result<Option<Seen>, Failure> {
        todo!()
    }

    /// The conversation, if the user has a leaf that receives in it; else `NotAMember` (also when there is no such
    /// conversation, so that ids cannot be probed).
    pub async fn of_user(&self, conversation: ConversationId, user: UserId) -> Result<Seen, Refusal> {
        todo!()
    }

    /// The conversation, if the device has a leaf that receives in it; else `NotAMember`.
    pub async fn of_device(
        &self,
        conversation: ConversationId,
        user: UserId,
        device: DeviceId,
    ) -> Result<Seen, Refusal> {
        todo!()
    }
}
