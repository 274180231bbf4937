//! Receipts and ids between records, rows and the public API.
//!
//! Deliberately absent: events ([`crate::event`]).

use wardline_domain::Timestamp;
use wardline_proto::convert::{Violation, ids, time};
use wardline_proto::internal::v1 as wire;
use wardline_proto::v1;
use wardline_store::watermarks::WatermarkRow;

/// For devices.
pub(crate) fn watermark(row: &WatermarkRow) -> v1::Watermark {
    v1::Watermark {
        conversation_id: row.conversation.to_string(),
        user_id: row.user.to_string(),
        device_id: row.device.to_string(),
        delivered: row.delivered,
        read: row.read,
        skipped: row.skipped.iter().map(|&(first, last)| v1::SequenceRange { first, last }).collect(),
        when: Some(time::to_wire(row.when)),
    }
}

/// From a record.
pub(crate) fn watermark_row(record: &wire::WatermarkRecord) -> Result<WatermarkRow, Violation> {
    if !record.skipped.len().is_multiple_of(2) {
        return Err(Violation::new("watermark.skipped", "must be pairs"));
    }
    let skipped = record.skipped.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?)));
    Ok(WatermarkRow {
        conversation: ids::conversation_bytes(&record.conversation_id, "watermark.conversation_id")?,
        user: ids::user_bytes(&record.user_id, "watermark.user_id")?,
        device: ids::device_bytes(&record.device_id, "watermark.device_id")?,
        delivered: record.delivered,
        read: record.read,
        skipped: skipped.collect(),
        when: Timestamp::from_micros(record.when_us),
    })
}
