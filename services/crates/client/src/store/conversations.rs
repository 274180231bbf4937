//! Conversations: where the device stands in each.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use wardline_domain::envelope::Generation;
use wardline_domain::record::ConversationKind;
use wardline_domain::{ConversationId, DeviceId, Digest, UserId};
use wardline_proto::convert::record::kind_from;

use super::Fixed;
use crate::error::Error;
use crate::view::ConversationStatus;

/// A conversation's row.
#[derive(Clone)]
pub(crate) struct Conversation {
    pub(crate) id: ConversationId,
    pub(crate) kind: ConversationKind,
    pub(crate) suite: u16,
    pub(crate) generation: Generation,
    pub(crate) status: ConversationStatus,
    pub(crate) title: String,
    pub(crate) sequence: u64,
    pub(crate) chain: Digest,
    pub(crate) read: u64,
}

const STATUSES: [ConversationStatus; 6] = [
    ConversationStatus::Creating,
    ConversationStatus::Active,
    ConversationStatus::Joining,
    ConversationStatus::Broken,
    ConversationStatus::Removed,
    ConversationStatus::Untrusted,
];

fn from_row(row: &Row<'_>) -> rusqlite::Result<Conversation> {
    let (id, chain): (Fixed<16>, Fixed<32>) = (row.get(0)?, row.get(7)?);
    let status: usize = row.get(4)?;
    Ok(Conversation {
        id: ConversationId::from_bytes(id.0),
        kind: kind_from(row.get(1)?).unwrap_or(ConversationKind::Group),
        suite: row.get(2)?,
        generation: Generation(row.get(3)?),
        status: STATUSES.get(status).copied().unwrap_or(ConversationStatus::Broken),
        title: row.get(5)?,
        sequence: row.get(6)?,
        chain: Digest::from_bytes(chain.0),
        read: row.get(8)?,
    })
}

/// Reads one.
pub(crate) fn load(connection: &Connection, id: ConversationId) -> Result<Option<Conversation>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT id, kind, suite, generation, status, title, sequence, chain, read FROM conversations WHERE id = ?",
    )?;
    Ok(select.query_row([id.as_bytes()], from_row).optional()?)
}

/// Writes one.
pub(crate) fn save(connection: &Connection, it: &Conversation) -> Result<(), Error> {
    let status = STATUSES.iter().position(|status| *status == it.status).unwrap_or_default();
    let mut upsert = connection.prepare_cached(
        "INSERT OR REPLACE INTO conversations (id, kind, suite, generation, status, title, sequence, chain, read)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    upsert.execute(params![
        it.id.as_bytes(),
        it.kind as u32,
        it.suite,
        it.generation.0,
        status,
        it.title,
        it.sequence,
        it.chain.as_bytes(),
        it.read
    ])?;
    Ok(())
}

/// All ids, in order.
pub(crate) fn ids(connection: &Connection) -> Result<Vec<ConversationId>, Error> {
    let mut select = connection.prepare_cached("SELECT id FROM conversations ORDER BY id")?;
    let rows = select.query_map([], |row| Ok(ConversationId::from_bytes(row.get::<_, Fixed<16>>(0)?.0)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Conversations with something to do for the outbox worker.
pub(crate) fn with_work(connection: &Connection) -> Result<Vec<ConversationId>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT DISTINCT conversation FROM outbox WHERE state < 2
         UNION SELECT conversation FROM requests WHERE state = 0
         UNION SELECT id FROM conversations WHERE status = 3",
    )?;
    let rows = select.query_map([], |row| Ok(ConversationId::from_bytes(row.get::<_, Fixed<16>>(0)?.0)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Marks as read; never moves back, never beyond what is there.
pub(crate) fn mark_read(connection: &Connection, id: ConversationId, sequence: u64) -> Result<(), Error> {
    connection.execute(
        "UPDATE conversations SET read = min(?2, sequence) WHERE id = ?1 AND read < min(?2, sequence)",
        params![id.as_bytes(), sequence],
    )?;
    Ok(())
}

/// Records that the device will never read `first` to `last`; joins it to the range before it.
pub(crate) fn skip(connection: &Connection, id: ConversationId, first: u64, last: u64) -> Result<(), Error> {
    let joined = connection.execute(
        "UPDATE skipped SET last = max(last, ?3) WHERE conversation = ?1 AND first <= ?2 AND last + 1 >= ?2",
        params![id.as_bytes(), first, last],
    )?;
    if joined == 0 {
        connection.execute("INSERT INTO skipped VALUES (?, ?, ?)", params![id.as_bytes(), first, last])?;
    }
    Ok(())
}

/// The ranges that were skipped.
pub(crate) fn skipped(connection: &Connection, id: ConversationId) -> Result<Vec<(u64, u64)>, Error> {
    let mut select =
        connection.prepare_cached("SELECT first, last FROM skipped WHERE conversation = ? ORDER BY first")?;
    let rows = select.query_map([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The leaves that wait for removal.
pub(crate) fn pending_removals(connection: &Connection, id: ConversationId) -> Result<Vec<(UserId, DeviceId)>, Error> {
    let mut select = connection.prepare_cached("SELECT user, device FROM pending_removals WHERE conversation = ?")?;
    let rows = select.query_map([id.as_bytes()], |row| {
        let (user, device): (Fixed<16>, Fixed<16>) = (row.get(0)?, row.get(1)?);
        Ok((UserId::from_bytes(user.0), DeviceId::from_bytes(device.0)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Replaces them.
pub(crate) fn set_pending_removals(
    connection: &Connection,
    id: ConversationId,
    pending: &[(UserId, DeviceId)],
) -> Result<(), Error> {
    connection.execute("DELETE FROM pending_removals WHERE conversation = ?", [id.as_bytes()])?;
    for (user, device) in pending {
        connection.execute(
            "INSERT OR IGNORE INTO pending_removals VALUES (?, ?, ?)",
            params![id.as_bytes(), user.as_bytes(), device.as_bytes()],
        )?;
    }
    Ok(())
}

/// Whether the title could not be read when the device joined, and is to be read at a later epoch.
pub(crate) fn set_untitled(connection: &Connection, id: ConversationId, untitled: bool) -> Result<(), Error> {
    let change = if untitled {
        "INSERT OR IGNORE INTO untitled VALUES (?)"
    } else {
        "DELETE FROM untitled WHERE conversation = ?"
    };
    connection.execute(change, [id.as_bytes()])?;
    Ok(())
}

/// Conversations whose title is still to be read.
pub(crate) fn untitled(connection: &Connection) -> Result<Vec<ConversationId>, Error> {
    let mut select = connection.prepare_cached("SELECT conversation FROM untitled ORDER BY conversation")?;
    let rows = select.query_map([], |row| Ok(ConversationId::from_bytes(row.get::<_, Fixed<16>>(0)?.0)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
