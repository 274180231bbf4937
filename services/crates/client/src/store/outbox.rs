//! What this device has written and the conversation has not sequenced.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use wardline_domain::envelope::{Epoch, Generation, Sealed, Urgency};
use wardline_domain::{ConversationId, MessageId, Timestamp};

use super::Fixed;
use crate::content::{ContentId, Outgoing, Plain};
use crate::error::Error;

/// How far a row has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Plaintext only, or sealed for an epoch that is over.
    Waiting = 0,
    /// Sealed; to be sent, and sent again while the outcome is unknown.
    Sealed = 1,
    /// The server has it.
    Accepted = 2,
    /// It will not be sequenced.
    Failed = 3,
}

/// A row.
pub(crate) struct Queued {
    pub(crate) id: i64,
    pub(crate) content_id: ContentId,
    pub(crate) content: Vec<u8>,
    pub(crate) urgency: Urgency,
    pub(crate) respond_by: Option<Timestamp>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) state: State,
    pub(crate) uncertain: bool,
    pub(crate) sealing: Option<Sealing>,
}

/// What a row was sealed as.
pub(crate) struct Sealing {
    pub(crate) message: MessageId,
    pub(crate) sealed: Sealed,
    pub(crate) generation: Generation,
    pub(crate) epoch: Epoch,
}

const COLUMNS: &str = "id, content_id, content, urgency, respond_by, expires_at, state, uncertain, message, envelope, \
                       mls_message, generation, epoch";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Queued> {
    let time = |index| row.get::<_, Option<u64>>(index).map(|at| at.map(Timestamp::from_micros));
    let sealing = match row.get::<_, Option<Fixed<16>>>(8)? {
        None => None,
        Some(message) => Some(Sealing {
            message: MessageId::from_bytes(message.0),
            sealed: Sealed {
                envelope: Bytes::from(row.get::<_, Vec<u8>>(9)?),
                mls_message: Bytes::from(row.get::<_, Vec<u8>>(10)?),
            },
            generation: Generation(row.get(11)?),
            epoch: Epoch(row.get(12)?),
        }),
    };
    Ok(Queued {
        id: row.get(0)?,
        content_id: ContentId(row.get::<_, Fixed<16>>(1)?.0),
        content: row.get(2)?,
        urgency: match row.get::<_, u32>(3)? {
            2 => Urgency::Urgent,
            3 => Urgency::Stat,
            _ => Urgency::Routine,
        },
        respond_by: time(4)?,
        expires_at: time(5)?,
        state: match row.get::<_, u32>(6)? {
            0 => State::Waiting,
            1 => State::Sealed,
            2 => State::Accepted,
            _ => State::Failed,
        },
        uncertain: row.get(7)?,
        sealing,
    })
}

/// Adds plaintext.
pub(crate) fn queue(
    connection: &Connection,
    conversation: ConversationId,
    plain: &Plain,
    outgoing: &Outgoing,
) -> Result<(), Error> {
    connection.execute(
        "INSERT INTO outbox (conversation, content_id, content, urgency, respond_by, expires_at, state)
         VALUES (?, ?, ?, ?, ?, ?, 0)",
        params![
            conversation.as_bytes(),
            plain.id.as_bytes(),
            plain.bytes,
            outgoing.urgency as u32,
            outgoing.respond_by.map(Timestamp::as_micros),
            outgoing.expires_at.map(Timestamp::as_micros)
        ],
    )?;
    Ok(())
}

/// The oldest row that is to be sealed or sent.
pub(crate) fn next(connection: &Connection, conversation: ConversationId) -> Result<Option<Queued>, Error> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM outbox WHERE conversation = ? AND state < 2 ORDER BY id LIMIT 1"
    ))?;
    Ok(select.query_row([conversation.as_bytes()], from_row).optional()?)
}

/// The row that was sealed as `message`.
pub(crate) fn by_message(
    connection: &Connection,
    conversation: ConversationId,
    message: MessageId,
) -> Result<Option<Queued>, Error> {
    let mut select =
        connection.prepare_cached(&format!("SELECT {COLUMNS} FROM outbox WHERE conversation = ? AND message = ?"))?;
    Ok(select.query_row(params![conversation.as_bytes(), message.as_bytes()], from_row).optional()?)
}

