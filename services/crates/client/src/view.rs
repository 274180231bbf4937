//! What a device shows: events as they come, and the state as it stands.

use std::sync::Arc;

use wardline_domain::record::ConversationKind;
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Timestamp, UserId};
use wardline_proto::reason::Reason;

use crate::content::{Body, ContentId};
use crate::core::Core;
use crate::error::Error;

/// Something happened. Sent after the transaction that holds it is committed.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// A message was sequenced; one's own too. Each content once.
    Message(Arc<HistoryEntry>),
    /// The device joined a conversation, by a Welcome or by its own external commit.
    Joined(ConversationId),
    /// The device's leaf was removed.
    Removed(ConversationId),
    /// A commit changed the group.
    MembersChanged {
        /// The conversation.
        conversation: ConversationId,
        /// Devices that joined.
        added: Vec<(UserId, DeviceId)>,
        /// Devices that went.
        removed: Vec<(UserId, DeviceId)>,
    },
    /// What one sent will not be sequenced, for good.
    Failed {
        /// The conversation.
        conversation: ConversationId,
        /// What.
        content: ContentId,
        /// Why.
        reason: Reason,
    },
    /// A commit of this device lost or was refused. Whoever asked for it asks again if it is still needed.
    CommitLost {
        /// The conversation.
        conversation: ConversationId,
        /// Why.
        reason: Reason,
    },
    /// Sequences that this device will never read.
    Skipped {
        /// The conversation.
        conversation: ConversationId,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Watermarks changed.
    Receipts(Vec<ReceiptView>),
    /// The group would have, or has, a leaf that its user's device log does not vouch for: somebody may be listening in. What
    /// brought it was not taken; the conversation has ended here until the person rejoins it ([`crate::Device::rejoin`]).
    Untrusted {
        /// The conversation.
        conversation: ConversationId,
        /// Whose device the leaf claims to be; zeros when it does not say.
        user: UserId,
        /// Which.
        device: DeviceId,
    },
    /// All that was missed has come.
    CaughtUp,
    /// A device of one's own user joined or ended.
    DevicesChanged,
    /// This device is revoked; it will not attach again.
    Revoked,
}

/// What a device has of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its place.
    pub sequence: u64,
    /// The sending user.
    pub sender: UserId,
    /// The sending device.
    pub device: DeviceId,
    /// The message's id.
    pub message: MessageId,
    /// What it is.
    pub kind: HistoryKind,
    /// SHA-256(SHA-256(envelope) ‖ SHA-256(mls_message)): the same on every device.
    pub payload: Digest,
    /// The chain hash at it, verified.
    pub chain: Digest,
    /// When the server accepted it.
    pub accepted_at: Option<Timestamp>,
}

/// What one sequence is to this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryKind {
    /// Content.
    Content {
        /// Its id.
        id: ContentId,
        /// What it says.
        body: Body,
    },
    /// Content that was already there under another sequence.
    Repeat {
        /// Its id.
        id: ContentId,
    },
    /// A commit.
    Commit,
    /// Something this device could not read.
    Unreadable,
}

impl HistoryEntry {
    /// The content's id and body, when it is content that counts.
    pub fn content(&self) -> Option<(ContentId, &Body)> {
        match &self.kind {
            HistoryKind::Content { id, body } => Some((*id, body)),
            _ => None,
        }
    }

    /// The text, when it is one.
    pub fn text(&self) -> Option<&str> {
        self.content().and_then(|(_, body)| body.text())
    }
}

/// Where the device stands in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationStatus {
    /// Being created: not known to the server yet.
    Creating,
    /// Has the group's state.
    Active,
    /// Has sent an external commit and waits for it to win.
    Joining,
    /// Has no usable group state; rejoins when it can.
    Broken,
    /// Has no leaf any more.
    Removed,
    /// Has given up the group because of a leaf that no device log vouches for. Nothing is sent or read until the person
    /// rejoins, or a Welcome comes whose every leaf is vouched for.
    Untrusted,
}

/// A conversation as a device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationView {
    /// Its id.
    pub id: ConversationId,
    /// Its kind.
    pub kind: ConversationKind,
    /// Its title; empty when not known.
    pub title: String,
    /// Where the device stands.
    pub status: ConversationStatus,
    /// The MLS group's generation.
    pub generation: u32,
    /// The MLS group's epoch, when the device has the group.
    pub epoch: Option<u64>,
    /// The last sequence processed.
    pub sequence: u64,
    /// The chain hash there.
    pub chain: Digest,
    /// Up to where this person has read.
    pub read: u64,
    /// Sequences this device passed over, both ends included.
    pub skipped: Vec<(u64, u64)>,
}

/// A leaf of a conversation's group, from the device's own MLS state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// The leaf's index.
    pub leaf: u32,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// Waits to be removed by a commit.
    pub removal_pending: bool,
}

/// How far one device has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptView {
    /// The conversation.
    pub conversation: ConversationId,
    /// Whose device.
    pub user: UserId,
    /// Which.
    pub device: DeviceId,
    /// The highest sequence it acknowledged.
    pub delivered: u64,
    /// The highest sequence shown to the person.
    pub read: u64,
    /// Ranges below `delivered` that it never got, both ends included.
    pub skipped: Vec<(u64, u64)>,
}

/// Where a message of this device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageState {
    /// On this device only.
    Queued,
    /// The log holds it, or may.
    Accepted,
    /// It has its place: shown as "sent".
    Sequenced(u64),
    /// A device of every other user has it.
    Delivered(u64),
    /// Every other user has read it.
    Read(u64),
    /// It will not be sequenced.
    Failed,
}

/// The device's state at one moment, for reading.
pub struct View<'a>(pub(crate) &'a Core);

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("View")
    }
}

impl View<'_> {
    /// All sequences of a conversation that the device has, in order.
    pub fn history(&self, conversation: ConversationId) -> Result<Vec<HistoryEntry>, Error> {
        self.0.history(conversation)
    }

    /// The conversations, by id.
    pub fn conversations(&self) -> Result<Vec<ConversationView>, Error> {
        self.0.conversations()
    }

    /// One conversation.
    pub fn conversation(&self, conversation: ConversationId) -> Result<Option<ConversationView>, Error> {
        self.0.conversation(conversation)
    }

    /// The watermarks the device was told of.
    pub fn receipts(&self, conversation: ConversationId) -> Result<Vec<ReceiptView>, Error> {
        self.0.receipts(conversation)
    }

    /// The leaves of the group.
    pub fn members(&self, conversation: ConversationId) -> Result<Vec<MemberView>, Error> {
        self.0.members(conversation)
    }

    /// Where a message of this device stands; `None` when this device did not send it.
    pub fn message_state(
        &self,
        conversation: ConversationId,
        content: ContentId,
    ) -> Result<Option<MessageState>, Error> {
        self.0.message_state(conversation, content)
    }

    /// How many of this device's messages have no place yet.
    pub fn unsequenced(&self) -> Result<u64, Error> {
        self.0.unsequenced()
    }
}
