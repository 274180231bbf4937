//! The roster of a conversation: which leaf of its MLS group is which device. Derived from the public commits, never
//! declared.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::Digest;
use crate::envelope::Epoch;
use crate::ids::{DeviceId, TenantId, UserId};

/// The role of a leaf's user. The numbers are those of `wardline.v1.MemberRole`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Role {
    /// Reads and writes.
    Member = 1,
    /// May also change members where the policy reserves that.
    Admin = 2,
    /// Keeps the record for the health system.
    Archive = 3,
    /// Bridges to another system.
    Gateway = 4,
}

/// One leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The user's tenant.
    pub tenant: TenantId,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of its signature key.
    pub key_hash: Digest,
    /// The user's role.
    pub role: Role,
    /// The epoch in which it joined.
    pub joined: Epoch,
    /// Delivery has stopped; a commit must remove the leaf.
    pub removal_pending: bool,
}

/// Leaves by index, with a version that rises with every change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster {
    version: u64,
    leaves: BTreeMap<u32, Leaf>,
}

/// What one record changed: `None` removes a leaf. Leads from version `to - 1` to version `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterDelta {
    /// The version it leads to.
    pub to: u64,
    /// The leaves as they are after it.
    pub leaves: BTreeMap<u32, Option<Leaf>>,
}

/// A user and its devices that receive events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The user.
    pub user: UserId,
    /// Its devices, sorted.
    pub devices: Vec<DeviceId>,
}

/// Users by id, each once, with the devices that receive. Shared: one roster version has one audience.
pub type Audience = Arc<[Recipient]>;

/// The bytes are not those of a roster or delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a roster: {0}")]
pub struct InvalidRoster(pub &'static str);

#[allow(unused_variables, clippy::todo, missing_docs)]
impl Roster {
    /// Rises by one with every change; 0 is the empty roster of a conversation that does not exist yet.
    pub fn version(&self) -> u64 {
        self.version
    }
    /// The leaves, by index.
    pub fn leaves(&self) -> &BTreeMap<u32, Leaf> {
        &self.leaves
    }
    /// The leaf of a device.
    pub fn leaf_of(&self, user: UserId, device: DeviceId) -> Option<(u32, &Leaf)> {
        todo!()
    }
    /// Whether the user has a leaf that does not wait for removal.
    pub fn has_user(&self, user: UserId) -> bool {
        todo!()
    }
    /// The leaves that wait for removal.
    pub fn removal_pending(&self) -> Vec<(UserId, DeviceId)> {
        todo!()
    }
    /// Those who receive: every leaf that does not wait for removal.
    pub fn audience(&self) -> Audience {
        todo!()
    }
    /// The distinct users.
    pub fn users(&self) -> Vec<UserId> {
        todo!()
    }
    /// Applies a delta. The caller's duty: deltas in order, none left out.
    pub fn apply(&mut self, delta: &RosterDelta) -> Result<(), InvalidRoster> {
        todo!()
    }
    /// The whole roster in canonical bytes (version byte first).
    pub fn encode(&self) -> Bytes {
        todo!()
    }
    /// Reads what [`Roster::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRoster> {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo)]
impl RosterDelta {
    /// The delta in canonical bytes (version byte first).
    pub fn encode(&self) -> Bytes {
        todo!()
    }
    /// Reads what [`RosterDelta::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRoster> {
        todo!()
    }
}
