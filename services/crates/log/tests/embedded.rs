//! The embedded engine keeps the laws.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tempfile::TempDir;
use wardline_log::EventLog;
use wardline_log::embedded::{Environment, Options, open_in};
use wardline_log::laws::{BUDGET_BYTES, Harness, Promises, Release, Subject};

struct Embedded;

struct Opened {
    dir: TempDir,
    log: Option<Arc<dyn EventLog>>,
    gate: Arc<Mutex<()>>,
}

impl Opened {
    async fn open(&mut self) {
        let gate = Arc::clone(&self.gate);
        let before_commit = Arc::new(move || {
            drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
            Ok(())
        });
        let options = Options { budget_bytes: BUDGET_BYTES, ..Options::small(self.dir.path()) };
        // A small tail, so that the laws read the disk as well.
        let environment = Environment { before_commit, tail_bytes: 400, ..Environment::default() };
        self.log = Some(open_in(options, environment).await.unwrap());
    }
}

#[async_trait]
impl Harness for Embedded {
    async fn fresh(&self) -> Box<dyn Subject> {
        let mut opened = Opened { dir: TempDir::new().unwrap(), log: None, gate: Arc::default() };
        opened.open().await;
        Box::new(opened)
    }
}

#[async_trait]
impl Subject for Opened {
    fn log(&self) -> Arc<dyn EventLog> {
        Arc::clone(self.log.as_ref().unwrap())
    }

    fn promises(&self) -> Promises {
        Promises { trims: true, compacts: true, restarts: true, budgets: true }
    }

    async fn reopen(&mut self) {
        self.log = None;
        self.open().await;
    }

    fn hold(&self) -> Option<Release> {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (held, holding) = std::sync::mpsc::channel();
        let gate = Arc::clone(&self.gate);
        std::thread::spawn(move || {
            let guard = gate.lock().unwrap_or_else(PoisonError::into_inner);
            held.send(()).unwrap();
            released.recv().ok();
            drop(guard);
        });
        holding.recv().unwrap();
        Some(Box::new(move || release.send(()).unwrap()))
    }
}

wardline_log::laws!(Embedded);
