//! Where tests make a device die.

use std::fmt;
use std::sync::Arc;

/// A point at which a process may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// All of a step is written; its transaction is not committed.
    BeforeCommit,
    /// The transaction is committed; nothing that follows has happened.
    AfterCommit,
    /// A Send, Commit or CreateConversation call is about to be made.
    BeforeSend,
    /// The call has returned; its answer is not written.
    AfterSend,
    /// An acknowledgement is about to go up the feed.
    BeforeAcknowledge,
    /// The acknowledgement is on its way.
    AfterAcknowledge,
}

/// A hook that is asked at every [`Point`]; answering `true` stops the device dead: no further write, no further call.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<dyn Fn(Point) -> bool + Send + Sync>>);

impl Failpoints {
    /// Never dies.
    pub fn none() -> Self {
        Self(None)
    }

    /// Asks `hook`.
    pub fn new(hook: impl Fn(Point) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn fires(&self, point: Point) -> bool {
        self.0.as_ref().is_some_and(|hook| hook(point))
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Failpoints(hook)" } else { "Failpoints(none)" })
    }
}
