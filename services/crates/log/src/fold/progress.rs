//! How far a partition has come, and what waits: for its gauges.
//!
//! Deliberately absent: what decides anything. The driver's own places do that.

use std::collections::VecDeque;

use wardline_domain::{Position, Timestamp};

use crate::seam::{LogRecord, Started};

/// How far a partition has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Everything below is done, or was there never.
    next: u64,
    /// Behind the newest record that is known of.
    end: u64,
    /// The last record and the time of the first, of each batch that was given out and is not done.
    waiting: VecDeque<(Position, Timestamp)>,
}

impl Progress {
    /// The partition was started behind `done`.
    pub(super) fn started(&mut self, done: Option<Position>, started: Started) {
        let oldest = started.oldest.unwrap_or(started.end).as_u64();
        self.next = done.map_or(oldest, after).max(oldest);
        self.end = started.end.as_u64().max(self.next);
        self.waiting.clear();
    }

    /// A batch was given out. What is done already is given out again at a start.
    pub(super) fn given(&mut self, batch: &[LogRecord]) {
        let first = batch.iter().find(|record| record.position.as_u64() >= self.next);
        let Some((first, last)) = first.zip(batch.last()) else { return };
        self.end = self.end.max(after(last.position));
        self.waiting.push_back((last.position, first.appended_at));
    }

    /// Everything through here is done.
    pub(super) fn done(&mut self, through: Position) {
        self.next = self.next.max(after(through));
        while self.waiting.front().is_some_and(|(last, _)| *last <= through) {
            self.waiting.pop_front();
        }
    }

    /// Positions that are known of and not done.
    pub(super) const fn lag(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }

    /// Batches given out and not done.
    pub(super) fn batches(&self) -> usize {
        self.waiting.len()
    }

    /// When the oldest record that was given out and is not done was appended.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.waiting.front().map(|(_, at)| *at)
    }
}

const fn after(position: Position) -> u64 {
    position.as_u64().saturating_add(1)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn at(number: u64) -> Position {
        Position::from_u64(number)
    }

    fn batch(positions: std::ops::RangeInclusive<u64>) -> Vec<LogRecord> {
        let record = |position| LogRecord {
            position: at(position),
            appended_at: Timestamp::from_micros(position),
            key: Bytes::new(),
            payload: Bytes::new(),
            headers: Vec::new(),
        };
        positions.map(record).collect()
    }

    #[test]
    fn what_is_given_waits_until_it_is_done() {
        let mut progress = Progress::default();
        progress.started(Some(at(9)), Started { oldest: Some(at(2)), end: at(20) });
        assert_eq!((progress.lag(), progress.batches(), progress.oldest()), (10, 0, None));
        progress.given(&batch(9..=9));
        assert_eq!(progress.batches(), 0, "the record at the checkpoint is done");
        progress.given(&batch(9..=14));
        progress.given(&batch(15..=24));
        assert_eq!((progress.lag(), progress.batches()), (15, 2));
        assert_eq!(progress.oldest(), Some(Timestamp::from_micros(10)), "what is done does not wait");
        progress.done(at(14));
        assert_eq!(progress.oldest(), Some(Timestamp::from_micros(15)));
        progress.done(at(24));
        assert_eq!((progress.lag(), progress.batches(), progress.oldest()), (0, 0, None));
    }

    #[test]
    fn an_empty_partition_does_not_lag() {
        let mut progress = Progress::default();
        progress.started(None, Started { oldest: None, end: at(1 << 40) });
        assert_eq!(progress.lag(), 0);
        progress.given(&batch((1 << 40)..=(1 << 40)));
        assert_eq!(progress.lag(), 1);
    }
}
