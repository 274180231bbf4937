//! What librdkafka says, as the two ways to fail.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use wardline_domain::{Cause, Failure};

pub(crate) fn unavailable(detail: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::unavailable(detail))
}

pub(crate) fn corrupt(detail: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::corrupt(detail))
}

/// Why a call failed. Nothing that the brokers say is a broken invariant by itself, so it is never `Corrupt`.
pub(crate) fn cause(error: &KafkaError) -> Cause {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::RequestTimedOut) => Cause::timeout(error),
        _ => Cause::unavailable(error),
    }
}

pub(crate) fn not_applied(error: &KafkaError) -> Failure {
    Failure::NotApplied(cause(error))
}

/// A blocking call of librdkafka, off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(call).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(unavailable("the runtime is ending")),
    }
}
