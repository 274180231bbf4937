//! One partition's task: takes batches from its queue, folds them, does what they came to, checkpoints.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wardline_domain::{Cause, Failure, Position};
use wardline_store::Checkpoints;
use wardline_store::checkpoints::Checkpoint;

use super::measure::{Measures, Step, Waits};
use super::retry::{Backoff, Interrupted, passes, pause};
use super::spans::Tracer;
use super::{Fold, Folds, Options};
use crate::seam::{LogRecord, Started};

/// A task's number: a partition may come back while reports of its former task are still under way.
pub(super) type TaskId = u64;

/// What a task tells the driver while it runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Report {
    /// A batch left its queue.
    Room,
    /// Its effects are done through here, and checkpointed if places are kept.
    Done(Position),
}

pub(super) struct Worker<F: Folds> {
    pub(super) id: TaskId,
    pub(super) partition: u32,
    pub(super) folds: Arc<F>,
    pub(super) checkpoints: Arc<dyn Checkpoints>,
    pub(super) options: Options,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) started: Started,
    pub(super) batches: mpsc::Receiver<Vec<LogRecord>>,
    pub(super) reports: mpsc::UnboundedSender<(u32, TaskId, Report)>,
    pub(super) end: CancellationToken,
    pub(super) tracer: Tracer,
    pub(super) measures: Measures,
    pub(super) waits: Waits,
}

impl<F: Folds> Worker<F> {
    /// Runs until told to end or halted. Gives the fold back in either case.
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let partition = self.partition;
        let folds = Arc::clone(&self.folds);
        let mut attempts = Attempts::of(&self);
        let made = loop {
            let made = folds.assigned(partition, self.checkpoint.as_ref(), self.started).await;
            match attempts.take(made).await {
                Ok(Some(fold)) => break Ok(fold),
                Ok(None) => {}
                Err(interrupted) => break Err(interrupted),
            }
        };
        let mut fold = match made {
            Ok(fold) => fold,
            Err(Interrupted::Ended) => {
                attempts.give_up();
                return Ok(());
            }
            Err(Interrupted::Halted(failure)) => return Err(failure),
        };
        let interrupted = self.follow(&mut fold, &mut attempts).await;
        folds.revoked(partition, fold).await;
        attempts.give_up();
        match interrupted {
            Interrupted::Ended => Ok(()),
            Interrupted::Halted(failure) => Err(failure),
        }
    }

    async fn follow(&mut self, fold: &mut F::Fold, attempts: &mut Attempts<F>) -> Interrupted {
        let mut queue = Queue { held: None, end: self.end.clone() };
        let mut last = self.checkpoint.as_ref().map(|checkpoint| checkpoint.position);
        loop {
            let Some(mut batch) = queue.next(self).await else { return Interrupted::Ended };
            if let Err(failure) = self.verify(&batch) {
                return Interrupted::Halted(failure);
            }
            batch.retain(|record| last.is_none_or(|last| record.position > last));
            let Some(newest) = batch.last() else { continue };
            last = Some(newest.position);
            let spans = self.tracer.begin(&mut batch);
            if let Err(interrupted) = self.fold(fold, &batch, attempts).await {
                return interrupted;
            }
            drop(spans);
            self.measures.done(&batch);
        }
    }

    /// The record at the checkpoint's position must be the one that the checkpoint was made on. One that is not there any
    /// more is no mismatch: it was removed by retention or compaction.
    fn verify(&mut self, batch: &[LogRecord]) -> Result<(), Failure> {
        let Some((first, checkpoint)) = batch.first().zip(self.checkpoint.take()) else { return Ok(()) };
        if first.position == checkpoint.position && first.digest() != checkpoint.digest {
            return Err(Failure::NotApplied(Cause::corrupt(
                "the log holds another record at the checkpoint's position",
            )));
        }
        Ok(())
    }

    async fn fold(
        &self,
        fold: &mut F::Fold,
        batch: &[LogRecord],
        attempts: &mut Attempts<F>,
    ) -> Result<(), Interrupted> {
        let Some(last) = batch.last() else { return Ok(()) };
        let measures = &self.measures;
        let effects = loop {
            let applied = measures.timed(Step::Apply, fold.apply(batch)).await;
            if let Some(effects) = attempts.take(applied).await? {
                break effects;
            }
        };
        while attempts.take(measures.timed(Step::Effects, fold.effects(&effects)).await).await?.is_none() {}
        if self.options.checkpointed {
            let checkpoint = Checkpoint { position: last.position, digest: last.digest(), marks: fold.marks() };
            let name = (self.options.topic.name(), self.partition);
            let put = || measures.timed(Step::Checkpoint, self.checkpoints.put(name, &checkpoint));
            while attempts.take(put().await).await?.is_none() {}
        }
        fold.done(last.position).await;
        self.report(Report::Done(last.position));
        Ok(())
    }

    fn report(&self, report: Report) {
        // The driver is gone only when this task is about to be aborted.
        let _ = self.reports.send((self.partition, self.id, report));
    }
}

