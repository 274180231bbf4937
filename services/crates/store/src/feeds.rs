//! Users' feeds, and what the owner of a feeds partition keeps beside them.

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{ConversationId, DeviceId, Position, Timestamp, UserId};

use crate::Result;
use crate::watermarks::WatermarkRow;

/// Table `feeds`: ((user), position). Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedRow {
    /// The user.
    pub user: UserId,
    /// The feeds record it came from: what a cursor names.
    pub position: Position,
    /// The user's row before it; `None` for the first ever.
    pub previous: Option<Position>,
    /// When ingest accepted what it tells of; when it was appended for events without acceptance.
    pub at: Timestamp,
    /// The devices it is for; empty means all.
    pub devices: Vec<DeviceId>,
    /// The event in the presence role's own encoding: small, ciphertext by reference.
    pub event: Bytes,
}

/// Table `device_cursors`: ((user), device). A mutable cell: `acknowledged` is its write timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCursorRow {
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// The position of the last event acknowledged.
    pub acknowledged: Position,
}

/// Table `receipts_of`: ((user), conversation, reader, device): what a user was told of a device's progress. Merged: each
/// watermark by maximum, `skipped` by union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptOfRow {
    /// Who is told.
    pub user: UserId,
    /// The latest known state.
    pub watermark: WatermarkRow,
    /// The feeds record that told of the latest change.
    pub updated: Position,
}

/// Users' feeds.
///
/// Promise: a write that answered `Ok` is seen by every later read.
/// The caller's duty: rows, then `feed_heads`, then the checkpoint; rows of one user by rising position.
#[async_trait]
pub trait Feeds: Send + Sync {
    /// Writes rows.
    async fn put_rows(&self, rows: &[FeedRow]) -> Result<()>;

    /// Raises users' last positions; a lower one changes nothing.
    async fn put_heads(&self, heads: &[(UserId, Position)]) -> Result<()>;

    /// Reads users' last positions, in the order asked. They never expire.
    async fn heads(&self, users: &[UserId]) -> Result<Vec<Option<Position>>>;

    /// Reads rows with `after` < position ≤ `through`, in order, at most `limit`.
    async fn rows(
        &self,
        user: UserId,
        after: Option<Position>,
        through: Position,
        limit: usize,
    ) -> Result<Vec<FeedRow>>;

    /// Raises acknowledged positions; a lower one changes nothing.
    async fn put_device_cursors(&self, cursors: &[DeviceCursorRow]) -> Result<()>;

    /// Reads a user's acknowledged positions.
    async fn device_cursors(&self, user: UserId) -> Result<Vec<DeviceCursorRow>>;

    /// Merges what users were told.
    async fn put_receipts_of(&self, rows: &[ReceiptOfRow]) -> Result<()>;

    /// Reads what a user was told by records above `updated_after`, at most `limit` (the most recent when there are more).
    async fn receipts_of(
        &self,
        user: UserId,
        updated_after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<ReceiptOfRow>>;

    /// Drops rows older than `before`. Engines whose rows expire by themselves do nothing.
    async fn expire(&self, before: Timestamp) -> Result<()>;
}

/// The key of a watermark.
pub type WatermarkKey = (ConversationId, UserId, DeviceId);
