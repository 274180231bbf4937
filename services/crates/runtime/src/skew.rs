//! How far this machine's clock is from the log's.
//!
//! A record that the log stamped lies between the moment it was given to the log and the moment the log answered. What the
//! stamp lies outside of that, by this machine's clock, is the least by which the two clocks differ. It costs nothing: who
//! appends knows all three.
//!
//! Deliberately absent: setting clocks, and asking the log for its time. An instance that appends nothing stamps nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Gauge, gauge};
use wardline_domain::Timestamp;

use crate::health::{Cause, Condition, Reporter};
use crate::measures as names;

/// Further apart, an instance that stamps times does not serve.
pub const MOST: Duration = Duration::from_secs(2);

/// Compares the two clocks. Cheap to clone.
#[derive(Clone)]
pub struct Skew(Arc<Watched>);

struct Watched {
    condition: Condition,
    gauge: Gauge,
}

impl fmt::Debug for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Skew")
    }
}

impl Skew {
    /// Tells `role` to serve while the clocks agree; before the first comparison they do.
    pub fn of(role: &Reporter) -> Self {
        let condition = role.condition(Cause::Clock);
        condition.set(true);
        Self(Arc::new(Watched { condition, gauge: gauge!(names::CLOCK_SKEW) }))
    }

    /// A record was given to the log at `sent`, stamped by it with `appended`, and answered at `answered`; the first and the
    /// last by this machine's clock. Cheap, but not for every record: once a second is plenty.
    pub fn observe(&self, sent: Timestamp, appended: Timestamp, answered: Timestamp) {
        let skew = least(sent, appended, answered);
        self.0.gauge.set(skew.as_secs_f64());
        self.0.condition.set(skew <= MOST);
    }
}

/// By how much a stamp lies outside of when it was made.
fn least(sent: Timestamp, appended: Timestamp, answered: Timestamp) -> Duration {
    sent.since(appended).max(appended.since(answered))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_stamp_between_sending_and_answer_shows_no_difference() {
        assert_eq!(least(at(10), at(12), at(14)), Duration::ZERO);
        assert_eq!(least(at(10), at(7), at(14)), Duration::from_secs(3));
        assert_eq!(least(at(10), at(19), at(14)), Duration::from_secs(5));
    }

    #[test]
    fn a_role_serves_while_the_clocks_agree() {
        let health = Health::default();
        let skew = Skew::of(&health.role("one"));
        let serves = || health.snapshot().iter().all(|(_, serves)| *serves);
        assert!(serves(), "nothing is known against it");
        skew.observe(at(10), at(8), at(11));
        assert!(serves(), "two seconds are let pass");
        skew.observe(at(10), at(7), at(11));
        assert!(!serves());
        skew.observe(at(10), at(10), at(11));
        assert!(serves());
    }
}
