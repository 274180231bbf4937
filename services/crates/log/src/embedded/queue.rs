//! What waits for the writer, within a budget of bytes.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use wardline_domain::{Cause, Failure, Position};

use super::lock;
use crate::seam::{NewRecord, Permit, Refused};
use crate::topic::Partition;

/// About two commits of a slow disk.
const RETRY_AFTER: Duration = Duration::from_millis(20);

pub(super) type Answer<T> = Result<T, Failure>;

/// What the writer is asked for.
pub(super) enum Request {
    Append { to: Partition, batch: Vec<NewRecord>, permit: Permit, answer: oneshot::Sender<Answer<Vec<Position>>> },
    Trim { partition: Partition, floor: u64, answer: oneshot::Sender<Answer<()>> },
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    closed: bool,
}

pub(super) struct Queue {
    budget: u32,
    free: Arc<AtomicU32>,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    drained: watch::Sender<bool>,
}

impl Queue {
    pub(super) fn new(budget: u32) -> Self {
        Self {
            budget,
            free: Arc::new(AtomicU32::new(budget)),
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            drained: watch::Sender::new(false),
        }
    }

    pub(super) fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        if lock(&self.waiting).closed {
            return Err(Refused::Closed);
        }
        if bytes.get() > self.budget {
            return Err(Refused::TooLarge);
        }
        let take = |free: u32| free.checked_sub(bytes.get());
        self.free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .map_err(|_| Refused::Overloaded { retry_after: RETRY_AFTER })?;
        let free = Arc::clone(&self.free);
        Ok(Permit::new(bytes, move || {
            free.fetch_add(bytes.get(), Ordering::AcqRel);
        }))
    }

    /// The order of calls is the order in the log.
    pub(super) fn push(&self, request: Request) -> Result<(), Failure> {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return Err(Failure::NotApplied(Cause::unavailable("the log is closed")));
        }
        waiting.requests.push_back(request);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for requests, or only looks when `idle` is false, and takes all of them. `None` when closed and empty.
    pub(super) fn take(&self, idle: bool) -> Option<VecDeque<Request>> {
        let mut waiting = lock(&self.waiting);
        while idle && waiting.requests.is_empty() && !waiting.closed {
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if waiting.closed && waiting.requests.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut waiting.requests))
    }

    /// Takes nothing more. What is queued is still done.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.arrived.notify_all();
    }

    pub(super) fn is_drained(&self) -> bool {
        *self.drained.borrow()
    }

    /// The writer has ended: what is still queued, if it failed, is told `Unknown` by being dropped.
    pub(super) fn end(&self) {
        self.close();
        lock(&self.waiting).requests.clear();
        self.drained.send_replace(true);
    }

    pub(super) async fn drained(&self) {
        let mut drained = self.drained.subscribe();
        // The sender is a field of self, so it cannot be gone.
        let _ = drained.wait_for(|drained| *drained).await;
    }
}
