//! Stub.
use crate::device::{Inner, NewConversation};
use crate::error::Error;
use std::sync::Arc;
use wardline_domain::{ConversationId, DeviceId, UserId};
pub(crate) async fn create_conversation(_: &Arc<Inner>, _: NewConversation) -> Result<ConversationId, Error> {
    todo!()
}
pub(crate) async fn add_users(_: &Arc<Inner>, _: ConversationId, _: &[UserId]) -> Result<(), Error> {
    todo!()
}
pub(crate) async fn remove(
    _: &Arc<Inner>,
    _: ConversationId,
    _: impl Fn(UserId, DeviceId) -> bool,
) -> Result<(), Error> {
    todo!()
}
pub(crate) async fn leave(_: &Arc<Inner>, _: ConversationId) -> Result<(), Error> {
    todo!()
}
pub(crate) async fn rejoin(_: &Arc<Inner>, _: ConversationId) -> Result<(), Error> {
    todo!()
}
