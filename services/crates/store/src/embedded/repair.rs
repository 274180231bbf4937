//! Cuts the torn end off the journal before fjall reads it.
//!
//! fjall allocates its journal ahead, so after a power cut what was not yet on disk reads as zeros, also in the middle of a
//! batch. fjall 3.1 expects a torn batch to be cut short: zeros in an entry's lengths fail an assertion, and a batch whose
//! count of items is wrong fails the opening for good. What follows the last whole batch was never synced, so nobody was
//! answered that it survives.
//!
//! Deliberately absent: sealed journals, which were synced as a whole, and the check of a batch's checksum, which fjall makes.

use std::fs::OpenOptions;
use std::path::Path;

use super::engine::unavailable;
use super::journal;
use crate::Result;

/// Cuts the journal under `dir` back to its last whole batch, unless another process holds the database.
pub(super) fn cut_torn_end(dir: &Path) -> Result<()> {
    repair(dir).map_err(|error| unavailable(format!("end of the journal: {error}")))
}

fn repair(dir: &Path) -> std::io::Result<()> {
    let Ok(lock) = OpenOptions::new().read(true).write(true).open(dir.join("lock")) else { return Ok(()) };
    let known = std::fs::read(dir.join("version")).is_ok_and(|version| version.starts_with(&journal::MAGIC));
    // Whoever holds the lock is writing; fjall will say so.
    if !known || lock.try_lock().is_err() {
        return Ok(());
    }
    let done = journal::newest(dir)?.map_or(Ok(()), |journal| cut(&journal));
    lock.unlock()?;
    done
}

fn cut(path: &Path) -> std::io::Result<()> {
    let whole = journal::scan(path)?.whole;
    if whole < std::fs::metadata(path)?.len() { journal::cut(path, whole) } else { Ok(()) }
}
