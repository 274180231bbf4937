//! Stub.
pub(crate) mod worker;
use crate::content::{ContentId, Outgoing};
use crate::core::{Identity, Step};
use crate::error::Error;
use crate::view::MessageState;
use rusqlite::Connection;
use wardline_domain::ConversationId;
pub(crate) fn state(
    _: &Connection,
    _: &Identity,
    _: ConversationId,
    _: ContentId,
) -> Result<Option<MessageState>, Error> {
    todo!()
}
impl Step<'_> {
    pub(crate) fn queue(&mut self, _: ConversationId, _: &Outgoing) -> Result<ContentId, Error> {
        todo!()
    }
}
