//! A log that tells a role whether it takes what is appended.
//!
//! One failure is a hiccup. What fails, or stays unanswered, for two seconds on end without a success between is an outage:
//! the role stops serving, which also ends the calls that would show that it is over. So it serves again ten seconds after the
//! last failure, and the next append decides.
//!
//! Deliberately absent: reading, of which whoever follows a topic tells.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Failure, Position};
use wardline_log::fold::retry::passes;
use wardline_log::{
    Appended, EventLog, FetchLimits, Group, NewRecord, Partition, Permit, Refused, Subscription, Topic,
};
use wardline_runtime::health::{Cause, Condition, Reporter};

/// How long nothing succeeds before it is an outage.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after the last failure it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// The same log. `role` serves while it takes what is appended.
pub(super) fn watched(log: Arc<dyn EventLog>, role: &Reporter) -> Arc<dyn EventLog> {
    let condition = role.condition(Cause::Log);
    condition.set(true);
    Arc::new(Watched { log, appends: Arc::new(Appends { condition, trouble: Mutex::default() }) })
}

struct Watched {
    log: Arc<dyn EventLog>,
    appends: Arc<Appends>,
}

struct Appends {
    condition: Condition,
    trouble: Mutex<Option<Trouble>>,
}

/// Nothing has succeeded since it began.
struct Trouble {
    began: Instant,
    last: Instant,
    is_outage: bool,
}

impl Appends {
    fn lock(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worked(&self) {
        let mut trouble = self.lock();
        if trouble.take().is_some() {
            self.condition.set(true);
        }
    }

    /// What began at `began` has failed.
    fn failed(self: &Arc<Self>, began: Instant) {
        let now = Instant::now();
        let mut trouble = self.lock();
        let known = trouble.get_or_insert(Trouble { began, last: now, is_outage: false });
        known.last = now;
        if known.is_outage || now.duration_since(known.began) < PATIENCE {
            return;
        }
        known.is_outage = true;
        self.condition.set(false);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(Arc::clone(self).try_again());
        }
    }

    async fn try_again(self: Arc<Self>) {
        loop {
            let Some(due) = self.lock().as_ref().map(|trouble| trouble.last + AGAIN) else { return };
            if due <= Instant::now() {
                return self.worked();
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

#[async_trait]
impl EventLog for Watched {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        self.log.partitions(topic)
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        let reserved = self.log.reserve(bytes);
        if let Err(Refused::Closed) = reserved {
            self.appends.failed(Instant::now().checked_sub(PATIENCE).unwrap_or_else(Instant::now));
        }
        reserved
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        let appended = self.log.append(permit, to, batch);
        Box::pin(Watching { appended, began: Instant::now(), appends: Some(Arc::clone(&self.appends)) })
    }

    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure> {
        self.log.subscribe(group, topic, limits).await
    }

    async fn trim(&self, partition: Partition, through: Position) -> Result<(), Failure> {
        self.log.trim(partition, through).await
    }

    async fn close(&self, deadline: Instant) -> Result<(), Failure> {
        self.log.close(deadline).await
    }
}

/// An append under way.
struct Watching {
    appended: Appended,
    began: Instant,
    /// `None` once it is answered.
    appends: Option<Arc<Appends>>,
}

impl Future for Watching {
    type Output = Result<Vec<Position>, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(answer) = self.appended.as_mut().poll(context) else { return Poll::Pending };
        if let Some(appends) = self.appends.take() {
            match &answer {
                Ok(_) => appends.worked(),
                Err(failure) if passes(failure) => appends.failed(self.began),
                Err(_) => {}
            }
        }
        Poll::Ready(answer)
    }
}

impl Drop for Watching {
    /// Who stops waiting for an answer that late has waited in vain.
    fn drop(&mut self) {
        if let Some(appends) = self.appends.take()
            && self.began.elapsed() >= PATIENCE
        {
            appends.failed(self.began);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use wardline_log::laws::{Fault, MemoryLog};
    use wardline_runtime::health::Health;

    use super::*;

    struct World {
        health: Health,
        log: Arc<dyn EventLog>,
        away: Arc<AtomicBool>,
    }

    impl World {
        fn new() -> Self {
            let (health, away) = (Health::default(), Arc::new(AtomicBool::new(false)));
            let fails = Arc::clone(&away);
            let inner =
                MemoryLog::new(move |_| if fails.load(Ordering::SeqCst) { Fault::NotApplied } else { Fault::Works });
            let log = watched(Arc::new(inner), &health.role("ingest"));
            Self { health, log, away }
        }

        fn serves(&self) -> bool {
            self.health.snapshot().iter().all(|(_, serves)| *serves)
        }

        async fn append(&self, away: bool) {
            self.away.store(away, Ordering::SeqCst);
            let permit = self.log.reserve(NonZeroU32::MIN).unwrap();
            let record = NewRecord { key: Bytes::new(), payload: Bytes::from_static(b"x"), headers: Vec::new() };
            let appended = self.log.append(permit, Partition { topic: Topic::Conversations, index: 0 }, vec![record]);
            assert_eq!(appended.await.is_err(), away);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hiccup_is_no_outage_and_two_seconds_of_failures_are() {
        let world = World::new();
        for _ in 0..5 {
            world.append(true).await;
            tokio::time::advance(Duration::from_secs(1)).await;
            world.append(true).await;
            world.append(false).await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(world.serves());
        for _ in 0..3 {
            world.append(true).await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(!world.serves());
        world.append(false).await;
        assert!(world.serves(), "it takes appends again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_nobody_tries_is_tried_again_after_a_while() {
        let world = World::new();
        for _ in 0..3 {
            world.append(true).await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        world.append(true).await;
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(!world.serves(), "it failed less than ten seconds ago");
        world.health.until("ingest", true).await;
        assert!(Instant::now().elapsed() < AGAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_unanswered_has_failed() {
        let world = World::new();
        let hang = |appends: &Arc<Appends>| Watching {
            appended: Box::pin(std::future::pending()),
            began: Instant::now(),
            appends: Some(Arc::clone(appends)),
        };
        let condition = world.health.role("ingest").condition(Cause::Log);
        condition.set(true);
        let appends = Arc::new(Appends { condition, trouble: Mutex::default() });
        let _ = tokio::time::timeout(Duration::from_secs(1), hang(&appends)).await;
        assert!(world.serves(), "its caller went away");
        let _ = tokio::time::timeout(Duration::from_secs(10), hang(&appends)).await;
        assert!(!world.serves());
    }
}
