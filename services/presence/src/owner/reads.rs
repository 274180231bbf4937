//! Read marks: checked against membership and the head, given the senders who are to be told, and handed to the receipts.
//!
//! A device that repeats itself costs nothing: marks waiting are merged by maximum.
//!
//! Deliberately absent: an acknowledgement. The edge repeats a stream's marks when its owner changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, DeviceId, UserId};
use wardline_runtime::Refusal;

use super::Shared;
use super::receipts::Reporter;
use crate::backoff::Backoff;

/// Marks checked at once.
const AT_ONCE: usize = 16;
/// A mark tells the senders of at most this many messages up to it.
const TOLD: u64 = 64;
/// Marks remembered, so that the next one tells only the senders above it.
const REMEMBERED: usize = 65_536;
/// Attempts at a mark while a store does not answer.
const ATTEMPTS: u32 = 8;

type Key = (u32, UserId, DeviceId, ConversationId);

/// Marks waiting to be checked.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Mutex<HashMap<Key, u64>>,
    some: Notify,
}

impl Reads {
    /// Takes a mark in. Answers false when too many wait.
    pub(crate) fn add(&self, from: Reporter, conversation: ConversationId, sequence: Sequence, most: usize) -> bool {
        let mut waiting = self.lock();
        let key = (from.partition, from.user, from.device, conversation);
        if waiting.len() >= most && !waiting.contains_key(&key) {
            return false;
        }
        let known = waiting.entry(key).or_default();
        *known = sequence.0.max(*known);
        drop(waiting);
        self.some.notify_one();
        true
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
            futures::stream::iter(taken)
                .for_each_concurrent(AT_ONCE, |(key, sequence)| {
                    let after = told.get(&key).unwrap_or_default();
                    told.insert(key, sequence.max(after));
                    check(shared, key, after, sequence)
                })
                .await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u64>> {
        // Insertions are whole or absent.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn check(shared: &Shared, key: Key, after: u64, sequence: u64) {
    let mut backoff = Backoff::new(&shared.options.timings);
    for _ in 0..ATTEMPTS {
        match check_once(shared, key, after, sequence).await {
            Ok(()) => return,
            Err(refusal) if refusal.retry_after.is_none() => return,
            Err(_) => backoff.pause().await,
        }
    }
    tracing::warn!("a read mark was let go of: the stores do not answer");
}

async fn check_once(shared: &Shared, key: Key, after: u64, sequence: u64) -> Result<(), Refusal> {
    let (partition, user, device, conversation) = key;
    let seen = shared.members.of_user(conversation, user).await?;
    let mut head = seen.head.sequence.0;
    if head < sequence {
        head = shared.members.reload(conversation).await?.map_or(head, |seen| seen.head.sequence.0);
    }
    let sequence = sequence.min(head);
    if sequence == 0 {
        return Ok(());
    }
    let first = after.max(sequence.saturating_sub(TOLD)).min(sequence - 1) + 1;
    let keys: Vec<_> = (first..=sequence).map(|sequence| (conversation, Sequence(sequence))).collect();
    let rows = shared.stores.conversations.messages_at(&keys).await?;
    let senders: BTreeSet<UserId> = rows.into_iter().flatten().map(|row| row.sender).filter(|to| *to != user).collect();
    let senders: Vec<UserId> = senders.into_iter().collect();
    shared.receipts.read(Reporter { partition, user, device }, conversation, Sequence(sequence), &senders);
    Ok(())
}
