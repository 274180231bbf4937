//! Something that a gauge counts while it lives.
//!
//! Deliberately absent: anything else.

use metrics::Gauge;

/// One of what the gauge counts, until it is dropped.
pub struct Counted(Gauge);

impl Counted {
    /// Counts one more.
    pub fn one(gauge: Gauge) -> Self {
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counted")
    }
}
