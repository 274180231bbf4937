//! Who owns a feeds partition, decided by the log alone: the instance of its latest claim, since the first of that
//! instance's claims in a row. That first claim's position is the term.
//!
//! Deliberately absent: the registry, and appending claims.

use std::time::Duration;

use tokio::time::Instant;
use wardline_domain::Position;

/// 16 random bytes of this run.
pub(crate) type Instance = [u8; 16];

/// One instance's view of one partition.
#[derive(Debug)]
pub(crate) struct Tenure {
    instance: Instance,
    term: Option<Position>,
    read_at: Option<Instant>,
}

/// What a claim changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// This instance is the owner from here on.
    Began,
    /// As before.
    Same,
    /// Another instance is the owner from here on.
    Lost,
}

impl Tenure {
    /// Nothing claimed.
    pub(crate) const fn new(instance: Instance) -> Self {
        Self { instance, term: None, read_at: None }
    }

    /// A claim was consumed.
    pub(crate) fn observe(&mut self, instance: &[u8], position: Position, now: Instant) -> Change {
        if instance != self.instance {
            return if self.term.take().is_some() { Change::Lost } else { Change::Same };
        }
        self.read_at = Some(now);
        if self.term.is_some() {
            return Change::Same;
        }
        self.term = Some(position);
        Change::Began
    }

    /// The term, while this instance may serve: it has read its own claim within `patience`.
    pub(crate) fn serving(&self, now: Instant, patience: Duration) -> Option<Position> {
        let fresh = self.read_at.is_some_and(|read_at| now.duration_since(read_at) <= patience);
        self.term.filter(|_| fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(4);

    fn at(number: u64) -> Position {
        Position::from_u64(number)
    }

    /// The term is the first of one's claims in a row: repeats keep it, another's claim ends it.
    #[test]
    fn the_latest_claim_owns() {
        let now = Instant::now();
        let mut tenure = Tenure::new([1; 16]);
        assert_eq!(tenure.serving(now, PATIENCE), None);
        assert_eq!(tenure.observe(&[2; 16], at(4), now), Change::Same);
        assert_eq!(tenure.observe(&[1; 16], at(5), now), Change::Began);
        assert_eq!(tenure.observe(&[1; 16], at(7), now), Change::Same);
        assert_eq!(tenure.serving(now, PATIENCE), Some(at(5)));
        assert_eq!(tenure.observe(&[2; 16], at(8), now), Change::Lost);
        assert_eq!(tenure.serving(now, PATIENCE), None);
        assert_eq!(tenure.observe(&[1; 16], at(9), now), Change::Began);
        assert_eq!(tenure.serving(now, PATIENCE), Some(at(9)));
    }

    /// An instance that does not hear itself does not serve.
    #[test]
    fn silence_ends_the_service() {
        let now = Instant::now();
        let mut tenure = Tenure::new([1; 16]);
        tenure.observe(&[1; 16], at(5), now);
        assert_eq!(tenure.serving(now + PATIENCE, PATIENCE), Some(at(5)));
        assert_eq!(tenure.serving(now + PATIENCE + Duration::from_millis(1), PATIENCE), None);
    }
}
