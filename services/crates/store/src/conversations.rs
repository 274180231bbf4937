//! Conversations: heads, rosters, messages, outcomes, and large things by digest.

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::conversation::{Head, OutcomeKey, RejectReason, Rejection};
use wardline_domain::envelope::{MessageKind, Sealed, Sequence};
use wardline_domain::roster::{Roster, RosterDelta};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Position, Timestamp, UserId};

use crate::Result;

/// Table `messages`: ((conversation, sequence >> 10), sequence).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The sequence.
    pub sequence: Sequence,
    /// The chain hash at it.
    pub chain: Digest,
    /// The sender.
    pub sender: UserId,
    /// The sending device.
    pub device: DeviceId,
    /// What it is.
    pub kind: MessageKind,
    /// When ingest accepted it.
    pub accepted_at: Timestamp,
    /// The record it came from.
    pub position: Position,
    /// The bytes as received.
    pub sealed: Sealed,
}

/// Table `outcomes`: ((conversation, id_time >> 27), device, message_id). Kept for 21 days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeRow {
    /// The key.
    pub key: OutcomeKey,
    /// The record that got the outcome.
    pub position: Position,
    /// When ingest accepted it.
    pub accepted_at: Timestamp,
    /// The digest of its bytes.
    pub payload: Digest,
    /// A sequence or a typed rejection.
    pub result: OutcomeResult,
}

/// A sequence or a typed rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeResult {
    /// It took a sequence.
    Sequenced(Sequence),
    /// It got none.
    Rejected(Rejection),
}

impl OutcomeResult {
    /// Why it got none.
    pub fn reason(&self) -> Option<RejectReason> {
        match self {
            Self::Sequenced(_) => None,
            Self::Rejected(rejection) => Some(rejection.reason),
        }
    }
}

/// Table `members`: ((conversation), version, chunk). A delta every version and a snapshot every [`SNAPSHOT_EVERY`]th; the
/// engine cuts values into chunks of 64 KiB where its server wants that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembersRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The roster's version.
    pub version: u64,
    /// When the record that changed it was accepted.
    pub accepted_at: Timestamp,
    /// The change that led to `version`.
    pub delta: RosterDelta,
    /// The whole roster at `version`, every [`SNAPSHOT_EVERY`] versions (version % SNAPSHOT_EVERY == 0).
    pub snapshot: Option<std::sync::Arc<Roster>>,
}

/// How many versions lie between two snapshots of a roster.
pub const SNAPSHOT_EVERY: u64 = 64;

/// Table `conversations_of`: ((user), conversation). A mutable cell: `position` is its write timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipRow {
    /// The user.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Whether the user has a leaf that receives. A row is never deleted, only set to false.
    pub member: bool,
    /// The record it was derived from.
    pub position: Position,
}

/// Table `heads`. A mutable cell: `head.last` is its write timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The head.
    pub head: Head,
}

/// The immutable rows of one batch, written before feed records and heads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowBatch {
    /// Messages.
    pub messages: Vec<MessageRow>,
    /// Outcomes.
    pub outcomes: Vec<OutcomeRow>,
    /// Roster versions.
    pub members: Vec<MembersRow>,
    /// Who is in what.
    pub memberships: Vec<MembershipRow>,
}

/// Conversations and their messages.
///
/// Promise: a write that answered `Ok` is seen by every later read. Rows that the log derives need not survive a power cut
/// that the checkpoint does not survive either.
/// The caller's duty: the same key is always written with the same bytes, mutable cells excepted.
#[async_trait]
pub trait Conversations: Send + Sync {
    /// Writes rows. Not atomic: after `Unknown` any part may have been written, and the whole is written again.
    async fn put_rows(&self, rows: &RowBatch) -> Result<()>;

    /// Writes heads. A head with a lower `last` than the stored one changes nothing.
    async fn put_heads(&self, heads: &[HeadRow]) -> Result<()>;

    /// Reads a head.
    async fn head(&self, conversation: ConversationId) -> Result<Option<Head>>;

    /// Reads heads, in the order asked.
    async fn heads(&self, conversations: &[ConversationId]) -> Result<Vec<Option<Head>>>;

    /// Reads the roster at the greatest version that is at most `at_most`; the empty roster when there is none. Versions
    /// above a head's may exist: the rows of a batch are written before its heads.
    async fn roster(&self, conversation: ConversationId, at_most: u64) -> Result<Roster>;

    /// Reads outcomes, in the order asked.
    async fn outcomes(&self, keys: &[OutcomeKey]) -> Result<Vec<Option<OutcomeRow>>>;

    /// Reads messages above `after` in order, at most `limit` of them and at most about `max_bytes` (but at least one).
    async fn messages(
        &self,
        conversation: ConversationId,
        after: Sequence,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<MessageRow>>;

    /// Reads single messages, in the order asked.
    async fn messages_at(&self, at: &[(ConversationId, Sequence)]) -> Result<Vec<Option<MessageRow>>>;

    /// Reads a user's memberships by conversation id above `after`, former ones included.
    async fn memberships(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: usize,
    ) -> Result<Vec<MembershipRow>>;

    /// Drops whole partitions of messages: those whose sequences all lie at or below `through`, and outcomes older than 21
    /// days before `now`. For retention.
    async fn drop_messages(&self, conversation: ConversationId, through: Sequence, now: Timestamp) -> Result<()>;
}

/// Large things by SHA-256: table `blobs`, ((conversation), digest).
///
/// Promise: what `put` answered `Ok` for survives a power cut.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Stores bytes under their digest (the engine computes it).
    async fn put(&self, conversation: ConversationId, blobs: &[Bytes]) -> Result<()>;

    /// Reads bytes.
    async fn get(&self, conversation: ConversationId, digest: Digest) -> Result<Option<Bytes>>;
}

/// The key of a message's outcome.
pub fn outcome_key(conversation: ConversationId, device: DeviceId, message: MessageId) -> OutcomeKey {
    OutcomeKey { conversation, device, message }
}
