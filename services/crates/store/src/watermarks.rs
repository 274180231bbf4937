//! Receipts as state.

use async_trait::async_trait;
use wardline_domain::{ConversationId, DeviceId, Timestamp, UserId};

use crate::Result;

/// Table `watermarks`: ((conversation), user, device). `delivered` and `read` are merged by maximum (in CQL: cells written
/// with the sequence as timestamp), `skipped` by union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatermarkRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// The highest sequence acknowledged; 0 for none.
    pub delivered: u64,
    /// The highest sequence shown; 0 for none.
    pub read: u64,
    /// Ranges (first, last) that a resync passed over: sorted, disjoint, not adjacent.
    pub skipped: Vec<(u64, u64)>,
    /// When the latest change was recorded.
    pub when: Timestamp,
}

/// Merges `other` into `row`: maximum of the watermarks and of `when`, union of the ranges. Commutative, associative,
/// idempotent.
pub fn merge(row: &mut WatermarkRow, other: &WatermarkRow) {
    row.delivered = row.delivered.max(other.delivered);
    row.read = row.read.max(other.read);
    row.when = row.when.max(other.when);
    row.skipped = union(&row.skipped, &other.skipped);
}

/// The union of two sets of ranges: sorted, disjoint, not adjacent.
pub fn union(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = a.iter().chain(b).copied().filter(|(first, last)| first <= last).collect();
    all.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match out.last_mut() {
            Some(top) if first <= top.1.saturating_add(1) => top.1 = top.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// Receipts.
#[async_trait]
pub trait Watermarks: Send + Sync {
    /// Merges rows.
    async fn put(&self, rows: &[WatermarkRow]) -> Result<()>;

    /// Reads rows by key, in the order asked.
    async fn get(&self, keys: &[(ConversationId, UserId, DeviceId)]) -> Result<Vec<Option<WatermarkRow>>>;

    /// Reads all rows of a conversation, by user, then device.
    async fn of(&self, conversation: ConversationId) -> Result<Vec<WatermarkRow>>;
}
