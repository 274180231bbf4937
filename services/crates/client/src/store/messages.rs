//! What was sequenced, as this device has it.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Timestamp, UserId};

use super::Fixed;
use crate::content::{self, ContentId};
use crate::error::Error;
use crate::view::{HistoryEntry, HistoryKind};

const COLUMNS: &str =
    "conversation, sequence, sender, device, message, kind, content_id, content, payload, chain, accepted_at";

/// What one sequence is, with its plaintext as received.
pub(crate) enum Stored {
    Content(ContentId, Vec<u8>),
    Repeat(ContentId),
    Commit,
    Unreadable,
}

/// Writes one. The kind of `entry` follows from `stored`.
pub(crate) fn insert(connection: &Connection, entry: &HistoryEntry, stored: &Stored) -> Result<(), Error> {
    let (kind, id, content) = match stored {
        Stored::Content(id, content) => (1, Some(id), Some(content)),
        Stored::Repeat(id) => (2, Some(id), None),
        Stored::Commit => (3, None, None),
        Stored::Unreadable => (4, None, None),
    };
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO messages (conversation, sequence, sender, device, message, kind, content_id, content,
         payload, chain, accepted_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    insert.execute(params![
        entry.conversation.as_bytes(),
        entry.sequence,
        entry.sender.as_bytes(),
        entry.device.as_bytes(),
        entry.message.as_bytes(),
        kind,
        id.map(ContentId::as_bytes),
        content,
        entry.payload.as_bytes(),
        entry.chain.as_bytes(),
        entry.accepted_at.map(Timestamp::as_micros)
    ])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<HistoryEntry> {
    let id = |index| row.get::<_, Fixed<16>>(index).map(|id| id.0);
    let content_id = || row.get::<_, Option<Fixed<16>>>(6).map(|id| ContentId(id.map_or([0; 16], |id| id.0)));
    let kind = match row.get::<_, u32>(5)? {
        1 => {
            let content: Vec<u8> = row.get(7)?;
            HistoryKind::Content { id: content_id()?, body: content::decode(&content) }
        }
        2 => HistoryKind::Repeat { id: content_id()? },
        3 => HistoryKind::Commit,
        _ => HistoryKind::Unreadable,
    };
    Ok(HistoryEntry {
        conversation: ConversationId::from_bytes(id(0)?),
        sequence: row.get(1)?,
        sender: UserId::from_bytes(id(2)?),
        device: DeviceId::from_bytes(id(3)?),
        message: MessageId::from_bytes(id(4)?),
        kind,
        payload: Digest::from_bytes(row.get::<_, Fixed<32>>(8)?.0),
        chain: Digest::from_bytes(row.get::<_, Fixed<32>>(9)?.0),
        accepted_at: row.get::<_, Option<u64>>(10)?.map(Timestamp::from_micros),
    })
}

/// A conversation's history, in order.
pub(crate) fn history(connection: &Connection, conversation: ConversationId) -> Result<Vec<HistoryEntry>, Error> {
    let mut select = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM messages WHERE conversation = ? ORDER BY sequence"))?;
    let rows = select.query_map([conversation.as_bytes()], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The sequence under which a device's content counts.
pub(crate) fn sequence_of_content(
    connection: &Connection,
    conversation: ConversationId,
    device: DeviceId,
    content: ContentId,
) -> Result<Option<u64>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT sequence FROM messages WHERE conversation = ? AND content_id = ? AND device = ? AND kind = 1",
    )?;
    let key = params![conversation.as_bytes(), content.as_bytes(), device.as_bytes()];
    Ok(select.query_row(key, |row| row.get(0)).optional()?)
}

/// Whether a device's message was sequenced.
pub(crate) fn has_message(
    connection: &Connection,
    conversation: ConversationId,
    device: DeviceId,
    message: MessageId,
) -> Result<bool, Error> {
    let mut select = connection
        .prepare_cached("SELECT 1 FROM messages WHERE conversation = ? AND device = ? AND message = ? LIMIT 1")?;
    Ok(select.exists(params![conversation.as_bytes(), device.as_bytes(), message.as_bytes()])?)
}
