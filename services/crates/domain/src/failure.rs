//! The two ways in which an engine may fail. Telling them apart is what makes a retry safe to decide about.

use std::fmt;

/// What an engine could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It did not happen, and will not.
    #[error("not applied: {0}")]
    NotApplied(Cause),
    /// It may have happened, or may yet. A repeat must be safe.
    #[error("unknown: {0}")]
    Unknown(Cause),
}

impl Failure {
    /// Why.
    pub const fn cause(&self) -> &Cause {
        match self {
            Self::NotApplied(cause) | Self::Unknown(cause) => cause,
        }
    }
}

/// Why an engine failed. `detail` is for diagnostics, never for clients, and names no user, device or conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What kind of failure.
    pub kind: CauseKind,
    /// What the engine said.
    pub detail: String,
}

/// The kinds of engine failures that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseKind {
    /// The engine is away or closing: try again.
    Unavailable,
    /// The engine did not answer in time: try again.
    Timeout,
    /// What the engine holds breaks an invariant: halt, a person must look.
    Corrupt,
}

impl Cause {
    /// The engine is away or closing.
    pub fn unavailable(detail: impl fmt::Display) -> Self {
        Self { kind: CauseKind::Unavailable, detail: detail.to_string() }
    }

    /// The engine did not answer in time.
    pub fn timeout(detail: impl fmt::Display) -> Self {
        Self { kind: CauseKind::Timeout, detail: detail.to_string() }
    }

    /// What the engine holds breaks an invariant.
    pub fn corrupt(detail: impl fmt::Display) -> Self {
        Self { kind: CauseKind::Corrupt, detail: detail.to_string() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            CauseKind::Unavailable => "unavailable",
            CauseKind::Timeout => "timeout",
            CauseKind::Corrupt => "corrupt",
        };
        write!(f, "{kind}: {}", self.detail)
    }
}
