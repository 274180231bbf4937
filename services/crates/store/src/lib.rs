//! What Wardline keeps besides the log: ciphertext, outcomes, heads, rosters, feeds, watermarks, checkpoints, the directory.
//!
//! Four seams, split by who calls them, each with its laws in [`laws`] and an embedded engine in [`embedded`]. Whatever the
//! log derives is an idempotent upsert: immutable rows are written with the same bytes by whoever replays, mutable cells
//! carry the position they were derived from and an older one never shadows a newer one. Only the directory compares and
//! sets.
//!
//! Deliberately absent: anything that knows what a row means to a role.

pub mod checkpoints;
pub mod conversations;
pub mod directory;
pub mod embedded;
pub mod encoding;
pub mod feeds;
pub mod laws;
pub mod watermarks;

use std::sync::Arc;

pub use checkpoints::Checkpoints;
pub use conversations::{Blobs, Conversations};
pub use directory::Directory;
pub use feeds::Feeds;
pub use wardline_domain::{Cause, Failure};
pub use watermarks::Watermarks;

/// What every call answers.
pub type Result<T> = std::result::Result<T, Failure>;

/// The stores of one deployment. Cheap to clone.
#[derive(Clone)]
pub struct Stores {
    /// Conversations and their messages.
    pub conversations: Arc<dyn Conversations>,
    /// Large things by digest.
    pub blobs: Arc<dyn Blobs>,
    /// Users' feeds.
    pub feeds: Arc<dyn Feeds>,
    /// Receipts.
    pub watermarks: Arc<dyn Watermarks>,
    /// Consumers' places.
    pub checkpoints: Arc<dyn Checkpoints>,
    /// Tenants, users, devices, key packages.
    pub directory: Arc<dyn Directory>,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stores")
    }
}
