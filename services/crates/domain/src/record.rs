//! A record of the `conversations` topic, as the state machine reads it.

use crate::Digest;
use crate::envelope::{Envelope, Epoch, Generation, Sealed};
use crate::ids::{ConversationId, DeviceId, TenantId, UserId};
use crate::position::Position;
use crate::time::Timestamp;

/// A record with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub position: Position,
    /// SHA-256 of the record's bytes in the log.
    pub digest: Digest,
    /// The conversation it belongs to.
    pub conversation: ConversationId,
    /// When ingest accepted it.
    pub accepted_at: Timestamp,
    /// What it asks.
    pub body: Body,
}

/// What a record asks of its conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Creates it.
    Create(Create),
    /// A message or commit.
    Submission(Box<Submission>),
    /// A server-side fact. Takes no sequence.
    Control(Control),
    /// The end of the topic's incarnation.
    LogEnd,
}

/// Creates a conversation with one leaf, at generation 0 and epoch 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// The home tenant.
    pub tenant: TenantId,
    /// The kind.
    pub kind: ConversationKind,
    /// The MLS cipher suite.
    pub suite: u16,
    /// The policy it starts with.
    pub policy: Policy,
    /// The creating user.
    pub user: UserId,
    /// The creating device: leaf 0.
    pub device: DeviceId,
    /// SHA-256 of the leaf's signature key.
    pub key_hash: Digest,
    /// The state at epoch 0.
    pub group_state: GroupStateRef,
}

/// A message or commit of a device, as ingest accepted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// The bytes as received.
    pub sealed: Sealed,
    /// The envelope, parsed from `sealed.envelope`.
    pub envelope: Envelope,
    /// The tenant of the session.
    pub tenant: TenantId,
    /// SHA-256 of the signature key that the directory holds for the device.
    pub key_hash: Digest,
    /// The members' version ingest saw.
    pub members_version: u64,
    /// The policy version ingest saw.
    pub policy_version: u64,
    /// With a commit: the Welcome.
    pub welcome: Option<BlobRef>,
    /// With a commit: the group after it.
    pub group_state: Option<GroupStateRef>,
    /// With a commit: the devices it adds, as the directory knows them.
    pub added_keys: Vec<AddedKey>,
}

/// A device that a commit adds, as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedKey {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of its signature key.
    pub key_hash: Digest,
}

/// A server-side fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// A device was revoked: its leaves wait for removal.
    DeviceRevoked {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
    },
    /// A user left or was deactivated: all its leaves wait for removal.
    UserLeft {
        /// The user.
        user: UserId,
    },
    /// The conversation is set aside.
    Quarantine {
        /// A constant name.
        reason: String,
    },
}

/// The kind of a conversation. The numbers are those of `wardline.v1.ConversationKind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ConversationKind {
    /// Any number of users.
    Group = 1,
    /// Two users.
    Direct = 2,
    /// One user's own devices.
    SelfNotes = 3,
    /// A role's inbox.
    Inbox = 4,
}

/// Who may change the members. The numbers are those of `wardline.v1.MembershipRule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum MembershipRule {
    /// Every member.
    #[default]
    Members = 1,
    /// Admins only.
    Admins = 2,
}

/// What a conversation demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Rises with every change.
    pub version: u64,
    /// Who may add and remove other users.
    pub membership: MembershipRule,
    /// Days a message is kept; 0 keeps it.
    pub retention_days: u32,
}

/// Bytes by digest; they lie in the blobs table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobRef {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// How many bytes.
    pub length: u32,
}

/// The public state of an MLS group at an epoch, by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStateRef {
    /// The group's generation.
    pub generation: Generation,
    /// The epoch it describes.
    pub epoch: Epoch,
    /// The GroupInfo.
    pub group_info: BlobRef,
    /// The ratchet tree.
    pub ratchet_tree: BlobRef,
    /// The sealed group data.
    pub sealed_group_data: BlobRef,
}
