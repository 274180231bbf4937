//! Watermarks: told by the feed, or asked for.

use std::sync::Arc;

use wardline_domain::ConversationId;
use wardline_proto::convert::ids;
use wardline_proto::v1;

use crate::core::Step;
use crate::device::Inner;
use crate::error::Error;
use crate::store::watermarks;
use crate::view::{Incoming, ReceiptView};

impl Step<'_> {
    /// Merges watermarks; tells those that moved.
    pub(crate) fn merge_watermarks(&mut self, marks: &[v1::Watermark]) -> Result<(), Error> {
        let mut moved = Vec::new();
        for mark in marks.iter().filter_map(parse) {
            if watermarks::merge(&self.tx, &mark)? {
                moved.push(mark);
            }
        }
        if !moved.is_empty() {
            self.told.push(Incoming::Receipts(moved));
        }
        Ok(())
    }
}

fn parse(mark: &v1::Watermark) -> Option<ReceiptView> {
    Some(ReceiptView {
        conversation: ids::conversation(&mark.conversation_id, "").ok()?,
        user: ids::user(&mark.user_id, "").ok()?,
        device: ids::device(&mark.device_id, "").ok()?,
        delivered: mark.delivered,
        read: mark.read,
        skipped: mark.skipped.iter().map(|range| (range.first, range.last)).collect(),
    })
}

/// Asks the receipt service.
pub(crate) async fn fetch(inner: &Arc<Inner>, conversation: ConversationId) -> Result<Vec<ReceiptView>, Error> {
    let marks = inner.rpc.receipts(conversation).await?;
    inner.step(|step| step.merge_watermarks(&marks))?;
    inner.read(|core| core.receipts(conversation))
}
