//! The embedded engines of one process: log and stores under the data directory, and the registry in memory.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wardline_domain::Failure;
use wardline_registry::in_process::InProcess;
use wardline_runtime::Clock;
use wardline_store::Stores;

use super::{Engines, OpenError};
use crate::config::Embedded;
use crate::disk;

pub(super) async fn open(dir: &Path, settings: &Embedded, clock: Clock) -> Result<Engines, OpenError> {
    let failed = |source| OpenError::Directory { dir: dir.to_owned(), source };
    let engine = |engine| move |failure| OpenError::Engine { engine, dir: dir.to_owned(), failure };
    let [log_dir, store_dir] = ["log", "store"].map(|name| dir.join(name));
    disk::private_dir(dir).map_err(failed)?;
    let lock = lock(dir)?;
    for dir in [&log_dir, &store_dir] {
        disk::private_dir(dir).map_err(failed)?;
    }
    let stores = open_stores(store_dir, settings.store_cache_bytes).await.map_err(engine("store"))?;
    let log = wardline_log::embedded::open(log_options(log_dir, settings)).await.map_err(engine("log"))?;
    let log = wardline_log::measured(log);
    let registry = Arc::new(InProcess::new(Arc::new({
        let clock = clock.clone();
        move || clock.now()
    })));
    Ok(Engines { log, stores, registry, clock, _lock: Some(lock) })
}

fn log_options(dir: PathBuf, settings: &Embedded) -> wardline_log::embedded::Options {
    wardline_log::embedded::Options {
        dir,
        conversations: settings.conversations_partitions.count(),
        feeds: settings.feeds_partitions.count(),
        receipts: settings.receipts_partitions.count(),
        budget_bytes: settings.log_budget_bytes,
    }
}

async fn open_stores(dir: PathBuf, cache_bytes: u64) -> Result<Stores, Failure> {
    let options = wardline_store::embedded::Options { cache_bytes, ..Default::default() };
    match tokio::task::spawn_blocking(move || wardline_store::embedded::open_with(&dir, options)).await {
        Ok(opened) => opened,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// The directory is this process's until the file is closed; the kernel closes it whatever happens to the process.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Directory { dir: dir.to_owned(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::MetadataExt as _;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    async fn open(dir: &Path) -> Result<Engines, OpenError> {
        Engines::open(dir, &Embedded::default(), Clock::system()).await
    }

    #[tokio::test]
    async fn a_directory_is_one_process_s_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("deep").join("data");
        let engines = open(&dir).await.unwrap();
        assert!(matches!(open(&dir).await, Err(OpenError::InUse(_))));
        engines.close(Instant::now() + Duration::from_secs(10)).await.unwrap();
        let again = open(&dir).await.unwrap();
        again.close(Instant::now() + Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_made_is_its_owner_s_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("data");
        let _engines = open(&dir).await.unwrap();
        for made in [dir.clone(), dir.join("log"), dir.join("store"), dir.join("lock")] {
            assert_eq!(made.metadata().unwrap().mode() & 0o077, 0, "{}", made.display());
        }
    }

    #[tokio::test]
    async fn partition_counts_cannot_change_under_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let engines = open(dir.path()).await.unwrap();
        engines.close(Instant::now() + Duration::from_secs(10)).await.unwrap();
        let other = Embedded { feeds_partitions: 8.try_into().unwrap(), ..Embedded::default() };
        let opened = Engines::open(dir.path(), &other, Clock::system()).await;
        assert!(matches!(opened, Err(OpenError::Engine { engine: "log", .. })));
    }
}
