//! Waiting for an engine that is away, as long as it takes.
//!
//! Deliberately absent: a bound. Who must stop waiting drops the wait.

use std::time::Duration;

use tokio::time::Instant;
use wardline_domain::Failure;
use wardline_log::fold::retry::{Backoff, passes};

/// How often it is said that somebody still waits.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Tries until it succeeds, with pauses that grow to 10 s, and says every 10 s that `what` is still waited for. Cancel-safe if
/// the attempts are.
///
/// # Errors
/// The first failure that does not pass by itself.
pub async fn until_up<T, A: Future<Output = Result<T, Failure>>>(
    what: &'static str,
    mut attempt: impl FnMut() -> A,
) -> Result<T, Failure> {
    let mut waiting = Waiting::default();
    loop {
        match attempt().await {
            Err(failure) if passes(&failure) => tokio::time::sleep(waiting.pause(what, &failure)).await,
            outcome => return outcome,
        }
    }
}

/// How long somebody waits for something.
#[derive(Debug, Default)]
pub struct Waiting {
    backoff: Backoff,
    said: Option<Instant>,
}

impl Waiting {
    /// The pause after one more failure.
    pub fn pause(&mut self, what: &'static str, failure: &Failure) -> Duration {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!(what, %failure, "waiting for an engine");
        }
        self.backoff.pause()
    }

    /// It was there.
    pub fn over(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use wardline_domain::Cause;

    use super::*;

    fn away() -> Failure {
        Failure::NotApplied(Cause::unavailable("away"))
    }

    #[tokio::test]
    async fn it_waits_as_long_as_it_takes() {
        let mut attempts = 0;
        let answer = until_up("it", || {
            attempts += 1;
            ready(if attempts < 5 { Err(away()) } else { Ok(attempts) })
        });
        assert_eq!(answer.await, Ok(5));
    }

    #[tokio::test]
    async fn what_does_not_pass_is_not_waited_for() {
        let corrupt = Failure::NotApplied(Cause::corrupt("broken"));
        let answer: Result<(), Failure> = until_up("it", || ready(Err(corrupt.clone()))).await;
        assert_eq!(answer, Err(corrupt));
    }
}
