//! The stores on ScyllaDB or Cassandra, over CQL that both accept.
//!
//! What the log derives is an idempotent upsert with a write timestamp that the log decides, so any owner of a partition may
//! write it, again and in any order: immutable rows carry the time of acceptance, mutable cells the position they were
//! derived from. Such statements are repeated and raced against a slow node freely. Only the directory compares and sets,
//! and asks again at serial consistency when it got no answer.
//!
//! Reads and writes are answered by a quorum of the datacenter. What a quorum has written survives what the servers promise
//! it survives: with Cassandra's `commitlog_sync` at `batch` or `group`, a power cut. See `deploy/docs/cql.md`.
//!
//! Deliberately absent: read before write outside of the directory, deletions of single rows on hot tables, and any wait
//! for one node while others could answer.

mod batch;
mod blobs;
mod checkpoints;
mod conversations;
mod directory;
mod failure;
mod feeds;
mod number;
mod options;
mod receipts;
mod retry;
mod schema;
mod session;
mod statements;
mod watermarks;

use std::sync::Arc;

pub use options::Options;
pub use schema::{Migrated, NEWEST, migrate};
use session::Cql;
use wardline_store::{Result, Stores};

/// One handle behind every seam.
#[derive(Clone)]
struct Scylla(Arc<Cql>);

/// Connects and prepares every statement. Creates nothing: the schema must be there, see [`migrate`].
///
/// # Errors
/// Unavailable when no node answers, or when the keyspace's schema is not the one this program needs; the detail says what to
/// do about it.
pub async fn open(options: Options) -> Result<Stores> {
    let stores = Scylla(Arc::new(Cql::open(&options).await?));
    Ok(Stores {
        conversations: Arc::new(stores.clone()),
        blobs: Arc::new(stores.clone()),
        feeds: Arc::new(stores.clone()),
        watermarks: Arc::new(stores.clone()),
        checkpoints: Arc::new(stores.clone()),
        directory: Arc::new(stores),
    })
}
