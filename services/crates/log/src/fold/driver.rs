//! The poller: follows the topic and hands each partition's batches to its task.
//!
//! It never waits for a task: a partition whose queue is full is paused in the subscription, so that rebalances are seen while
//! a partition is stuck.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wardline_domain::{Cause, Failure, Position};
use wardline_store::Checkpoints;
use wardline_store::checkpoints::Checkpoint;

use super::measure::{Measures, PartitionMeasures, WATCH_EVERY};
use super::progress::Progress;
use super::retry::{Backoff, passes, pause};
use super::spans::Tracer;
use super::worker::{Report, TaskId, Worker};
use super::{Ended, Folds, Options};
use crate::seam::{Event, EventLog, Group, LogRecord, Start, Subscription};
use crate::topic::Partition;

/// Batches that wait for one partition's task.
const QUEUED_BATCHES: usize = 4;
/// A topic that failed is followed again when this long after the next try nothing failed: it may have nothing to give.
/// Engines that are away say so again within this time.
const QUIET: Duration = Duration::from_secs(6);

/// A partition that is this driver's.
struct Slot {
    id: TaskId,
    end: CancellationToken,
    /// `None` until it is started.
    batches: Option<mpsc::Sender<Vec<LogRecord>>>,
    /// What the subscription gave out after the queue was full.
    overflow: VecDeque<Vec<LogRecord>>,
    paused: bool,
    done: Option<Position>,
    /// A checkpoint's position that the log's oldest record lies above and that stayed when it was read again.
    settled: Option<Option<Position>>,
    backoff: Backoff,
    progress: Progress,
    measures: PartitionMeasures,
}

/// How a task ended.
enum Finished {
    /// A partition's checkpoint is loaded.
    Loaded(u32, TaskId, Result<Option<Checkpoint>, Failure>),
    /// A partition's task ended.
    Worker(u32, Result<(), Failure>),
    Trimmed,
}

pub(super) struct Driver<F: Folds> {
    log: Arc<dyn EventLog>,
    checkpoints: Arc<dyn Checkpoints>,
    folds: Arc<F>,
    options: Options,
    slots: HashMap<u32, Slot>,
    /// Partitions whose task has not ended yet, taken away or not.
    running: HashSet<u32>,
    tasks: JoinSet<Finished>,
    next_id: TaskId,
    reporter: mpsc::UnboundedSender<(u32, TaskId, Report)>,
    reports: mpsc::UnboundedReceiver<(u32, TaskId, Report)>,
    trimming: bool,
    following: bool,
    measures: Measures,
}

