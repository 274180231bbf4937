//! What the driver's errors mean: whether a write may have happened, and of which kind the cause is.
//!
//! Deliberately absent: the servers' own words. They may quote what was asked for, and that names people.

use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};
use wardline_domain::failure::CauseKind;
use wardline_store::{Cause, Failure};

/// Whether the attempt that failed can have written something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// It has not, and will not.
    NotApplied,
    /// It may have, or may yet.
    Unknown,
}

/// The failure of a read.
pub(crate) fn of_read(operation: &'static str, error: &ExecutionError) -> Failure {
    let (_, cause) = classify(operation, error);
    count(operation, &cause);
    Failure::NotApplied(cause)
}

/// The failure of a write. `unsure` when an earlier attempt may have written.
pub(crate) fn of_write(operation: &'static str, error: &ExecutionError, unsure: bool) -> Failure {
    let (certainty, cause) = classify(operation, error);
    count(operation, &cause);
    match certainty {
        Certainty::NotApplied if !unsure => Failure::NotApplied(cause),
        _ => Failure::Unknown(cause),
    }
}

/// The failure of preparing a statement.
pub(crate) fn of_prepare(error: &PrepareError) -> Failure {
    let detail = match error {
        PrepareError::ConnectionPoolError(_) => "no node is reached",
        PrepareError::AllAttemptsFailed { first_attempt: RequestAttemptError::DbError(error, _) } => refusal(error),
        _ => "no node prepares the statements",
    };
    Failure::NotApplied(Cause::unavailable(detail))
}

fn count(operation: &'static str, cause: &Cause) {
    let kind = match cause.kind {
        CauseKind::Unavailable => "unavailable",
        CauseKind::Timeout => "timeout",
        CauseKind::Corrupt => "corrupt",
    };
    metrics::counter!("wardline_cql_errors_total", "operation" => operation, "kind" => kind).increment(1);
}

fn classify(operation: &'static str, error: &ExecutionError) -> (Certainty, Cause) {
    use Certainty::{NotApplied, Unknown};
    match error {
        ExecutionError::BadQuery(_) => (NotApplied, Cause::corrupt(format!("{operation}: a value does not fit"))),
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) | ExecutionError::PrepareError(_) => {
            (NotApplied, Cause::unavailable(format!("{operation}: no node is reached")))
        }
        ExecutionError::RequestTimeout(after) => {
            (Unknown, Cause::timeout(format!("{operation}: no answer within {} ms", after.as_millis())))
        }
        ExecutionError::LastAttemptError(error) => of_attempt(operation, error),
        _ => (Unknown, Cause::unavailable(format!("{operation}: the request failed"))),
    }
}

/// Whether an attempt that failed so can have written something.
pub(crate) fn certainty(error: &RequestAttemptError) -> Certainty {
    of_attempt("", error).0
}

fn of_attempt(operation: &'static str, error: &RequestAttemptError) -> (Certainty, Cause) {
    use Certainty::{NotApplied, Unknown};
    match error {
        RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => {
            (NotApplied, Cause::corrupt(format!("{operation}: a value does not fit")))
        }
        RequestAttemptError::UnableToAllocStreamId => {
            (NotApplied, Cause::unavailable(format!("{operation}: the connection is full")))
        }
        RequestAttemptError::BrokenConnectionError(_) => {
            (Unknown, Cause::unavailable(format!("{operation}: the connection broke")))
        }
        RequestAttemptError::DbError(error, _) => of_server(operation, error),
        RequestAttemptError::CqlResultParseError(_) | RequestAttemptError::CqlErrorParseError(_) => {
            (Unknown, Cause::corrupt(format!("{operation}: the answer does not parse")))
        }
        _ => (Unknown, Cause::unavailable(format!("{operation}: the attempt failed"))),
    }
}

/// Cassandra's answer to a compare-and-set that it does not know the end of (protocol v5, also sent to v4).
const CAS_WRITE_UNKNOWN: i32 = 0x1700;

fn of_server(operation: &'static str, error: &DbError) -> (Certainty, Cause) {
    use Certainty::{NotApplied, Unknown};
    match error {
        DbError::Unavailable { required, alive, .. } => {
            let detail = format!("{operation}: {alive} of {required} required replicas are alive");
            (NotApplied, Cause::unavailable(detail))
        }
        DbError::Overloaded | DbError::IsBootstrapping | DbError::RateLimitReached { .. } => {
            (NotApplied, Cause::unavailable(format!("{operation}: the node takes no more")))
        }
        DbError::WriteTimeout { received, required, .. } | DbError::ReadTimeout { received, required, .. } => {
            let detail = format!("{operation}: {received} of {required} required replicas answered in time");
            (Unknown, Cause::timeout(detail))
        }
        DbError::Other(CAS_WRITE_UNKNOWN) => (Unknown, Cause::timeout(format!("{operation}: not decided in time"))),
        DbError::SyntaxError
        | DbError::Invalid
        | DbError::Unauthorized
        | DbError::AuthenticationError
        | DbError::ConfigError
        | DbError::AlreadyExists { .. } => (NotApplied, Cause::unavailable(format!("{operation}: {}", refusal(error)))),
        _ => (Unknown, Cause::unavailable(format!("{operation}: the servers failed"))),
    }
}

/// Why the servers do not take a statement, for whoever operates them.
fn refusal(error: &DbError) -> &'static str {
    match error {
        DbError::Unauthorized => "the role lacks a permission on the keyspace",
        DbError::AuthenticationError => "user name or password is wrong",
        DbError::SyntaxError => "the servers do not know this CQL",
        DbError::Invalid => "the servers refuse the statement: is the schema another? See `wardline migrate`",
        _ => "the servers refuse the statement",
    }
}
