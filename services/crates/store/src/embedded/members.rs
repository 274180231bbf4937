//! Table `members`: conversation, what, version → a delta or a snapshot.

use bytes::Bytes;
use fjall::OwnedWriteBatch;
use wardline_domain::ConversationId;
use wardline_domain::roster::{Roster, RosterDelta};

use super::codec::{Decoder, Encoder, u64_at};
use super::engine::{Engine, key, unusable};
use crate::Result;
use crate::conversations::MembersRow;

const DELTA: u8 = 0;
const SNAPSHOT: u8 = 1;

/// Where the version stands in a key: behind conversation and what.
const VERSION_AT: usize = 17;

fn members_key(conversation: ConversationId, what: u8, version: u64) -> Vec<u8> {
    key(&[conversation.as_bytes(), &[what], &version.to_be_bytes()])
}

/// A row's keys and values.
pub(super) fn encode(row: &MembersRow) -> Vec<(Vec<u8>, Bytes)> {
    let value = |bytes: Bytes| {
        let mut value = Encoder::new(8 + bytes.len());
        value.time(row.accepted_at).raw(&bytes);
        value.finish()
    };
    let delta = (members_key(row.conversation, DELTA, row.version), value(row.delta.encode()));
    let snapshot = row
        .snapshot
        .as_ref()
        .map(|roster| (members_key(row.conversation, SNAPSHOT, row.version), value(roster.encode())));
    std::iter::once(delta).chain(snapshot).collect()
}

/// Adds rows to a batch.
pub(super) fn insert(engine: &Engine, batch: &mut OwnedWriteBatch, rows: Vec<(Vec<u8>, Bytes)>) {
    for (key, value) in rows {
        batch.insert(&engine.tables.members.keyspace, key, value);
    }
}

fn payload(table: &'static str, value: Bytes) -> Result<Bytes> {
    let mut value = Decoder::new(table, value)?;
    value.time()?;
    Ok(value.rest())
}

/// The nearest snapshot, then deltas. A version that a torn batch left out ends the walk: what lies behind it is written
/// again before any head names it.
pub(super) fn roster(engine: &Engine, conversation: ConversationId, at_most: u64) -> Result<Roster> {
    let table = &engine.tables.members;
    let mut roster = Roster::default();
    let of = |what, from, to| table.range(&members_key(conversation, what, from), &members_key(conversation, what, to));
    if let Some(row) = of(SNAPSHOT, 0, at_most).next_back() {
        let (key, value) = row?;
        roster = Roster::decode(&payload(table.name, value)?).map_err(|error| unusable(format!("members: {error}")))?;
        if roster.version() != u64_at(table.name, &key, VERSION_AT)? {
            return Err(unusable("members: a snapshot of another version than its key's"));
        }
    }
    for row in of(DELTA, roster.version().saturating_add(1), at_most) {
        let (_, value) = row?;
        let bytes = payload(table.name, value)?;
        let delta = RosterDelta::decode(&bytes).map_err(|error| unusable(format!("members: {error}")))?;
        if Some(delta.to) != roster.version().checked_add(1) {
            break;
        }
        roster.apply(&delta).map_err(|error| unusable(format!("members: {error}")))?;
    }
    Ok(roster)
}
