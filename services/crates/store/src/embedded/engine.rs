//! The database, its tables, and how work gets to them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch};

use super::stripes::Stripes;
use super::sync::Syncer;
use super::{Fatal, Options, clear_unfinished, directory, feeds, format, repair};
use crate::{Cause, Failure, Result};

/// The database behind all seams.
pub(super) struct Engine {
    pub(super) tables: Tables,
    pub(super) stripes: Stripes,
    pub(super) syncer: Syncer,
    pub(super) directory: directory::State,
    pub(super) sweep: feeds::Sweep,
    fatal: Fatal,
    db: Database,
}

/// A table: its keyspace and its name for diagnostics.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) keyspace: Keyspace,
}

/// One keyspace a table; the directory's small tables share one.
pub(super) struct Tables {
    pub(super) messages: Table,
    pub(super) outcomes: Table,
    pub(super) members: Table,
    pub(super) heads: Table,
    pub(super) conversations_of: Table,
    pub(super) blobs: Table,
    pub(super) feeds: Table,
    pub(super) feed_heads: Table,
    pub(super) device_cursors: Table,
    pub(super) receipts_of: Table,
    pub(super) watermarks: Table,
    pub(super) checkpoints: Table,
    pub(super) directory: Table,
}

impl Tables {
    fn open(db: &Database) -> Result<Self> {
        let open = |name, options: fn() -> KeyspaceCreateOptions| {
            let keyspace = db.keyspace(name, options).map_err(fjall_failure(name))?;
            Ok(Table { name, keyspace })
        };
        Ok(Self {
            messages: open("messages", ciphertext)?,
            outcomes: open("outcomes", rows)?,
            members: open("members", rows)?,
            heads: open("heads", cells)?,
            conversations_of: open("conversations_of", cells)?,
            blobs: open("blobs", large_ciphertext)?,
            feeds: open("feeds", rows)?,
            feed_heads: open("feed_heads", cells)?,
            device_cursors: open("device_cursors", cells)?,
            receipts_of: open("receipts_of", cells)?,
            watermarks: open("watermarks", cells)?,
            checkpoints: open("checkpoints", cells)?,
            directory: open("directory", cells)?,
        })
    }
}

/// Immutable rows.
fn rows() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(32 << 20)
}

/// Small values that are read before they are written.
fn cells() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(16 << 20)
}

/// What no compression makes smaller.
fn ciphertext() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().data_block_compression_policy(CompressionPolicy::all(CompressionType::None))
}

/// Values of many KiB, kept out of the tree so that compaction does not copy them.
fn large_ciphertext() -> KeyspaceCreateOptions {
    let separation = KvSeparationOptions::default().compression(CompressionType::None).separation_threshold(4096);
    ciphertext().with_kv_separation(Some(separation))
}

impl Engine {
    /// Opens or creates the database under `dir`.
    pub(super) fn open(dir: &Path, options: Options) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| unavailable(format!("directory of the store: {error}")))?;
        clear_unfinished(dir).map_err(|error| unavailable(format!("unfinished creation: {error}")))?;
        repair::cut_torn_end(dir)?;
        let builder = Database::builder(dir).cache_size(options.cache_bytes).journal_compression(CompressionType::None);
        let db = builder.open().map_err(fjall_failure("database"))?;
        format::check(&db)?;
        let tables = Tables::open(&db)?;
        sync_names(dir).map_err(|error| unavailable(format!("names of the tables: {error}")))?;
        let syncer = Syncer::start(db.clone(), Arc::clone(&options.fatal))?;
        Ok(Self {
            tables,
            stripes: Stripes::new(),
            syncer,
            directory: directory::State::default(),
            sweep: feeds::Sweep::default(),
            fatal: options.fatal,
            db,
        })
    }

    /// Runs work on the blocking pool. It runs to its end even when the caller stops waiting.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&engine)).await;
        done.unwrap_or_else(|error| Err(unknown(format!("work on the store did not end: {error}"))))
    }

    /// An empty batch. Committed, it is in the hands of the operating system.
    pub(super) fn batch(&self) -> OwnedWriteBatch {
        self.db.batch()
    }

    /// Writes a batch, all or nothing. To be called on the blocking pool only.
    pub(super) fn commit(&self, batch: OwnedWriteBatch) -> Result<()> {
        batch.commit().map_err(|error| self.failed_write(&error))
    }

    /// Ends the process. Where the hook returns, as in tests, nobody knows what was written.
    pub(super) fn failed_write(&self, error: &fjall::Error) -> Failure {
        let message = format!("write to the journal: {error}");
        (self.fatal)(&message);
        unknown(message)
    }

    /// Writes a batch whose caller will wait for [`Syncer::synced`].
    pub(super) fn commit_for_sync(&self, batch: OwnedWriteBatch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.commit(batch)?;
        self.syncer.written();
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.syncer.stop();
    }
}

