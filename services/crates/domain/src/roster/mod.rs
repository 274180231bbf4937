//! The roster of a conversation: which leaf of its MLS group is which device. Derived from the public commits, never
//! declared.
//!
//! Deliberately absent: rules about who may change it. Those are the conversation's.

mod encoding;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use self::index::Index;
pub(crate) use self::index::audience_of;
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
#[derive(Debug, Clone, Default)]
pub struct Roster {
    version: u64,
    leaves: BTreeMap<u32, Leaf>,
    index: OnceLock<Index>,
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

impl Roster {
    /// From its parts.
    pub(crate) fn new(version: u64, leaves: BTreeMap<u32, Leaf>) -> Self {
        Self { version, leaves, index: OnceLock::new() }
    }

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
        self.leaf_of_device(device).filter(|(_, leaf)| leaf.user == user)
    }

    /// The leaf of a device, whoever its user is.
    pub(crate) fn leaf_of_device(&self, device: DeviceId) -> Option<(u32, &Leaf)> {
        let index = *self.index().device_leaves.get(&device)?;
        self.leaves.get(&index).map(|leaf| (index, leaf))
    }

    /// Whether the user has a leaf that does not wait for removal.
    pub fn has_user(&self, user: UserId) -> bool {
        self.index().audience.binary_search_by_key(&user, |recipient| recipient.user).is_ok()
    }

    /// The leaves that wait for removal.
    pub fn removal_pending(&self) -> Vec<(UserId, DeviceId)> {
        let pending = &self.index().removal_pending;
        pending.iter().filter_map(|index| self.leaves.get(index)).map(|leaf| (leaf.user, leaf.device)).collect()
    }

    /// The indexes of the leaves that wait for removal.
    pub(crate) fn pending_leaves(&self) -> &[u32] {
        &self.index().removal_pending
    }

    /// Those who receive: every leaf that does not wait for removal. Costs a walk over the leaves once per version.
    pub fn audience(&self) -> Audience {
        Arc::clone(&self.index().audience)
    }

    /// The distinct users, by id; those whose leaves wait for removal included.
    pub fn users(&self) -> Vec<UserId> {
        self.user_set().iter().copied().collect()
    }

    /// The distinct users.
    pub(crate) fn user_set(&self) -> &BTreeSet<UserId> {
        &self.index().users
    }

    /// Applies a delta. The caller's duty: deltas in order, none left out.
    ///
    /// # Errors
    /// When the delta leads to another version than the next, or removes a leaf that is not there. The roster is as before
    /// then.
    pub fn apply(&mut self, delta: &RosterDelta) -> Result<(), InvalidRoster> {
        if self.version.checked_add(1) != Some(delta.to) {
            return Err(InvalidRoster("the delta does not lead to the next version"));
        }
        if delta.leaves.iter().any(|(index, leaf)| leaf.is_none() && !self.leaves.contains_key(index)) {
            return Err(InvalidRoster("the delta removes a leaf that is not there"));
        }
        for (index, leaf) in &delta.leaves {
            match leaf {
                Some(leaf) => self.leaves.insert(*index, leaf.clone()),
                None => self.leaves.remove(index),
            };
        }
        self.version = delta.to;
        self.index = OnceLock::new();
        Ok(())
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of(&self.leaves))
    }
}

impl PartialEq for Roster {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.leaves == other.leaves
    }
}

impl Eq for Roster {}
