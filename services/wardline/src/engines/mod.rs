//! The engines of one process, open: embedded ones under the data directory, or those of a cluster.
//!
//! Deliberately absent: what roles do with any of them.

mod cluster;
mod embedded;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;
use wardline_domain::Failure;
use wardline_log::EventLog;
use wardline_registry::Registry;
use wardline_runtime::Clock;
use wardline_store::Stores;

use crate::config::{Config, Embedded};
use crate::node::Over;

pub use self::cluster::{ClusterError, Migrated, migrate};

/// The engines, open. Give clones of the parts to roles; [`Engines::close`] when they are done.
pub struct Engines {
    /// What makes an acknowledgement durable.
    pub log: Arc<dyn EventLog>,
    /// Everything else that is kept.
    pub stores: Stores,
    /// Hints.
    pub registry: Arc<dyn Registry>,
    clock: Clock,
    // Last, so that it is released after the files are closed.
    _lock: Option<File>,
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engines")
    }
}

/// Why the engines were not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be used.
    #[error("the data directory {}: {source}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process works in it.
    #[error("the data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// An embedded engine did not open.
    #[error("the {engine} under {} did not open: {failure}", dir.display())]
    Engine {
        /// Which.
        engine: &'static str,
        /// The data directory.
        dir: PathBuf,
        /// Why.
        failure: Failure,
    },
    /// An engine of a cluster refused.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Engines {
    /// Opens, or creates, the embedded engines under `dir`. At most one process at a time: the second is refused.
    pub async fn open(dir: &Path, settings: &Embedded, clock: Clock) -> Result<Self, OpenError> {
        embedded::open(dir, settings, clock).await
    }

    /// Opens the engines of a cluster. Waits for those that do not answer, and says so.
    pub async fn open_cluster(config: &Config, clock: Clock) -> Result<Self, OpenError> {
        Ok(cluster::open(config, clock).await?)
    }

    /// What an instance runs on.
    pub fn over(&self) -> Over {
        Over {
            log: Arc::clone(&self.log),
            stores: self.stores.clone(),
            registry: Arc::clone(&self.registry),
            clock: self.clock.clone(),
        }
    }

    /// Flushes and closes everything. Call it when the roles have let go of their clones; another process may open the
    /// directory from then on.
    pub async fn close(self, deadline: Instant) -> Result<(), Failure> {
        let flushed = self.log.close(deadline).await;
        // The last handles close the files, which blocks.
        let closed = tokio::task::spawn_blocking(move || drop(self)).await;
        if let Err(panicked) = closed {
            std::panic::resume_unwind(panicked.into_panic());
        }
        flushed
    }
}
