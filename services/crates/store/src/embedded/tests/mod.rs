//! The laws over this engine, and what only this engine promises.

#![allow(clippy::unwrap_used)]

mod codec;
mod durability;
mod failing;
mod opening;

use std::path::Path;

use async_trait::async_trait;
use tempfile::TempDir;

use super::open;
use crate::Stores;
use crate::laws::Harness;

/// Stores in a directory of their own. Declared in this order, they close before the directory goes.
pub(super) struct EmbeddedHarness {
    stores: Stores,
    pub(super) dir: TempDir,
}

impl EmbeddedHarness {
    pub(super) fn new() -> Self {
        let dir = directory();
        Self { stores: open(dir.path()).unwrap(), dir }
    }
}

/// An empty directory, in memory where the system has such: the laws want no disk, and its syncs would be most of their time.
pub(super) fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[async_trait]
impl Harness for EmbeddedHarness {
    async fn start() -> Option<Self> {
        Some(Self::new())
    }

    fn stores(&self) -> &Stores {
        &self.stores
    }

    async fn reopen(self) -> Self {
        let Self { stores, dir } = self;
        drop(stores);
        Self { stores: open(dir.path()).unwrap(), dir }
    }

    /// What a killed process leaves is what it has handed to the operating system: a copy of its files.
    async fn crash(self) -> Option<Self> {
        let dir = directory();
        copy(self.dir.path(), dir.path());
        Some(Self { stores: open(dir.path()).unwrap(), dir })
    }

    fn expires_when_told(&self) -> bool {
        true
    }
}

/// How many bytes come before the zeros at the end. By pages, as a journal ends in many of them.
pub(super) fn data_length(bytes: &[u8]) -> usize {
    let pages = bytes.rchunks(4096).take_while(|page| **page == [0; 4096][..page.len()]);
    let rest = bytes.len() - pages.map(<[u8]>::len).sum::<usize>();
    rest - bytes[..rest].iter().rev().take_while(|byte| **byte == 0).count()
}

/// Copies a directory with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            // Journals are allocated ahead: their zeros stay a hole.
            let bytes = std::fs::read(entry.path()).unwrap();
            let data = data_length(&bytes);
            std::fs::write(&target, &bytes[..data]).unwrap();
            std::fs::OpenOptions::new().write(true).open(target).unwrap().set_len(bytes.len() as u64).unwrap();
        }
    }
}

crate::store_laws!(EmbeddedHarness);
