//! Who follows which partition.
//!
//! A partition that moves is the new member's at once: the old one gives out nothing of it from that moment, and is told.
//! Only what must move moves.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::lock;
use crate::seam::Group;
use crate::topic::{Partition, Topic};

/// A change of what a member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Assigned(u32),
    Revoked(u32),
}

/// Tells two assignments of one partition apart.
pub(super) type Term = u64;

#[derive(Default)]
struct Held {
    partitions: BTreeMap<u32, Term>,
    /// The offset that each started partition gives out next.
    next: BTreeMap<u32, u64>,
    changes: VecDeque<Change>,
    /// Something of it became readable, or the log ended, since it was last woken.
    stirred: bool,
}

/// What one subscriber is told through.
#[derive(Default)]
pub(super) struct Inbox {
    held: Mutex<Held>,
    pub(super) stirred: Notify,
    next_term: AtomicU64,
}

impl Inbox {
    pub(super) fn take_change(&self) -> Option<Change> {
        lock(&self.held).changes.pop_front()
    }

    pub(super) fn term(&self, partition: u32) -> Option<Term> {
        lock(&self.held).partitions.get(&partition).copied()
    }

    /// Remembers what the partition gives out next: nothing from there on is trimmed.
    pub(super) fn stand(&self, partition: u32, next: u64) {
        let mut held = lock(&self.held);
        if held.partitions.contains_key(&partition) {
            held.next.insert(partition, next);
        }
    }

    fn count(&self) -> usize {
        lock(&self.held).partitions.len()
    }

    fn assign(&self, partition: u32) {
        let mut held = lock(&self.held);
        held.partitions.insert(partition, self.next_term.fetch_add(1, Ordering::Relaxed));
        held.changes.push_back(Change::Assigned(partition));
        self.stirred.notify_one();
    }

    /// Takes the highest partition away.
    fn revoke_last(&self) -> Option<u32> {
        let mut held = lock(&self.held);
        let (partition, _) = held.partitions.pop_last()?;
        held.next.remove(&partition);
        held.changes.push_back(Change::Revoked(partition));
        self.stirred.notify_one();
        Some(partition)
    }
}

struct Member {
    id: u64,
    topic: Topic,
    group: Group,
    inbox: Arc<Inbox>,
}

pub(super) struct Groups {
    members: Mutex<Vec<Member>>,
    next_id: AtomicU64,
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { members: Mutex::default(), next_id: AtomicU64::new(0) }
    }

    pub(super) fn join(&self, group: Group, topic: Topic, partitions: u32) -> (u64, Arc<Inbox>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Inbox::default());
        let mut members = lock(&self.members);
        members.push(Member { id, topic, group, inbox: Arc::clone(&inbox) });
        match group {
            Group::Everyone => (0..partitions).for_each(|partition| inbox.assign(partition)),
            Group::Named(_) => rebalance(&members, group, topic, partitions),
        }
        (id, inbox)
    }

    pub(super) fn leave(&self, id: u64, partitions: u32) {
        let mut members = lock(&self.members);
        let Some(at) = members.iter().position(|member| member.id == id) else { return };
        let gone = members.remove(at);
        if let Group::Named(_) = gone.group {
            rebalance(&members, gone.group, gone.topic, partitions);
        }
    }

    /// The lowest offset that a live subscriber has not been given yet.
    pub(super) fn lowest(&self, partition: Partition) -> Option<u64> {
        let members = lock(&self.members);
        let of_topic = members.iter().filter(|member| member.topic == partition.topic);
        of_topic.filter_map(|member| lock(&member.inbox.held).next.get(&partition.index).copied()).min()
    }

    /// Remembers that something of a partition became readable.
    pub(super) fn note(&self, partition: Partition) {
        for member in lock(&self.members).iter().filter(|member| member.topic == partition.topic) {
            let mut held = lock(&member.inbox.held);
            held.stirred |= held.partitions.contains_key(&partition.index);
        }
    }

    /// Wakes those concerned by a `note`, each once.
    pub(super) fn wake(&self) {
        for member in lock(&self.members).iter() {
            if std::mem::take(&mut lock(&member.inbox.held).stirred) {
                member.inbox.stirred.notify_one();
            }
        }
    }

    pub(super) fn wake_all(&self) {
        lock(&self.members).iter().for_each(|member| member.inbox.stirred.notify_one());
    }
}

/// Gives each member of the group its share: those who hold most keep one more when it does not divide evenly.
fn rebalance(members: &[Member], group: Group, topic: Topic, partitions: u32) {
    let mut of_group: Vec<&Inbox> =
        members.iter().filter(|m| m.group == group && m.topic == topic).map(|m| &*m.inbox).collect();
    if of_group.is_empty() {
        return;
    }
    of_group.sort_by_key(|inbox| std::cmp::Reverse(inbox.count()));
    let count = of_group.len();
    let share = |rank: usize| partitions as usize / count + usize::from(rank < partitions as usize % count);
    let held: HashSet<u32> =
        of_group.iter().flat_map(|inbox| lock(&inbox.held).partitions.keys().copied().collect::<Vec<_>>()).collect();
    let mut free: BTreeSet<u32> = (0..partitions).filter(|partition| !held.contains(partition)).collect();
    for (rank, inbox) in of_group.iter().enumerate() {
        while inbox.count() > share(rank) {
            free.extend(inbox.revoke_last());
        }
    }
    for (rank, inbox) in of_group.iter().enumerate() {
        while inbox.count() < share(rank)
            && let Some(partition) = free.pop_first()
        {
            inbox.assign(partition);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GROUP: Group = Group::Named("g");

    fn held(inbox: &Inbox) -> Vec<u32> {
        lock(&inbox.held).partitions.keys().copied().collect()
    }

    #[test]
    fn joining_moves_only_what_must_move() {
        let groups = Groups::new();
        let (_, a) = groups.join(GROUP, Topic::Feeds, 8);
        let (_, b) = groups.join(GROUP, Topic::Feeds, 8);
        assert_eq!((held(&a), held(&b)), (vec![0, 1, 2, 3], vec![4, 5, 6, 7]));
        let (_, c) = groups.join(GROUP, Topic::Feeds, 8);
        assert_eq!((held(&a), held(&b), held(&c)), (vec![0, 1, 2], vec![4, 5, 6], vec![3, 7]));
    }

    #[test]
    fn leaving_gives_its_partitions_to_the_others_and_takes_none_from_them() {
        let groups = Groups::new();
        let (first, a) = groups.join(GROUP, Topic::Feeds, 4);
        let (_, b) = groups.join(GROUP, Topic::Feeds, 4);
        groups.leave(first, 4);
        assert_eq!(held(&b), vec![0, 1, 2, 3]);
        assert!(!lock(&b.held).changes.iter().any(|change| matches!(change, Change::Revoked(_))));
        drop(a);
    }

    #[test]
    fn groups_and_topics_do_not_share() {
        let groups = Groups::new();
        let (_, a) = groups.join(GROUP, Topic::Feeds, 2);
        let (_, b) = groups.join(Group::Named("h"), Topic::Feeds, 2);
        let (_, c) = groups.join(GROUP, Topic::Receipts, 2);
        let (_, d) = groups.join(Group::Everyone, Topic::Feeds, 2);
        for inbox in [a, b, c, d] {
            assert_eq!(held(&inbox), vec![0, 1]);
        }
    }
}
