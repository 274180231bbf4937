//! The conversation state machine: a pure fold over the records of one conversation. Two owners of a partition, a zombie
//! included, compute identical rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::Digest;
use crate::envelope::{Epoch, Generation, Sequence};
use crate::ids::{ConversationId, DeviceId, MessageId, TenantId, UserId};
use crate::position::Position;
use crate::record::{ConversationKind, GroupStateRef, Policy, Record};
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

/// What stands in the head cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The last record applied.
    pub last: Position,
    /// That record's digest.
    pub last_digest: Digest,
    /// The position of the Create record.
    pub created: Position,
    /// That record's content digest (of tenant, kind, suite, policy, creator, group state; not of its acceptance time), so
    /// that a repeated Create is told from another one.
    pub create_digest: Digest,
    /// The home tenant.
    pub tenant: TenantId,
    /// The kind.
    pub kind: ConversationKind,
    /// The MLS cipher suite.
    pub suite: u16,
    /// The latest sequence.
    pub sequence: Sequence,
    /// The chain hash at `sequence`.
    pub chain: Digest,
    /// The MLS group's generation.
    pub generation: Generation,
    /// The MLS group's epoch.
    pub epoch: Epoch,
    /// The message id of the commit that led to `epoch`; `None` at epoch 0.
    pub epoch_winner: Option<MessageId>,
    /// The roster's version.
    pub members_version: u64,
    /// The policy.
    pub policy: Policy,
    /// The group state of `epoch`.
    pub group_state: GroupStateRef,
    /// Set aside, and why.
    pub quarantined: Option<String>,
    /// The newest id of the most recent senders (devices), with the position it was seen at.
    pub newest: BTreeMap<DeviceId, Newest>,
    /// The greatest id evicted from `newest`.
    pub floor: Option<MessageId>,
}

/// A sender's newest id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The id.
    pub message: MessageId,
    /// Where it was seen: what makes a sender recent.
    pub at: Position,
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

/// The bytes are not those of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a head: {0}")]
pub struct InvalidHead(pub &'static str);

#[allow(unused_variables, clippy::todo)]
impl Head {
    /// Canonical bytes: version byte first, maps sorted.
    pub fn encode(&self) -> Bytes {
        todo!()
    }
    /// Reads what [`Head::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidHead> {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo)]
impl Conversation {
    /// One that does not exist yet.
    pub fn absent(id: ConversationId) -> Self {
        Self { id, head: None, roster: Arc::default() }
    }

    /// The outcome that must be read before the record is applied; `None` when the head proves that it is new (or the record
    /// needs none).
    pub fn lookup(&self, record: &Record) -> Option<OutcomeKey> {
        todo!()
    }
}

/// Applies one record. Reads nothing but its arguments; never panics; a record of another conversation is `Ignored`.
///
/// The caller's duty: records in log order; `prior` from a quorum read and the current batch's overlay whenever
/// [`Conversation::lookup`] asks for it.
#[allow(unused_variables, clippy::todo)]
pub fn apply(conversation: &mut Conversation, prior: Prior, record: &Record) -> Outcome {
    todo!()
}

/// chain(0): SHA-256(conversation_id).
pub fn chain_start(id: ConversationId) -> Digest {
    Digest::of(id.as_bytes())
}

/// chain(n) = SHA-256(chain(n−1) ‖ u64be n ‖ SHA-256(envelope) ‖ SHA-256(mls_message)).
pub fn chain_next(previous: Digest, sequence: Sequence, envelope: Digest, mls_message: Digest) -> Digest {
    Digest::of_parts(&[previous.as_bytes(), &sequence.0.to_be_bytes(), envelope.as_bytes(), mls_message.as_bytes()])
}

/// The digest of a submission's bytes that an outcome row keeps.
pub fn payload_digest(envelope: Digest, mls_message: Digest) -> Digest {
    Digest::of_parts(&[envelope.as_bytes(), mls_message.as_bytes()])
}
