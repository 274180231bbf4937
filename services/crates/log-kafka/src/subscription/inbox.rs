//! What a subscription's threads tell its reader.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use wardline_domain::Failure;

/// A change of what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Assigned(u32),
    Revoked(u32),
}

/// Tells two assignments of one partition apart.
pub(super) type Term = u64;

#[derive(Default)]
struct Held {
    terms: BTreeMap<u32, Term>,
    /// At most two a partition: what is taken away before it was told is not told.
    changes: VecDeque<Change>,
    /// Partitions whose queue may hold something.
    ready: BTreeSet<u32>,
    failure: Option<Failure>,
    /// The offset after what is done, of what is held.
    done: BTreeMap<u32, u64>,
    uncommitted: BTreeSet<u32>,
}

/// librdkafka calls in here with a queue's lock in hand, so nothing in here calls librdkafka.
#[derive(Default)]
pub(super) struct Inbox {
    held: Mutex<Held>,
    pub(super) stirred: Notify,
    next_term: AtomicU64,
    over: AtomicBool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn assign(&self, partition: u32) {
        let mut held = self.lock();
        held.terms.insert(partition, self.next_term.fetch_add(1, Ordering::Relaxed));
        held.changes.push_back(Change::Assigned(partition));
        self.stirred.notify_one();
    }

    /// From here on nothing of the partition is given out.
    pub(super) fn revoke(&self, partition: u32) {
        let mut held = self.lock();
        if held.terms.remove(&partition).is_none() {
            return;
        }
        held.ready.remove(&partition);
        held.done.remove(&partition);
        held.uncommitted.remove(&partition);
        let untold = held.changes.iter().rposition(|change| *change == Change::Assigned(partition));
        match untold {
            Some(untold) => drop(held.changes.remove(untold)),
            None => held.changes.push_back(Change::Revoked(partition)),
        }
        self.stirred.notify_one();
    }

    pub(super) fn take_change(&self) -> Option<Change> {
        self.lock().changes.pop_front()
    }

    pub(super) fn term(&self, partition: u32) -> Option<Term> {
        self.lock().terms.get(&partition).copied()
    }

    /// A partition's queue may hold something.
    pub(super) fn ready(&self, partition: u32) {
        self.lock().ready.insert(partition);
        self.stirred.notify_one();
    }

    /// Something is left of it, which the next look finds.
    pub(super) fn still_ready(&self, partition: u32) {
        self.lock().ready.insert(partition);
    }

    pub(super) fn unready(&self, partition: u32) {
        self.lock().ready.remove(&partition);
    }

    /// All that may hold something, those after `last` first.
    pub(super) fn ready_after(&self, last: u32) -> Vec<u32> {
        let held = self.lock();
        let after = held.ready.range((Bound::Excluded(last), Bound::Unbounded));
        after.chain(held.ready.range(..=last)).copied().collect()
    }

    /// Told once, by the next look that finds nothing else.
    pub(super) fn fail(&self, failure: Failure) {
        self.lock().failure = Some(failure);
        self.stirred.notify_one();
    }

    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.lock().failure.take()
    }

    /// The lag is counted from here, until more is done.
    pub(super) fn begin(&self, partition: u32, offset: u64) {
        let mut held = self.lock();
        if held.terms.contains_key(&partition) {
            held.done.insert(partition, offset);
        }
    }

    /// All below `offset` is done.
    pub(super) fn done(&self, partition: u32, offset: u64) {
        let mut held = self.lock();
        if held.terms.contains_key(&partition) {
            held.done.insert(partition, offset);
            held.uncommitted.insert(partition);
        }
    }

    /// How far each partition that is held is done.
    pub(super) fn places(&self) -> BTreeMap<u32, u64> {
        self.lock().done.clone()
    }

    /// The places that were not committed yet.
    pub(super) fn take_uncommitted(&self) -> Vec<(u32, u64)> {
        let mut held = self.lock();
        let partitions = std::mem::take(&mut held.uncommitted);
        partitions.into_iter().filter_map(|partition| held.done.get(&partition).map(|at| (partition, *at))).collect()
    }

    /// The reader is gone.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(inbox: &Inbox) -> Vec<Change> {
        std::iter::from_fn(|| inbox.take_change()).collect()
    }

    #[test]
    fn what_is_taken_away_before_it_was_told_is_not_told() {
        let inbox = Inbox::default();
        for _ in 0..1000 {
            inbox.assign(1);
            inbox.revoke(1);
        }
        assert_eq!(changes(&inbox), []);
        inbox.assign(1);
        assert_eq!(changes(&inbox), [Change::Assigned(1)]);
        inbox.revoke(1);
        inbox.assign(1);
        inbox.revoke(1);
        inbox.assign(1);
        assert_eq!(changes(&inbox), [Change::Revoked(1), Change::Assigned(1)]);
    }

    #[test]
    fn a_partition_that_comes_back_has_another_term() {
        let inbox = Inbox::default();
        inbox.assign(1);
        let first = inbox.term(1);
        inbox.revoke(1);
        assert_eq!(inbox.term(1), None);
        inbox.assign(1);
        assert!(inbox.term(1).is_some() && inbox.term(1) != first);
    }

    #[test]
    fn those_after_the_last_go_first() {
        let inbox = Inbox::default();
        [0, 2, 5].into_iter().for_each(|partition| inbox.ready(partition));
        assert_eq!(inbox.ready_after(u32::MAX), [0, 2, 5]);
        assert_eq!(inbox.ready_after(0), [2, 5, 0]);
        assert_eq!(inbox.ready_after(3), [5, 0, 2]);
    }

    #[test]
    fn only_what_is_held_is_committed_and_once() {
        let inbox = Inbox::default();
        inbox.done(7, 3);
        assert_eq!(inbox.take_uncommitted(), []);
        inbox.assign(7);
        inbox.begin(7, 1);
        assert_eq!(inbox.take_uncommitted(), []);
        inbox.done(7, 3);
        assert_eq!(inbox.take_uncommitted(), [(7, 3)]);
        assert_eq!(inbox.take_uncommitted(), []);
        inbox.done(7, 4);
        inbox.revoke(7);
        assert_eq!(inbox.take_uncommitted(), []);
    }
}
