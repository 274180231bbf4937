//! Trying again: capped exponential pauses with full jitter.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wardline_domain::Failure;
use wardline_domain::failure::CauseKind;

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(10);

/// The pauses between attempts.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: anywhere between nothing and twice the one before's bound.
    pub fn pause(&mut self) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::random())
    }

    /// It succeeded: the next failure is the first.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether it failed since it last succeeded.
    pub const fn failed(&self) -> bool {
        self.failures > 0
    }
}

/// Whether a failure passes by itself.
pub fn passes(failure: &Failure) -> bool {
    match failure.cause().kind {
        CauseKind::Unavailable | CauseKind::Timeout => true,
        CauseKind::Corrupt => false,
    }
}

/// Waits, or learns that it must end.
pub(super) async fn pause(length: Duration, end: &CancellationToken) -> Result<(), Interrupted> {
    tokio::select! {
        biased;
        () = end.cancelled() => Err(Interrupted::Ended),
        () = tokio::time::sleep(length) => Ok(()),
    }
}

/// Why a task ends before its work is done.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// It was told to.
    Ended,
    /// A failure that does not pass.
    Halted(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_below_the_cap() {
        let mut backoff = Backoff::default();
        assert!(!backoff.failed());
        for failures in 0..100 {
            assert!(backoff.pause() <= FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST));
        }
        assert!(backoff.failed());
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