impl<F: Folds> Driver<F> {
    pub(super) fn new(
        log: Arc<dyn EventLog>,
        checkpoints: Arc<dyn Checkpoints>,
        folds: Arc<F>,
        options: Options,
    ) -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        let measures = Measures::of(options.topic.name());
        Self {
            log,
            checkpoints,
            folds,
            options,
            slots: HashMap::new(),
            running: HashSet::new(),
            tasks: JoinSet::new(),
            next_id: 0,
            reporter,
            reports,
            trimming: false,
            following: false,
            measures,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Ended {
        let ended = match self.subscribe(&stop).await {
            Ok(subscription) => {
                self.following(true);
                self.follow(subscription, &stop).await
            }
            Err(ended) => ended,
        };
        self.finish(ended).await
    }

    async fn subscribe(&self, stop: &CancellationToken) -> Result<Box<dyn Subscription>, Ended> {
        let mut backoff = Backoff::default();
        loop {
            let Options { group, topic, limits, .. } = self.options;
            match self.log.subscribe(group, topic, limits).await {
                Ok(subscription) => return Ok(subscription),
                Err(failure) if passes(&failure) => {
                    tracing::warn!(topic = topic.name(), %failure, "cannot subscribe");
                    self.measures.paused(&failure);
                    pause(backoff.pause(), stop).await.map_err(|_| Ended::Stopped)?;
                }
                Err(failure) => return Err(Ended::Halted { partition: None, failure }),
            }
        }
    }

    fn following(&mut self, following: bool) {
        if self.following != following {
            self.following = following;
            self.folds.watch().following(following);
        }
    }

    async fn follow(&mut self, mut subscription: Box<dyn Subscription>, stop: &CancellationToken) -> Ended {
        let mut trim = tokio::time::interval(self.options.trim_every.max(Duration::from_millis(1)));
        trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        trim.reset();
        let mut watch = tokio::time::interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::default();
        let mut not_before = None;
        loop {
            let turn = tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Stopped,
                Some((index, id, report)) = self.reports.recv() => {
                    self.reported(&mut *subscription, index, id, report);
                    Ok(())
                }
                Some(finished) = self.tasks.join_next() => self.finished(&mut *subscription, finished).await,
                _ = trim.tick() => {
                    self.trim();
                    Ok(())
                }
                _ = watch.tick() => {
                    self.watch();
                    Ok(())
                }
                () = quiet(not_before), if !self.following => {
                    self.following(true);
                    Ok(())
                }
                polled = next(&mut *subscription, not_before) => {
                    not_before = None;
                    match polled {
                        Ok(event) => {
                            backoff.reset();
                            self.following(true);
                            self.event(&mut *subscription, event);
                            Ok(())
                        }
                        Err(failure) if passes(&failure) => {
                            tracing::warn!(topic = self.options.topic.name(), %failure, "cannot follow");
                            self.measures.paused(&failure);
                            self.following(false);
                            not_before = Some(Instant::now() + backoff.pause());
                            Ok(())
                        }
                        Err(failure) => Err(Ended::Halted { partition: None, failure }),
                    }
                }
            };
            if let Err(ended) = turn {
                return ended;
            }
        }
    }

    fn event(&mut self, subscription: &mut dyn Subscription, event: Event) {
        match event {
            Event::Assigned(index) => {
                self.release(index);
                let id = self.next_id;
                self.next_id += 1;
                let slot = Slot {
                    id,
                    end: CancellationToken::new(),
                    batches: None,
                    overflow: VecDeque::new(),
                    paused: false,
                    done: None,
                    settled: None,
                    backoff: Backoff::default(),
                    progress: Progress::default(),
                    measures: PartitionMeasures::of(self.options.topic.name(), index),
                };
                self.slots.insert(index, slot);
                // Otherwise it is loaded when the task before it has ended.
                if !self.running.contains(&index) {
                    self.load(index, Duration::ZERO);
                }
            }
            Event::Revoked(index) => self.release(index),
            Event::Records { partition, records } => {
                let Some(slot) = self.slots.get_mut(&partition) else { return };
                slot.progress.given(&records);
                slot.overflow.push_back(records);
                hand_over(subscription, partition, slot);
            }
        }
    }

    /// Tells a partition's task to end. One that never came to have a task says itself that it waits no more.
    fn release(&mut self, index: u32) {
        if let Some(slot) = self.slots.remove(&index) {
            slot.end.cancel();
            if slot.batches.is_none() && slot.backoff.failed() {
                self.folds.watch().resumed(index);
            }
        }
    }

    fn reported(&mut self, subscription: &mut dyn Subscription, index: u32, id: TaskId, report: Report) {
        let Some(slot) = self.slots.get_mut(&index).filter(|slot| slot.id == id) else { return };
        match report {
            Report::Room => hand_over(subscription, index, slot),
            Report::Done(through) => {
                slot.done = Some(through);
                slot.progress.done(through);
                subscription.ack(index, through);
            }
        }
    }

