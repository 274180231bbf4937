//! Locks by key, for cells that are read, compared and written.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

const STRIPES: usize = 64;

/// A fixed number of locks; a key belongs to one of them.
pub(super) struct Stripes {
    hasher: RandomState,
    locks: [Mutex<()>; STRIPES],
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), locks: [const { Mutex::new(()) }; STRIPES] }
    }

    /// Locks all keys. In the order of the locks, so that two callers never wait for each other.
    pub(super) fn lock<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Vec<MutexGuard<'_, ()>> {
        let wanted: BTreeSet<usize> = keys.map(|key| (self.hasher.hash_one(key) % STRIPES as u64) as usize).collect();
        // A lock guards no data of its own: whoever panicked under it left nothing half done in memory.
        wanted.into_iter().map(|at| self.locks[at].lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}