/// The state of content that is still here.
pub(crate) fn state_of(
    connection: &Connection,
    conversation: ConversationId,
    content: ContentId,
) -> Result<Option<State>, Error> {
    let mut select = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM outbox WHERE conversation = ? AND content_id = ?"))?;
    let row = select.query_row(params![conversation.as_bytes(), content.as_bytes()], from_row).optional()?;
    Ok(row.map(|row| row.state))
}

/// Accepted rows of a conversation: their messages.
pub(crate) fn accepted(connection: &Connection, conversation: ConversationId) -> Result<Vec<MessageId>, Error> {
    let mut select =
        connection.prepare_cached("SELECT message FROM outbox WHERE conversation = ? AND state = 2 ORDER BY id")?;
    let rows = select.query_map([conversation.as_bytes()], |row| row.get::<_, Fixed<16>>(0))?;
    Ok(rows.map(|row| row.map(|id| MessageId::from_bytes(id.0))).collect::<Result<_, _>>()?)
}

/// Saves the sealed bytes, about to be sent.
pub(crate) fn seal(connection: &Connection, id: i64, sealing: &Sealing) -> Result<(), Error> {
    connection.execute(
        "UPDATE outbox SET state = 1, uncertain = 1, message = ?, envelope = ?, mls_message = ?, generation = ?, epoch = ?
         WHERE id = ?",
        params![
            sealing.message.as_bytes(),
            sealing.sealed.envelope.as_ref(),
            sealing.sealed.mls_message.as_ref(),
            sealing.generation.0,
            sealing.epoch.0,
            id
        ],
    )?;
    Ok(())
}

/// The server has what was sealed as `message`; no change when the row has moved on meanwhile.
pub(crate) fn set_accepted(connection: &Connection, id: i64, message: MessageId) -> Result<(), Error> {
    connection.execute(
        "UPDATE outbox SET state = 2 WHERE id = ? AND message = ? AND state = 1",
        params![id, message.as_bytes()],
    )?;
    Ok(())
}

/// Forgets how a row was sealed: it may be sealed again in the same epoch.
pub(crate) fn unseal(connection: &Connection, id: i64) -> Result<(), Error> {
    connection.execute(
        "UPDATE outbox SET state = 0, message = NULL, envelope = NULL, mls_message = NULL, generation = NULL,
         epoch = NULL WHERE id = ?",
        [id],
    )?;
    Ok(())
}

/// Moves a row. Its sealed bytes stay until it is sealed again.
pub(crate) fn set_state(connection: &Connection, id: i64, state: State) -> Result<(), Error> {
    connection.execute("UPDATE outbox SET state = ? WHERE id = ?", params![state as u32, id])?;
    Ok(())
}

/// Whether an attempt may have happened.
pub(crate) fn set_uncertain(connection: &Connection, id: i64, uncertain: bool) -> Result<(), Error> {
    connection.execute("UPDATE outbox SET uncertain = ? WHERE id = ?", params![uncertain, id])?;
    Ok(())
}

/// Whatever was sealed before `epoch` and is not sequenced yet never will be: it is to be sealed again.
pub(crate) fn requeue_before(
    connection: &Connection,
    conversation: ConversationId,
    generation: Generation,
    epoch: Epoch,
) -> Result<(), Error> {
    connection.execute(
        "UPDATE outbox SET state = 0 WHERE conversation = ?1 AND state IN (1, 2)
         AND (generation < ?2 OR (generation = ?2 AND epoch < ?3))",
        params![conversation.as_bytes(), generation.0, epoch.0],
    )?;
    Ok(())
}

/// Takes a row out.
pub(crate) fn remove(connection: &Connection, id: i64) -> Result<(), Error> {
    connection.execute("DELETE FROM outbox WHERE id = ?", [id])?;
    Ok(())
}

/// How many rows have no place yet and may get one.
pub(crate) fn unsequenced(connection: &Connection) -> Result<u64, Error> {
    Ok(connection.query_row("SELECT count(*) FROM outbox WHERE state < 3", [], |row| row.get(0))?)
}
