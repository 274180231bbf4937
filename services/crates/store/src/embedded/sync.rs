//! Group commit: one thread syncs the journal for all who wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use fjall::{Database, PersistMode};
use tokio::sync::oneshot;

use super::Fatal;
use super::engine::{unavailable, unknown};
use crate::Result;

/// How far the journal was written and synced, counted in writes that want a sync.
#[derive(Default)]
struct Progress {
    written: AtomicU64,
    synced: AtomicU64,
}

/// The thread that syncs, and who waits for it.
pub(super) struct Syncer {
    progress: Arc<Progress>,
    waiters: Option<mpsc::Sender<oneshot::Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub(super) fn start(db: Database, fatal: Fatal) -> Result<Self> {
        let progress = Arc::new(Progress::default());
        let (waiters, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store-sync".to_owned())
            .spawn({
                let progress = Arc::clone(&progress);
                move || run(&db, &fatal, &progress, &queue)
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
        let gone = || unknown("the store is closing");
        self.waiters.as_ref().and_then(|waiters| waiters.send(answer).ok()).ok_or_else(gone)?;
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

/// Serves waiters until there can be no more. Ends early after a failed sync, which leaves all waiters without an answer.
fn run(db: &Database, fatal: &Fatal, progress: &Progress, queue: &mpsc::Receiver<oneshot::Sender<()>>) {
    loop {
        let first = queue.recv().ok();
        let last = first.is_none();
        let waiters: Vec<_> = first.into_iter().chain(queue.try_iter()).collect();
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
