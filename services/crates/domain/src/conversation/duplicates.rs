//! Which ids are provably new, without a read.
//!
//! The law: every id of a device that has an outcome is at most the device's entry in `newest`; without an entry, at most
//! `floor`. So an id above that bound has no outcome, and everything here keeps the law:
//! - every submission that is no repeat is noted, rejected ones too, since they have outcome rows;
//! - a device enters `newest` while it is a member, at no less than `floor`; else its id raises `floor`;
//! - an entry that goes, evicted or because its device is no member any more, raises `floor`;
//! - a conversation starts with `floor` at the last id of the millisecond it was accepted in, because submissions before
//!   that have outcome rows (CONVERSATION_UNKNOWN) and no head to be noted in.
//!
//! Deliberately absent: devices that are no members. One that asks often may raise `floor`, which costs a read for senders
//! without an entry, but it can push nobody out of `newest`. Also absent: an id ahead of its time sent before the
//! conversation existed. Ingest lets none pass that is more than five minutes ahead, and no honest device uses an id again.

use super::{Head, Newest, RECENT_SENDERS};
use crate::ids::{DeviceId, MessageId};
use crate::position::Position;
use crate::roster::Roster;
use crate::time::Timestamp;

/// Whether the head proves that the device's id has no outcome yet.
pub(super) fn is_new(head: &Head, device: DeviceId, message: MessageId) -> bool {
    match head.newest.get(&device) {
        Some(newest) => message > newest.message,
        None => Some(message) > head.floor,
    }
}

/// Notes an id that gets an outcome at `at`. `roster` is that after the record.
pub(super) fn note(head: &mut Head, roster: &Roster, device: DeviceId, message: MessageId, at: Position) {
    let known = head.newest.get(&device).map(|newest| newest.message);
    let member = roster.leaf_of_device(device).is_some_and(|(_, leaf)| !leaf.removal_pending);
    if known.is_none() && !member {
        raise_floor(head, message);
        return;
    }
    let bound = known.or(head.floor).map_or(message, |bound| bound.max(message));
    head.newest.insert(device, Newest { message: bound, at });
    if head.newest.len() > RECENT_SENDERS {
        let oldest = head.newest.iter().min_by_key(|(_, newest)| newest.at).map(|(device, _)| *device);
        if let Some(oldest) = oldest {
            forget(head, oldest);
        }
    }
}

/// Drops the entries of devices that are no members any more.
pub(super) fn forget_former(head: &mut Head, roster: &Roster) {
    let is_member = |device: &DeviceId| roster.leaf_of_device(*device).is_some_and(|(_, leaf)| !leaf.removal_pending);
    let former: Vec<DeviceId> = head.newest.keys().filter(|device| !is_member(device)).copied().collect();
    for device in former {
        forget(head, device);
    }
}

/// The floor of a conversation created by a record accepted at `accepted_at`.
pub(super) fn first_floor(accepted_at: Timestamp) -> MessageId {
    let [_, _, millis @ ..] = accepted_at.as_millis().to_be_bytes();
    let mut id = [0xff; 16];
    id[..6].copy_from_slice(&millis);
    MessageId::from_bytes(id)
}

fn forget(head: &mut Head, device: DeviceId) {
    if let Some(gone) = head.newest.remove(&device) {
        raise_floor(head, gone.message);
    }
}

fn raise_floor(head: &mut Head, message: MessageId) {
    head.floor = head.floor.max(Some(message));
}
