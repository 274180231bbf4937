//! Records of the topic `receipts`, parsed.
//!
//! Deliberately absent: whether the users are members. Presence reports only devices that it delivered to.

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::{ConversationId, DeviceId, Timestamp, UserId};
use wardline_log::LogRecord;
use wardline_log::trace::TraceParent;
use wardline_proto::convert::{Violation, ids};
use wardline_proto::internal::v1 as wire;

/// What one instance of presence flushed for one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flush {
    pub(crate) conversation: ConversationId,
    pub(crate) at: Timestamp,
    pub(crate) reports: Vec<Report>,
    /// Who sent the messages in the ranges.
    pub(crate) senders: Vec<UserId>,
    /// The spans that it comes from, if any is sampled.
    pub(crate) traces: Vec<TraceParent>,
}

/// What one device reported. 0 is no news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    /// Acknowledged through.
    pub(crate) delivered: u64,
    /// Shown through.
    pub(crate) read: u64,
    /// A resync passed over what lies above the delivered watermark, up to this.
    pub(crate) skipped_through: u64,
}

/// Parses a record.
pub(crate) fn decode(record: &LogRecord) -> Result<Flush, Violation> {
    let wire = wire::ReceiptRecord::decode(record.payload.clone())
        .map_err(|_| Violation::new("record", "must be a ReceiptRecord"))?;
    let sender = |id: &Bytes| ids::user_bytes(id, "sender_user_ids");
    Ok(Flush {
        conversation: ids::conversation_bytes(&wire.conversation_id, "conversation_id")?,
        at: Timestamp::from_micros(wire.flushed_at_us),
        reports: wire.devices.iter().map(report).collect::<Result<_, _>>()?,
        senders: wire.sender_user_ids.iter().map(sender).collect::<Result<_, _>>()?,
        traces: TraceParent::all(&record.headers).collect(),
    })
}

fn report(wire: &wire::DeviceReceiptRecord) -> Result<Report, Violation> {
    Ok(Report {
        user: ids::user_bytes(&wire.user_id, "devices.user_id")?,
        device: ids::device_bytes(&wire.device_id, "devices.device_id")?,
        delivered: wire.delivered,
        read: wire.read,
        skipped_through: wire.skipped_through,
    })
}
