//! Stub.
use crate::error::Error;
use rusqlite::Connection;
use wardline_domain::ConversationId;
pub(crate) fn ids(_: &Connection) -> Result<Vec<ConversationId>, Error> {
    todo!()
}
pub(crate) fn mark_read(_: &Connection, _: ConversationId, _: u64) -> Result<(), Error> {
    todo!()
}
