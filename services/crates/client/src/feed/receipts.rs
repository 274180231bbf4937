//! Stub.
use crate::device::Inner;
use crate::error::Error;
use crate::view::ReceiptView;
use std::sync::Arc;
use wardline_domain::ConversationId;
pub(crate) async fn fetch(_: &Arc<Inner>, _: ConversationId) -> Result<Vec<ReceiptView>, Error> {
    todo!()
}
