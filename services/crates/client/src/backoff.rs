//! Full-jitter backoff: a random delay between nothing and a bound that doubles.

use std::time::Duration;

use rand::Rng as _;

/// The bounds of a retry's delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay's bound.
    pub base: Duration,
    /// The bound never grows beyond this.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(100), cap: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The bound before attempt `attempt`, counted from 0.
    pub fn bound(&self, attempt: u32) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(attempt.min(20))).min(self.cap)
    }

    /// A random delay below the bound; never less than what the server asked for, `at_least`.
    pub(crate) fn delay(&self, attempt: u32, at_least: Option<Duration>) -> Duration {
        let bound = self.bound(attempt);
        let jitter = bound.mul_f64(rand::rng().random::<f64>());
        jitter.saturating_add(at_least.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(1) };
        let bounds: Vec<_> = (0..6).map(|attempt| backoff.bound(attempt).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_delay_keeps_the_servers_wish_and_the_bound() {
        let backoff = Backoff::default();
        for attempt in 0..30 {
            let delay = backoff.delay(attempt, Some(Duration::from_secs(3)));
            assert!(delay >= Duration::from_secs(3) && delay <= Duration::from_secs(3) + backoff.bound(attempt));
        }
    }
}
