//! The one place that builds gRPC statuses: constant text, ErrorInfo, and RetryInfo where a retry helps.

use std::time::Duration;

use metrics::counter;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};
use wardline_domain::conversation::Rejection;
use wardline_domain::failure::CauseKind;
use wardline_domain::{Failure, mls::InvalidMls};
use wardline_log::Refused;
use wardline_proto::convert::{Violation, reject};
use wardline_proto::reason::{DOMAIN, Reason};

use crate::measures as names;

/// A call that is refused, or whose outcome is unknown. Becomes a status at the edge of the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// ErrorInfo.metadata. Never what was sent, never an id of somebody else.
    pub metadata: Vec<(&'static str, String)>,
    /// BadRequest.field_violations.
    pub violations: Vec<Violation>,
    /// RetryInfo.retry_delay.
    pub retry_after: Option<Duration>,
}

/// How long callers wait before repeating what failed for want of an engine.
pub const RETRY_AFTER: Duration = Duration::from_millis(250);

impl Refusal {
    /// Refused for `reason`.
    pub const fn new(reason: Reason) -> Self {
        Self { reason, metadata: Vec::new(), violations: Vec::new(), retry_after: None }
    }

    /// With one more metadata entry.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }

    /// With RetryInfo.
    #[must_use]
    pub const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// A field that is not valid.
    pub fn field(field: &'static str, description: &'static str) -> Self {
        Violation::new(field, description).into()
    }

    /// What a rejection in the log would say, said at once because the cache proves it.
    pub fn rejected(rejection: &Rejection) -> Self {
        let refusal = Self::new(reject::to_reason(rejection.reason))
            .with("generation", rejection.generation.0.to_string())
            .with("epoch", rejection.epoch.0.to_string());
        match rejection.winner {
            Some(winner) => refusal.with("winner_message_id", winner.to_string()),
            None => refusal,
        }
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        let mut refusal = Self::new(Reason::ArgumentInvalid);
        refusal.violations.push(violation);
        refusal
    }
}

impl From<InvalidMls> for Refusal {
    fn from(invalid: InvalidMls) -> Self {
        Self::new(Reason::MlsInvalid).with("detail", invalid.0)
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Overloaded { retry_after } => Self::new(Reason::Overloaded).retry_after(retry_after),
            Refused::TooLarge => Self::new(Reason::TooLarge),
            Refused::Closed => Self::new(Reason::Unavailable).retry_after(RETRY_AFTER),
        }
    }
}

impl From<Failure> for Refusal {
    /// The engine's words go to the diagnostics; the client gets constant text.
    fn from(failure: Failure) -> Self {
        match failure.cause().kind {
            CauseKind::Unavailable | CauseKind::Timeout => {
                tracing::warn!(%failure, "an engine did not answer");
                Self::new(Reason::Unavailable).retry_after(RETRY_AFTER)
            }
            CauseKind::Corrupt => {
                tracing::error!(%failure, "an engine holds what breaks an invariant");
                Self::new(Reason::Internal)
            }
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        counter!(names::REFUSALS, "reason" => refusal.reason.as_str()).increment(1);
        let mut details = ErrorDetails::new();
        let metadata = refusal.metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Vec<_>>();
        details.set_error_info(
            refusal.reason.as_str(),
            DOMAIN,
            metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        for violation in refusal.violations {
            details.add_bad_request_violation(violation.field, violation.description);
        }
        if let Some(delay) = refusal.retry_after {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(refusal.reason.code(), refusal.reason.message(), details)
    }
}