/// What was taken from the channel and did not fit the batch before.
struct Queue {
    held: Option<Vec<LogRecord>>,
    end: CancellationToken,
}

impl Queue {
    /// The next batches, merged up to the limits. `None` when told to end.
    async fn next<F: Folds>(&mut self, worker: &mut Worker<F>) -> Option<Vec<LogRecord>> {
        if self.end.is_cancelled() {
            return None;
        }
        let mut batch = match self.held.take() {
            Some(held) => held,
            None => {
                let received = tokio::select! {
                    biased;
                    () = self.end.cancelled() => None,
                    received = worker.batches.recv() => received,
                };
                worker.report(Report::Room);
                received?
            }
        };
        let size = |records: &[LogRecord]| records.iter().map(|record| record.payload.len()).sum::<usize>();
        let mut bytes = size(&batch);
        while let Ok(more) = worker.batches.try_recv() {
            worker.report(Report::Room);
            let more_bytes = size(&more);
            let limits = worker.options.limits;
            if batch.len() + more.len() > limits.records || bytes + more_bytes > limits.bytes {
                self.held = Some(more);
                break;
            }
            bytes += more_bytes;
            batch.extend(more);
        }
        Some(batch)
    }
}

/// Tries one thing after the other, each as often as it takes, and tells the role when it is stuck.
struct Attempts<F: Folds> {
    folds: Arc<F>,
    partition: u32,
    topic: &'static str,
    end: CancellationToken,
    measures: Measures,
    waits: Waits,
    backoff: Backoff,
}

impl<F: Folds> Attempts<F> {
    fn of(worker: &Worker<F>) -> Self {
        Self {
            folds: Arc::clone(&worker.folds),
            partition: worker.partition,
            topic: worker.options.topic.name(),
            end: worker.end.clone(),
            measures: worker.measures.clone(),
            waits: worker.waits.clone(),
            backoff: Backoff::default(),
        }
    }

    /// There is nothing to wait for any more.
    fn give_up(&self) {
        if self.backoff.failed() {
            self.folds.watch().resumed(self.partition);
        }
    }

    /// `None`, after a pause, when it must be tried again.
    async fn take<T>(&mut self, attempt: Result<T, Failure>) -> Result<Option<T>, Interrupted> {
        match attempt {
            Ok(done) => {
                if self.backoff.failed() {
                    self.backoff.reset();
                    self.waits.set(false);
                    self.folds.watch().resumed(self.partition);
                }
                Ok(Some(done))
            }
            Err(failure) if passes(&failure) => {
                tracing::warn!(topic = self.topic, partition = self.partition, %failure, "paused");
                self.folds.watch().paused(self.partition, &failure);
                self.measures.paused(&failure);
                self.waits.set(true);
                pause(self.backoff.pause(), &self.end).await?;
                Ok(None)
            }
            Err(failure) => Err(Interrupted::Halted(failure)),
        }
    }
}
