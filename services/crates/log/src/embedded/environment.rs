//! What the engine takes from around it, as parameters.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wardline_domain::Timestamp;

use super::fatal;
use crate::topic::Topic;

/// How many of the newest records of a topic that nobody trims are kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Records of `audit`. 2^20 by default: at 300 bytes each about 300 MiB. Whoever must keep more copies them out.
    pub audit: u64,
    /// Records of `deadletters`, which may be as large as a record can be. 2^14 by default.
    pub dead_letters: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { audit: 1 << 20, dead_letters: 1 << 14 }
    }
}

impl Retention {
    pub(super) const fn of(self, topic: Topic) -> Option<u64> {
        match topic {
            Topic::Audit => Some(self.audit),
            Topic::DeadLetters => Some(self.dead_letters),
            Topic::Conversations | Topic::Feeds | Topic::Receipts | Topic::Directory => None,
        }
    }
}

/// What the engine takes from around it.
#[derive(Clone)]
pub struct Environment {
    /// Stamps [`crate::LogRecord::appended_at`].
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Called once when a write or a sync failed. The default prints the message and ends the process. One that returns
    /// leaves a closed log whose waiters are told `Unknown`.
    pub fatal: Arc<dyn Fn(&str) + Send + Sync>,
    /// Called on the writer's thread before each commit; an error stands for one of the disk's. For tests.
    pub before_commit: Arc<dyn Fn() -> io::Result<()> + Send + Sync>,
    /// How much of topics that nobody trims is kept.
    pub retention: Retention,
    /// Bytes of the newest records of each partition kept in memory, so that live consumers do not read the disk.
    pub tail_bytes: usize,
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            clock: Arc::new(now),
            fatal: Arc::new(fatal::end_process),
            before_commit: Arc::new(|| Ok(())),
            retention: Retention::default(),
            tail_bytes: 8 << 20,
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("retention", &self.retention)
            .field("tail_bytes", &self.tail_bytes)
            .finish_non_exhaustive()
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
