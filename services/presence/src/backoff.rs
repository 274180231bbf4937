//! Pauses between repeats: doubling, with jitter, bounded.
//!
//! Deliberately absent: giving up. The caller knows when.

use std::time::Duration;

use rand::Rng as _;

use crate::options::Timings;

/// The pauses of one series of repeats.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub(crate) fn new(timings: &Timings) -> Self {
        Self { first: timings.retry_first, next: timings.retry_first, most: timings.retry_most }
    }

    /// Waits between half and all of the next pause.
    pub(crate) async fn pause(&mut self) {
        let pause = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.most);
        tokio::time::sleep(pause).await;
    }

    /// It worked: the next series starts small.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}
