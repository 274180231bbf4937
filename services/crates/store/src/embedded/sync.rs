//! Group commit: one thread syncs the journal for all who wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use fjall::{Database, PersistMode};
use tokio::sync::{mpsc, oneshot};

use super::Fatal;
use super::engine::{unavailable, unknown};
use crate::{Failure, Result};

/// How far the journal was written and synced, counted in writes that want a sync.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    synced: AtomicU64,
}

/// How many wait for a sync; further ones wait to wait.
const WAITERS: usize = 4096;

/// The thread that syncs, and who waits for it.
pub(super) struct Syncer {
    progress: Arc<Progress>,
    waiters: Option<mpsc::Sender<oneshot::Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub(super) fn start(db: Database, fatal: Fatal) -> Result<Self> {
        let progress = Arc::new(Progress::default());
        let (waiters, mut queue) = mpsc::channel(WAITERS);
        let thread = std::thread::Builder::new()
            .name("store-sync".to_owned())
            .spawn({
                let progress = Arc::clone(&progress);
                move || run(&db, &fatal, &progress, &mut queue)
            })
            .map_err(|error| unavailable(format!("no thread for syncs: {error}")))?;
        Ok(Self { progress, waiters: Some(waiters), thread: Some(thread) })
    }

    /// Tells that something was written which somebody will wait for. To be called after the write.
    pub(super) fn written(&self) {
        self.progress.written.fetch_add(1, Ordering::SeqCst);
    }

    /// Answers when everything that [`Syncer::written`] was told of is on disk; at once when it is.
    pub(super) async fn synced(&self) -> Result<()> {
        let written = self.progress.written.load(Ordering::SeqCst);
        if self.progress.synced.load(Ordering::SeqCst) >= written {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let waiters = self.waiters.as_ref().ok_or_else(closing)?;
        waiters.send(answer).await.map_err(|_| closing())?;
        answered.await.map_err(|_| unknown("the sync of the store failed"))
    }

    /// Syncs what is left and ends the thread.
    pub(super) fn stop(&mut self) {
        self.waiters = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook; nobody waits for its syncs any more.
            let _ = thread.join();
        }
    }
}

fn closing() -> Failure {
    unknown("the store is closing")
}

/// Serves waiters until there can be no more. Ends early after a failed sync, which leaves all waiters without an answer.
fn run(db: &Database, fatal: &Fatal, progress: &Progress, queue: &mut mpsc::Receiver<oneshot::Sender<()>>) {
    loop {
        let mut waiters = Vec::new();
        let last = queue.blocking_recv().map(|first| waiters.push(first)).is_none();
        while let Ok(waiter) = queue.try_recv() {
            waiters.push(waiter);
        }
        let written = progress.written.load(Ordering::SeqCst);
        if let Err(error) = db.persist(PersistMode::SyncData) {
            fatal(&format!("sync of the journal: {error}"));
            return;
        }
        progress.synced.fetch_max(written, Ordering::SeqCst);
        for waiter in waiters {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(());
        }
        if last {
            return;
        }
    }
}
