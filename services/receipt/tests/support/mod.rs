//! Stores, and short names for people.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use wardline_domain::{ConversationId, DeviceId, UserId};
use wardline_store::Stores;

pub fn user(n: u8) -> UserId {
    UserId::from_bytes([n; 16])
}

pub fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n ^ 0x80; 16])
}

/// Embedded stores in a folder that lives as long as they are used.
pub fn stores() -> (Stores, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (wardline_store::embedded::open(dir.path()).unwrap(), dir)
}

pub fn conversation() -> ConversationId {
    ConversationId::from_bytes([0xc0; 16])
}
