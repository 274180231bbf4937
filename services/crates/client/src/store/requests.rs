//! The one CreateConversation or Commit request that a conversation waits for: the bytes that are sent, and sent again.

use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};
use wardline_domain::envelope::Epoch;
use wardline_domain::{ConversationId, MessageId};
use wardline_proto::v1;

use super::Fixed;
use crate::error::Error;

/// What is requested.
#[derive(Clone)]
pub(crate) enum Request {
    Create(v1::CreateConversationRequest),
    Commit(v1::CommitRequest),
    External(v1::CommitRequest),
}

/// A request that waits.
pub(crate) struct Waiting {
    /// The commit's message; zeros for a Create.
    pub(crate) message: MessageId,
    pub(crate) request: Request,
    /// To be sent; else the feed will tell.
    pub(crate) to_send: bool,
    /// An attempt may have happened.
    pub(crate) uncertain: bool,
}

/// Reads it.
pub(crate) fn load(connection: &Connection, conversation: ConversationId) -> Result<Option<Waiting>, Error> {
    let mut select = connection
        .prepare_cached("SELECT kind, message, request, state, uncertain FROM requests WHERE conversation = ?")?;
    let row = select
        .query_row([conversation.as_bytes()], |row| {
            let message: Fixed<16> = row.get(1)?;
            let (kind, request): (u32, Vec<u8>) = (row.get(0)?, row.get(2)?);
            Ok((kind, message, request, row.get::<_, u32>(3)?, row.get(4)?))
        })
        .optional()?;
    let Some((kind, message, bytes, state, uncertain)) = row else { return Ok(None) };
    let commit = || v1::CommitRequest::decode(bytes.as_slice());
    let request = match kind {
        0 => v1::CreateConversationRequest::decode(bytes.as_slice()).map(Request::Create),
        1 => commit().map(Request::Commit),
        _ => commit().map(Request::External),
    };
    let request = request.map_err(|_| Error::Store("a stored request does not decode".into()))?;
    let message = MessageId::from_bytes(message.0);
    Ok(Some(Waiting { message, request, to_send: state == 0, uncertain }))
}

/// Adds one. The caller has seen that there is none.
pub(crate) fn insert(
    connection: &Connection,
    conversation: ConversationId,
    message: MessageId,
    request: &Request,
    epoch: Epoch,
) -> Result<(), Error> {
    let (kind, bytes) = match request {
        Request::Create(create) => (0, create.encode_to_vec()),
        Request::Commit(commit) => (1, commit.encode_to_vec()),
        Request::External(commit) => (2, commit.encode_to_vec()),
    };
    connection.execute(
        "INSERT INTO requests (conversation, kind, message, request, epoch, state) VALUES (?, ?, ?, ?, ?, 0)",
        params![conversation.as_bytes(), kind, message.as_bytes(), bytes, epoch.0],
    )?;
    Ok(())
}

/// It need not be sent again: the feed will tell.
pub(crate) fn set_sent(connection: &Connection, conversation: ConversationId, message: MessageId) -> Result<(), Error> {
    connection.execute(
        "UPDATE requests SET state = 1 WHERE conversation = ? AND message = ?",
        params![conversation.as_bytes(), message.as_bytes()],
    )?;
    Ok(())
}

/// Whether an attempt may have happened.
pub(crate) fn set_uncertain(
    connection: &Connection,
    conversation: ConversationId,
    uncertain: bool,
) -> Result<(), Error> {
    connection.execute(
        "UPDATE requests SET uncertain = ? WHERE conversation = ?",
        params![uncertain, conversation.as_bytes()],
    )?;
    Ok(())
}

/// Takes it out.
pub(crate) fn remove(connection: &Connection, conversation: ConversationId) -> Result<(), Error> {
    connection.execute("DELETE FROM requests WHERE conversation = ?", [conversation.as_bytes()])?;
    Ok(())
}
