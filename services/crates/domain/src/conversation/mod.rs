//! The conversation state machine: a pure fold over the records of one conversation. Two owners of a partition, a zombie
//! included, compute identical rows.
//!
//! Deliberately absent: effects. What an outcome means for tables and feeds is the caller's.

mod apply;
mod chain;
mod commit;
mod duplicates;
mod head;

use std::sync::Arc;

pub use self::apply::{apply, create_digest};
pub use self::chain::{chain_next, chain_start, payload_digest};
pub use self::head::{Head, InvalidHead, Newest};

use crate::Digest;
use crate::envelope::{Epoch, Generation, Sequence};
use crate::ids::{ConversationId, DeviceId, MessageId, UserId};
use crate::position::Position;
use crate::roster::{Audience, Roster, RosterDelta};

/// The most users a conversation holds.
pub const MAX_USERS: usize = 2_000;
/// The most devices a conversation holds.
pub const MAX_DEVICES: usize = 5_000;
/// How many senders' newest ids the head keeps.
pub const RECENT_SENDERS: usize = 64;
/// How much older than its acceptance a message id may be.
pub const MESSAGE_ID_MAX_AGE_MILLIS: u64 = 7 * 24 * 3600 * 1000;
/// How much newer than its acceptance a message id may be.
pub const MESSAGE_ID_MAX_LEAD_MILLIS: u64 = 5 * 60 * 1000;

/// A conversation that exists, or not yet: what the fold carries from record to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its id.
    pub id: ConversationId,
    /// Its head; `None` before the Create record.
    pub head: Option<Head>,
    /// Its roster.
    pub roster: Arc<Roster>,
}

/// What is already known of the record's (conversation, device, message_id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prior {
    /// Nothing: [`Conversation::lookup`] asked for no read, or the read found nothing.
    None,
    /// The outcome that an earlier record got.
    Known(PriorOutcome),
}

/// What an earlier record with the same key got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorOutcome {
    /// The position of the record that got it.
    pub position: Position,
    /// SHA-256(SHA-256(envelope) ‖ SHA-256(mls_message)).
    pub payload: Digest,
}

/// The key of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutcomeKey {
    /// The conversation.
    pub conversation: ConversationId,
    /// The sending device.
    pub device: DeviceId,
    /// The message.
    pub message: MessageId,
}

/// What a record came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// At or below the head: applied before. Nothing to write.
    Replayed,
    /// A repeat of a record that has its outcome: same key, same bytes. Nothing to write but the head.
    Repeat,
    /// The same key with other bytes. The first record keeps the outcome; the sender's devices are told.
    Conflict(Rejection),
    /// The conversation exists now.
    Created {
        /// The roster's first delta.
        delta: RosterDelta,
    },
    /// A Create of an existing conversation: with the same content OK for its sender, else refused. Nothing to write but the
    /// head.
    CreateRepeated {
        /// Whether the content was the same.
        same: bool,
    },
    /// The record took a sequence.
    Sequenced(Box<Sequenced>),
    /// The record got none: an outcome row and an event to the sender's devices.
    Rejected(Rejection),
    /// A control record changed something.
    Changed {
        /// The roster's delta, when leaves now wait for removal.
        delta: Option<RosterDelta>,
        /// Who is told.
        audience: Audience,
    },
    /// A control record that changes nothing, or a record for a conversation that does not exist and has nobody to tell.
    Ignored,
}

/// A record that took a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequenced {
    /// Its sequence.
    pub sequence: Sequence,
    /// The chain hash at it.
    pub chain: Digest,
    /// SHA-256(SHA-256(envelope) ‖ SHA-256(mls_message)), for the outcome row.
    pub payload: Digest,
    /// Who gets the message: for a commit those before it (removed ones included, removal_pending ones not) and a device
    /// that joined by it itself; not those it added.
    pub audience: Audience,
    /// With a commit.
    pub commit: Option<CommitEffects>,
}

/// What a commit did beyond taking a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitEffects {
    /// The epoch it led to.
    pub epoch: Epoch,
    /// The roster's delta; `None` when no leaf changed.
    pub delta: Option<RosterDelta>,
    /// The devices it added: each gets the Welcome.
    pub joined: Audience,
    /// Users who now have a leaf and had none.
    pub users_added: Vec<UserId>,
    /// Users who had a leaf and have none now.
    pub users_removed: Vec<UserId>,
}

/// Why a record got no sequence. The numbers are those of `wardline.v1.RejectReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RejectReason {
    /// Another commit ended the epoch first.
    EpochConflict = 1,
    /// Content of an epoch that is over, or not yet.
    StaleEpoch = 2,
    /// The device is not in the conversation.
    NotAMember = 3,
    /// Devices wait for removal.
    RemovalRequired = 4,
    /// The message id was used with other bytes.
    MessageIdReused = 5,
    /// The message id's time is too far from its acceptance.
    MessageIdTime = 6,
    /// It was accepted after its expire_time.
    Expired = 7,
    /// The commit breaks a rule for commits.
    CommitInvalid = 8,
    /// The commit needs a role its sender has not got.
    RoleRequired = 9,
    /// The commit would make the conversation too large.
    ConversationFull = 10,
    /// The conversation is set aside.
    Quarantined = 11,
    /// The conversation does not exist.
    ConversationUnknown = 12,
    /// The conversation id is taken.
    ConversationExists = 13,
}

/// A typed rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: RejectReason,
    /// The payload digest, for the outcome row.
    pub payload: Digest,
    /// The generation at that point.
    pub generation: Generation,
    /// The epoch at that point.
    pub epoch: Epoch,
    /// With EpochConflict, the commit that won.
    pub winner: Option<MessageId>,
}

impl Conversation {
    /// One that does not exist yet.
    pub fn absent(id: ConversationId) -> Self {
        Self { id, head: None, roster: Arc::default() }
    }
}
