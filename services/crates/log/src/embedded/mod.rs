//! The embedded engine.

use std::path::PathBuf;
use std::sync::Arc;

use wardline_domain::Failure;
use wardline_domain::partition::PartitionCount;

use crate::EventLog;

/// How the embedded log is laid out. The partition counts are recorded at creation and verified at every open.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files lie.
    pub dir: PathBuf,
    /// Partitions of `conversations`.
    pub conversations: PartitionCount,
    /// Partitions of `feeds`.
    pub feeds: PartitionCount,
    /// Partitions of `receipts`.
    pub receipts: PartitionCount,
    /// Bytes that may wait for durability.
    pub budget_bytes: u32,
}

/// Opens, or creates, the log. A failed sync ends the process with a clear message: what it left behind cannot be known.
#[allow(clippy::todo)]
pub async fn open(_options: Options) -> Result<Arc<dyn EventLog>, Failure> {
    todo!()
}
