//! Stub.
use crate::error::Error;
use crate::view::{ConversationView, MemberView};
use rusqlite::Connection;
use wardline_domain::ConversationId;
pub(crate) fn conversation_view(_: &Connection, _: ConversationId) -> Result<Option<ConversationView>, Error> {
    todo!()
}
pub(crate) fn members(_: &Connection, _: ConversationId) -> Result<Vec<MemberView>, Error> {
    todo!()
}
