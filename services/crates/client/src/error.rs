//! What a device could not do.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use wardline_proto::reason::Reason;

/// What a device could not do. Never carries plaintext, ids or tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server said no: it did not happen.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// No answer, or one that leaves it open: it may have happened. A repeat of the same bytes is safe.
    #[error("unknown outcome ({0:?})")]
    Unknown(Code),
    /// It got no sequence, or lost against another commit.
    #[error("rejected: {0:?}")]
    Rejected(Reason),
    /// The device is closed, or a failpoint stopped it.
    #[error("the device has stopped")]
    Stopped,
    /// The caller asked for what cannot be.
    #[error("{0}")]
    Invalid(&'static str),
    /// Something that a server or another device said does not verify.
    #[error("not trusted: {0}")]
    Untrusted(&'static str),
    /// It did not happen in the time given.
    #[error("timed out waiting for {0}")]
    TimedOut(&'static str),
    /// The device's file could not be read or written.
    #[error("store: {0}")]
    Store(String),
    /// MLS could not do it.
    #[error("mls: {0}")]
    Mls(String),
}

/// Why a conversation is not trusted.
pub(crate) const STRANGER: &str = "the conversation has a device that its user's device log does not vouch for";

/// A definite refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// From ErrorInfo, when it is one of the table's.
    pub reason: Option<Reason>,
    /// The gRPC code.
    pub code: Code,
    /// ErrorInfo's metadata.
    pub metadata: HashMap<String, String>,
    /// From RetryInfo.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reason {
            Some(reason) => f.write_str(reason.as_str()),
            None => write!(f, "{:?}", self.code),
        }
    }
}

impl Error {
    /// The reason of a refusal.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(refusal) => refusal.reason,
            Self::Rejected(reason) => Some(*reason),
            _ => None,
        }
    }

    /// How long the server asks to wait before a retry.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    /// Whether the same call may succeed later without any change.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::Refused(refusal) => refusal.code == Code::ResourceExhausted || is_session(refusal),
            _ => false,
        }
    }
}

/// Whether a new session mends it.
fn is_session(refusal: &Refusal) -> bool {
    matches!(refusal.reason, Some(Reason::TokenMissing | Reason::TokenInvalid | Reason::SessionExpired))
}

impl From<Status> for Error {
    /// The one place where statuses are read.
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == wardline_proto::reason::DOMAIN);
        let reason = info.and_then(|info| Reason::parse(&info.reason));
        let unknown =
            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown);
        if unknown || (status.code() == Code::Internal && reason.is_none()) {
            return Self::Unknown(status.code());
        }
        Self::Refused(Refusal {
            reason,
            code: status.code(),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        })
    }
}

impl From<rusqlite::Error> for Error {
    /// Without the statement: its parameters may be plaintext.
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(match error {
            rusqlite::Error::SqliteFailure(failure, _) => failure.to_string(),
            other => other.to_string(),
        })
    }
}

/// An MLS error: openmls' texts name no ids and no content.
pub(crate) fn mls(error: impl std::fmt::Display) -> Error {
    Error::Mls(error.to_string())
}
