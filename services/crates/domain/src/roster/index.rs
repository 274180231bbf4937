//! What is asked of a roster for every message, computed once per version.
//!
//! Deliberately absent: anything that is stored or compared. Two rosters with the same leaves have the same index.

use std::collections::{BTreeMap, BTreeSet};

use super::{Audience, Leaf, Recipient};
use crate::ids::{DeviceId, UserId};

/// Derived from the leaves of one roster version.
#[derive(Debug, Clone)]
pub(super) struct Index {
    /// Where each device's first leaf is.
    pub(super) device_leaves: BTreeMap<DeviceId, u32>,
    /// Those who have a leaf, waiting for removal or not.
    pub(super) users: BTreeSet<UserId>,
    /// The leaves that wait for removal.
    pub(super) removal_pending: Vec<u32>,
    /// Those who receive.
    pub(super) audience: Audience,
}

impl Index {
    pub(super) fn of(leaves: &BTreeMap<u32, Leaf>) -> Self {
        let mut device_leaves = BTreeMap::new();
        for (index, leaf) in leaves {
            device_leaves.entry(leaf.device).or_insert(*index);
        }
        Self {
            device_leaves,
            users: leaves.values().map(|leaf| leaf.user).collect(),
            removal_pending: leaves.iter().filter(|(_, leaf)| leaf.removal_pending).map(|(index, _)| *index).collect(),
            audience: audience_of(leaves.values().filter(|leaf| !leaf.removal_pending)),
        }
    }
}

/// The leaves' devices by user.
pub(crate) fn audience_of<'a>(leaves: impl Iterator<Item = &'a Leaf>) -> Audience {
    let mut users: BTreeMap<UserId, BTreeSet<DeviceId>> = BTreeMap::new();
    for leaf in leaves {
        users.entry(leaf.user).or_default().insert(leaf.device);
    }
    users.into_iter().map(|(user, devices)| Recipient { user, devices: devices.into_iter().collect() }).collect()
}
