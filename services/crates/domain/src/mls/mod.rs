//! A reader of what MLS leaves in clear (RFC 9420): message headers, public commits, key packages, Welcomes, one-leaf
//! ratchet trees. Our own, because what `apply` computes from a commit must not change with a library's new version.
//!
//! Deliberately absent: every check of a signature, a MAC or a key. Devices make those; here bytes are only read, bounds
//! checked, without panics, and without more memory than the input takes.

mod commit;
mod header;
mod key_package;
mod leaf;
mod reader;
mod tree;
mod welcome;

use bytes::Bytes;

pub use self::commit::commit;
pub use self::header::header;
pub use self::key_package::key_package;
pub use self::tree::single_leaf;
pub use self::welcome::{slice_welcome, welcome_refs};

use crate::Digest;
use crate::envelope::{Epoch, Generation};
use crate::ids::{ConversationId, DeviceId, TenantId, UserId};

/// The most leaves one commit adds.
pub const MAX_ADDS: usize = 128;

/// The bytes are not what they should be. Constant texts: they reach diagnostics and clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidMls(pub &'static str);

/// What an MLSMessage's clear part says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The wire format.
    pub form: Form,
    /// From the group id.
    pub conversation: ConversationId,
    /// From the group id.
    pub generation: Generation,
    /// The epoch.
    pub epoch: Epoch,
    /// authenticated_data.
    pub authenticated_data: Bytes,
}

/// Which MLSMessage it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// PrivateMessage with content type application.
    PrivateApplication,
    /// PublicMessage with a commit by the member at this leaf.
    MemberCommit(u32),
    /// PublicMessage with a commit by a new member.
    NewMemberCommit,
}

/// What a public commit does to the roster. Proposals by value only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The header.
    pub header: Header,
    /// Leaves removed, in the commit's order.
    pub removes: Vec<u32>,
    /// Leaves added, in the commit's order.
    pub adds: Vec<AddedLeaf>,
    /// The leaf node of the update path, if any: the committer's new leaf.
    pub path_leaf: Option<LeafNode>,
}

/// An Add proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedLeaf {
    /// The suite of its key package.
    pub suite: u16,
    /// The leaf node of its key package.
    pub leaf: LeafNode,
    /// KeyPackageRef (RFC 9420 section 5.2), with the suite's hash; computed for suites 1 and 2 (SHA-256).
    pub key_package_ref: Digest,
}

/// What a leaf node says of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafNode {
    /// From the basic credential.
    pub credential: Credential,
    /// The signature key as encoded.
    pub signature_key: Bytes,
}

impl LeafNode {
    /// SHA-256 of the signature key.
    pub fn key_hash(&self) -> Digest {
        Digest::of(&self.signature_key)
    }
}

/// 0x01 ‖ tenant (16) ‖ principal (16) ‖ device (16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    /// The tenant.
    pub tenant: TenantId,
    /// The user, or the role the leaf speaks for.
    pub principal: UserId,
    /// The device.
    pub device: DeviceId,
}

/// A key package, as far as the directory checks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPackage {
    /// The suite.
    pub suite: u16,
    /// Its leaf.
    pub leaf: LeafNode,
    /// Its lifetime's start, in seconds since the Unix epoch.
    pub not_before: u64,
    /// Its lifetime's end, in seconds since the Unix epoch.
    pub not_after: u64,
    /// Whether it has the last_resort extension (0x000A).
    pub last_resort: bool,
    /// Its KeyPackageRef.
    pub reference: Digest,
}

/// conversation_id (16 bytes) ‖ generation (u32 big-endian).
pub fn group_id(conversation: ConversationId, generation: Generation) -> [u8; 20] {
    let mut id = [0; 20];
    id[..16].copy_from_slice(conversation.as_bytes());
    id[16..].copy_from_slice(&generation.0.to_be_bytes());
    id
}
