//! Read marks: checked against membership and the head, given the senders who are to be told, and handed to the receipts.
//!
//! A device that repeats itself costs nothing: marks waiting are merged by maximum.
//!
//! Deliberately absent: an acknowledgement. The edge repeats a stream's marks when its owner changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use metrics::gauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, DeviceId, UserId};
use wardline_runtime::Refusal;

use super::Shared;
use super::receipts::Reporter;
use crate::backoff::Backoff;
use crate::measures as names;

/// Marks checked at once.
const AT_ONCE: usize = 16;
/// A mark tells the senders of at most this many messages up to it.
const TOLD: u64 = 64;
/// Marks remembered, so that the next one tells only the senders above it.
const REMEMBERED: usize = 65_536;
/// Attempts at a mark while a store does not answer.
const ATTEMPTS: u32 = 8;

/// Marks of one device that may wait, so that no device uses up the room of the others. The edge keeps as many to repeat.
pub(crate) const WAITING_A_DEVICE: usize = 64;

type Key = (u32, UserId, DeviceId, ConversationId);

/// Marks waiting to be checked.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    marks: HashMap<Key, u64>,
    /// How many of them are each device's.
    of_device: HashMap<(UserId, DeviceId), usize>,
}

impl Waiting {
    /// Answers false when too many wait, of all or of this device.
    fn add(&mut self, key: Key, sequence: u64, most: usize) -> bool {
        let device = (key.1, key.2);
        if let Some(known) = self.marks.get_mut(&key) {
            *known = sequence.max(*known);
            return true;
        }
        let of_device = self.of_device.get(&device).copied().unwrap_or_default();
        if self.marks.len() >= most || of_device >= WAITING_A_DEVICE {
            return false;
        }
        self.marks.insert(key, sequence);
        self.of_device.insert(device, of_device + 1);
        true
    }
}

impl Reads {
    /// Takes a mark in. Answers false when too many wait.
    pub(crate) fn add(&self, from: Reporter, conversation: ConversationId, sequence: Sequence, most: usize) -> bool {
        let key = (from.partition, from.user, from.device, conversation);
        if !self.lock().add(key, sequence.0, most) {
            return false;
        }
        self.some.notify_one();
        true
    }

    /// Sets the gauge of what waits.
    pub(crate) fn watch(&self) {
        gauge!(names::READS_WAITING).set(self.lock().marks.len() as f64);
    }

    /// Checks marks until `stop`.
    pub(crate) async fn run(&self, shared: &Shared, stop: CancellationToken) {
        let told = quick_cache::sync::Cache::<Key, u64>::new(REMEMBERED);
        loop {
            tokio::select! {
                () = self.some.notified() => {}
                () = stop.cancelled() => return,
            }
            let taken = std::mem::take(&mut *self.lock());
            futures::stream::iter(taken.marks)
                .for_each_concurrent(AT_ONCE, |(key, sequence)| {
                    let told = &told;
                    async move {
                        let after = told.get(&key).unwrap_or_default();
                        if let Some(reached) = check(shared, key, after, sequence).await {
                            told.insert(key, reached.max(after));
                        }
                    }
                })
                .await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Additions are whole or absent.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers with how far the mark reaches; `None` when it counts for nothing.
async fn check(shared: &Shared, key: Key, after: u64, sequence: u64) -> Option<u64> {
    let mut backoff = Backoff::new(&shared.options.timings);
    for _ in 0..ATTEMPTS {
        match check_once(shared, key, after, sequence).await {
            Ok(reached) => return Some(reached),
            Err(refusal) if refusal.retry_after.is_none() => return None,
            Err(_) => backoff.pause().await,
        }
    }
    tracing::warn!("a read mark was let go of: the stores do not answer");
    None
}

async fn check_once(shared: &Shared, key: Key, after: u64, sequence: u64) -> Result<u64, Refusal> {
    let (partition, user, device, conversation) = key;
    let seen = shared.members.of_user(conversation, user).await?;
    let mut head = seen.head.sequence.0;
    if head < sequence {
        head = shared.members.reload(conversation).await?.map_or(head, |seen| seen.head.sequence.0);
    }
    let sequence = sequence.min(head + stored_above(shared, conversation, head, sequence).await?);
    if sequence == 0 {
        return Ok(0);
    }
    let first = after.max(sequence.saturating_sub(TOLD)).min(sequence - 1) + 1;
    let keys: Vec<_> = (first..=sequence).map(|sequence| (conversation, Sequence(sequence))).collect();
    let rows = shared.stores.conversations.messages_at(&keys).await?;
    let senders: BTreeSet<UserId> = rows.into_iter().flatten().map(|row| row.sender).filter(|to| *to != user).collect();
    let senders: Vec<UserId> = senders.into_iter().collect();
    shared.receipts.read(Reporter { partition, user, device }, conversation, Sequence(sequence), &senders);
    Ok(sequence)
}

/// How many messages up to `sequence` are stored above the head. A message is stored before anybody is told of it and the head
/// is raised after, so a quick reader's mark lies above the head, and nobody sends it again.
async fn stored_above(shared: &Shared, conversation: ConversationId, head: u64, sequence: u64) -> Result<u64, Refusal> {
    let keys: Vec<_> = (head + 1..=sequence.min(head + TOLD)).map(|above| (conversation, Sequence(above))).collect();
    if keys.is_empty() {
        return Ok(0);
    }
    let rows = shared.stores.conversations.messages_at(&keys).await?;
    Ok(rows.iter().take_while(|row| row.is_some()).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 3 * WAITING_A_DEVICE / 2;

    fn reporter(device: u8) -> Reporter {
        Reporter { partition: 0, user: UserId::from_bytes([1; 16]), device: DeviceId::from_bytes([device; 16]) }
    }

    /// How many of 200 conversations' marks are taken in.
    fn taken(reads: &Reads, device: u8) -> usize {
        let add = |conversation| {
            reads.add(reporter(device), ConversationId::from_bytes([conversation; 16]), Sequence(1), MOST)
        };
        (0..200).filter(|conversation| add(*conversation)).count()
    }

    /// The law: one device never takes the room of the others, and a repeat never needs any.
    #[test]
    fn a_device_has_its_share_of_the_room() {
        let reads = Reads::default();
        assert_eq!(taken(&reads, 1), WAITING_A_DEVICE);
        assert_eq!(taken(&reads, 1), WAITING_A_DEVICE, "a repeat is merged");
        assert_eq!(taken(&reads, 2), MOST - WAITING_A_DEVICE);
        assert!(reads.add(reporter(1), ConversationId::from_bytes([0; 16]), Sequence(9), MOST));
        let waiting = std::mem::take(&mut *reads.lock());
        assert!(waiting.marks.values().any(|sequence| *sequence == 9));
        assert_eq!(taken(&reads, 2), WAITING_A_DEVICE, "what was taken out to be checked makes room");
    }
}