    async fn finished(
        &mut self,
        subscription: &mut dyn Subscription,
        finished: Result<Finished, JoinError>,
    ) -> Result<(), Ended> {
        match unwind(finished) {
            Some(Finished::Loaded(index, id, loaded)) => self.begin(subscription, index, id, loaded).await,
            Some(Finished::Worker(index, outcome)) => {
                self.running.remove(&index);
                outcome.map_err(|failure| self.halted(index, failure))?;
                if self.slots.get(&index).is_some_and(|slot| slot.batches.is_none()) {
                    self.load(index, Duration::ZERO);
                }
                Ok(())
            }
            Some(Finished::Trimmed) => {
                self.trimming = false;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Reads a partition's checkpoint, after a pause.
    fn load(&mut self, index: u32, after: Duration) {
        let Some(slot) = self.slots.get(&index) else { return };
        let (id, end, checkpoints) = (slot.id, slot.end.clone(), Arc::clone(&self.checkpoints));
        let name = self.options.checkpointed.then_some((self.options.topic.name(), index));
        self.tasks.spawn(async move {
            // When it ended meanwhile, what is loaded is for nobody.
            let _ = pause(after, &end).await;
            let loaded = match name {
                Some(name) => checkpoints.get(name).await,
                None => Ok(None),
            };
            Finished::Loaded(index, id, loaded)
        });
    }

    /// Starts a partition at its checkpoint, with its task.
    async fn begin(
        &mut self,
        subscription: &mut dyn Subscription,
        index: u32,
        id: TaskId,
        loaded: Result<Option<Checkpoint>, Failure>,
    ) -> Result<(), Ended> {
        if self.slots.get(&index).is_none_or(|slot| slot.id != id) {
            return Ok(());
        }
        let begun = match loaded {
            Ok(checkpoint) => self.start(subscription, index, checkpoint).await,
            Err(failure) => Err(failure),
        };
        match begun {
            Ok(()) => Ok(()),
            Err(failure) if passes(&failure) => {
                tracing::warn!(topic = self.options.topic.name(), partition = index, %failure, "cannot start");
                self.folds.watch().paused(index, &failure);
                self.measures.paused(&failure);
                let pause = self.slots.get_mut(&index).map(|slot| {
                    slot.measures.waits().set(true);
                    slot.backoff.pause()
                });
                self.load(index, pause.unwrap_or_default());
                Ok(())
            }
            Err(failure) => Err(self.halted(index, failure)),
        }
    }

    async fn start(
        &mut self,
        subscription: &mut dyn Subscription,
        index: u32,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(), Failure> {
        let from = checkpoint.as_ref().map_or(self.options.start, |checkpoint| Start::At(checkpoint.position));
        let started = subscription.start(index, from).await?;
        if checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.position >= started.end) {
            return Err(Failure::NotApplied(Cause::corrupt("the checkpoint lies beyond the log's end")));
        }
        let Some(slot) = self.slots.get_mut(&index) else { return Ok(()) };
        // What the log does not hold any more may have been folded and trimmed by another member since the checkpoint was
        // read: then there is a newer one. When it stands still, the records were removed by retention.
        let place = checkpoint.as_ref().map(|checkpoint| checkpoint.position);
        slot.progress.started(place, started);
        if self.options.checkpointed && started.oldest > place && slot.settled != Some(place) {
            slot.settled = Some(place);
            subscription.pause(index);
            self.load(index, Duration::ZERO);
            return Ok(());
        }
        if slot.settled.is_some() {
            // Given out before the pause; the start above gives it out again.
            slot.overflow.clear();
            subscription.resume(index);
        }
        if slot.backoff.failed() {
            slot.measures.waits().set(false);
            self.folds.watch().resumed(index);
        }
        let (sender, batches) = mpsc::channel(QUEUED_BATCHES);
        slot.batches = Some(sender);
        let worker = Worker {
            id: slot.id,
            partition: index,
            folds: Arc::clone(&self.folds),
            checkpoints: Arc::clone(&self.checkpoints),
            options: self.options.clone(),
            checkpoint,
            started,
            batches,
            reports: self.reporter.clone(),
            end: slot.end.clone(),
            tracer: Tracer::new(self.options.topic, self.options.group, index),
            measures: self.measures.clone(),
            waits: slot.measures.waits().clone(),
        };
        self.running.insert(index);
        self.tasks.spawn(async move { Finished::Worker(index, worker.run().await) });
        Ok(())
    }

    /// Trims the log behind what is checkpointed, one at a time and beside everything else. A compacted topic is never
    /// trimmed: others read it from its oldest record at every start.
    fn trim(&mut self) {
        let options = &self.options;
        let kept = options.checkpointed && !options.topic.compacted() && matches!(options.group, Group::Named(_));
        let places: Vec<_> =
            self.slots.iter().filter_map(|(index, slot)| slot.done.and_then(below).zip(Some(*index))).collect();
        if !kept || self.trimming || places.is_empty() {
            return;
        }
        self.trimming = true;
        let (log, checkpoints, topic) = (Arc::clone(&self.log), Arc::clone(&self.checkpoints), self.options.topic);
        self.tasks.spawn(async move {
            let trimmed = async {
                checkpoints.flush().await?;
                for (through, index) in places {
                    log.trim(Partition { topic, index }, through).await?;
                }
                Ok::<_, Failure>(())
            };
            if let Err(failure) = trimmed.await {
                tracing::warn!(topic = topic.name(), %failure, "cannot trim the log");
            }
            Finished::Trimmed
        });
    }

    /// Sets the gauges.
    fn watch(&self) {
        let paused = self.slots.values().filter(|slot| slot.measures.is_waiting()).count();
        self.measures.partitions(self.slots.len(), paused);
        for slot in self.slots.values() {
            slot.measures.set(&slot.progress);
        }
    }

    fn halted(&self, index: u32, failure: Failure) -> Ended {
        Ended::Halted { partition: Some(Partition { topic: self.options.topic, index }), failure }
    }

    /// Waits until every task has ended and given its fold back. The first that halted is the reason.
    async fn finish(mut self, ended: Ended) -> Ended {
        for slot in self.slots.values() {
            slot.end.cancel();
        }
        let mut ended = ended;
        while let Some(finished) = self.tasks.join_next().await {
            if let (Some(Finished::Worker(index, Err(failure))), Ended::Stopped) = (unwind(finished), &ended) {
                ended = self.halted(index, failure);
            }
        }
        self.measures.partitions(0, 0);
        if let Ended::Halted { failure, .. } = &ended {
            self.measures.halted(failure);
        }
        ended
    }
}

/// Gives a partition's task what its queue takes, and pauses or resumes the partition to match.
fn hand_over(subscription: &mut dyn Subscription, index: u32, slot: &mut Slot) {
    let Some(batches) = &slot.batches else { return };
    while let Some(records) = slot.overflow.pop_front() {
        // A closed queue is a task that is ending.
        if let Err(TrySendError::Full(records)) = batches.try_send(records) {
            slot.overflow.push_front(records);
            break;
        }
    }
    let full = batches.capacity() == 0;
    if full != slot.paused {
        slot.paused = full;
        if full { subscription.pause(index) } else { subscription.resume(index) }
    }
}

/// The position before, so that the record at the checkpoint stays and is compared at the next start.
fn below(position: Position) -> Option<Position> {
    position.offset().checked_sub(1).and_then(|offset| Position::new(position.incarnation(), offset))
}

/// The next event, not before a moment. Cancel-safe.
async fn next(subscription: &mut dyn Subscription, not_before: Option<Instant>) -> Result<Event, Failure> {
    if let Some(at) = not_before {
        tokio::time::sleep_until(at).await;
    }
    subscription.next().await
}

/// Until a try has gone on for a while.
async fn quiet(not_before: Option<Instant>) {
    tokio::time::sleep_until(not_before.unwrap_or_else(Instant::now) + QUIET).await;
}

/// A fold that panicked ends the driver as it would have ended a thread. `None` for a task that was aborted.
fn unwind(finished: Result<Finished, JoinError>) -> Option<Finished> {
    match finished {
        Ok(finished) => Some(finished),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}