impl Table {
    /// Reads a value.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.keyspace.get(key).map_err(fjall_failure(self.name))?;
        Ok(value.map(Bytes::from))
    }

    /// Whether a key is there.
    pub(super) fn contains(&self, key: &[u8]) -> Result<bool> {
        self.keyspace.contains_key(key).map_err(fjall_failure(self.name))
    }

    /// Reads keys and values from `first` to `last`, both included, in order.
    pub(super) fn range(
        &self,
        first: &[u8],
        last: &[u8],
    ) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes)>> + use<> {
        let name = self.name;
        self.guards(first, last).map(move |guard| {
            let (key, value) = guard.into_inner().map_err(fjall_failure(name))?;
            Ok((Bytes::from(key), Bytes::from(value)))
        })
    }

    /// Reads keys from `first` to `last`, both included, in order.
    pub(super) fn keys(&self, first: &[u8], last: &[u8]) -> impl DoubleEndedIterator<Item = Result<Bytes>> + use<> {
        let name = self.name;
        self.guards(first, last).map(move |guard| Ok(Bytes::from(guard.key().map_err(fjall_failure(name))?)))
    }

    /// Reads keys and values whose key begins with `prefix`, in order.
    pub(super) fn prefix(&self, prefix: &[u8]) -> impl DoubleEndedIterator<Item = Result<(Bytes, Bytes)>> + use<> {
        let name = self.name;
        self.keyspace.prefix(prefix).map(move |guard| {
            let (key, value) = guard.into_inner().map_err(fjall_failure(name))?;
            Ok((Bytes::from(key), Bytes::from(value)))
        })
    }

    fn guards(&self, first: &[u8], last: &[u8]) -> Box<dyn DoubleEndedIterator<Item = fjall::Guard>> {
        if first > last {
            return Box::new(std::iter::empty());
        }
        Box::new(self.keyspace.range::<&[u8], _>(first..=last))
    }
}

/// Puts the names of the tables' folders on disk. fjall syncs what is in them and not their own names, and POSIX promises no
/// name without this.
fn sync_names(dir: &Path) -> std::io::Result<()> {
    std::fs::File::open(dir.join("keyspaces"))?.sync_all()
}

/// A key from its parts, none of which needs a separator: all but the last have a fixed length.
pub(super) fn key(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Names the table in fjall's failure. Broken checksums and formats are corruption, the rest may pass.
pub(super) fn fjall_failure(table: &'static str) -> impl Fn(fjall::Error) -> Failure {
    move |error| {
        let detail = format!("{table}: {error}");
        match error {
            fjall::Error::Io(_) | fjall::Error::Locked | fjall::Error::Poisoned => unavailable(detail),
            fjall::Error::Storage(fjall::LsmError::Io(_)) => unavailable(detail),
            _ => unusable(detail),
        }
    }
}

/// Did not happen; may work later.
pub(super) fn unavailable(detail: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::unavailable(detail))
}

/// What is stored cannot be used.
pub(super) fn unusable(detail: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::corrupt(detail))
}

/// Might have happened.
pub(super) fn unknown(detail: impl std::fmt::Display) -> Failure {
    Failure::Unknown(Cause::unavailable(detail))
}
