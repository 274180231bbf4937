//! Stub.
use crate::error::Error;
use crate::view::HistoryEntry;
use rusqlite::Connection;
use wardline_domain::ConversationId;
pub(crate) fn history(_: &Connection, _: ConversationId) -> Result<Vec<HistoryEntry>, Error> {
    todo!()
}
