//! The driver's own rules for repeating, watched: repeats are counted, and an attempt that may have written is remembered
//! until the request ends, or a later attempt that surely did nothing would pass for the whole.
//!
//! Deliberately absent: other rules than the driver's.

use std::cell::Cell;

use scylla::policies::retry::{DefaultRetryPolicy, RequestInfo, RetryDecision, RetryPolicy, RetrySession};

use crate::failure::{Certainty, certainty};

tokio::task_local! {
    /// Whether an attempt of the request may have written. Attempts run in the task that asked.
    static UNSURE: Cell<bool>;
}

/// Runs a write. Answers also whether an attempt that failed may have written.
pub(crate) async fn watched<T>(request: impl Future<Output = T>) -> (T, bool) {
    UNSURE
        .scope(Cell::new(false), async {
            let answer = request.await;
            (answer, UNSURE.with(Cell::get))
        })
        .await
}

/// The driver's default policy, watched.
#[derive(Debug)]
pub(crate) struct Watched(DefaultRetryPolicy);

impl Watched {
    pub(crate) fn new() -> Self {
        Self(DefaultRetryPolicy::new())
    }
}

impl RetryPolicy for Watched {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(Session(self.0.new_session()))
    }
}

struct Session(Box<dyn RetrySession>);

impl RetrySession for Session {
    fn decide_should_retry(&mut self, request: RequestInfo) -> RetryDecision {
        if certainty(request.error) == Certainty::Unknown {
            // Reads are not watched: they change nothing.
            let _ = UNSURE.try_with(|unsure| unsure.set(true));
        }
        let decision = self.0.decide_should_retry(request);
        if matches!(decision, RetryDecision::RetrySameTarget(_) | RetryDecision::RetryNextTarget(_)) {
            metrics::counter!("wardline_cql_retries_total").increment(1);
        }
        decision
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}
