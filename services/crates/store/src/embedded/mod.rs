//! The embedded engine on fjall: all stores in one database with one journal.
//!
//! One journal in write order is what the promise of [`crate::checkpoints::Checkpoints`] stands on: a checkpoint that
//! survives has everything written before it beside it. Writes reach the operating system before they are answered, so
//! they survive the end of the process; only `flush`, directory rows and blobs also wait for the disk, many waiters to a
//! sync. Writes and scans run on the blocking pool (a write may wait for the journal while it is synced); single reads run
//! inline.
//!
//! Deliberately absent: retries. After a failed write or sync nobody knows what the disk holds, so the process ends and
//! recovery decides.

mod blobs;
mod cells;
mod checkpoints;
mod codec;
mod conversations;
mod directory;
mod engine;
mod feeds;
mod format;
#[doc(hidden)]
pub mod journal;
mod members;
mod messages;
mod outcomes;
mod receipts;
mod repair;
mod stripes;
mod sync;
#[cfg(test)]
mod tests;
mod unfinished;
mod watermarks;

use std::path::Path;
use std::sync::Arc;

pub use self::unfinished::clear_unfinished;
use crate::{Result, Stores};
use engine::Engine;

/// Called with a message for diagnostics when a write or sync failed. The process must not go on: what is in memory and
/// what is on disk may differ.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// How the stores are opened.
#[derive(Clone)]
pub struct Options {
    /// What happens when a write or sync failed. The default prints the message and ends the process.
    pub fatal: Fatal,
    /// Bytes of the block cache.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { fatal: Arc::new(end_process), cache_bytes: 64 << 20 }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("cache_bytes", &self.cache_bytes).finish_non_exhaustive()
    }
}

/// EX_IOERR of sysexits.h.
const EXIT_IO_ERROR: i32 = 74;

/// Ends the process. Exits rather than aborts: a core file would hold ciphertext and keys.
#[allow(clippy::print_stderr)]
fn end_process(message: &str) {
    tracing::error!(message, "the store cannot go on");
    eprintln!("the store cannot go on: {message}");
    std::process::exit(EXIT_IO_ERROR);
}

/// One handle behind every seam.
#[derive(Clone)]
struct Embedded(Arc<Engine>);

/// Opens, or creates, all stores in one database under `dir`: one journal, so that a checkpoint never outlives the rows
/// before it. Blocks; dropping the last clone of the stores closes them cleanly.
pub fn open(dir: &Path) -> Result<Stores> {
    open_with(dir, Options::default())
}

/// [`open`] with options.
pub fn open_with(dir: &Path, options: Options) -> Result<Stores> {
    let embedded = Embedded(Arc::new(Engine::open(dir, options)?));
    Ok(Stores {
        conversations: Arc::new(embedded.clone()),
        blobs: Arc::new(embedded.clone()),
        feeds: Arc::new(embedded.clone()),
        watermarks: Arc::new(embedded.clone()),
        checkpoints: Arc::new(embedded.clone()),
        directory: Arc::new(embedded),
    })
}
