//! The database: one keyspace, since each costs a dozen syncs at creation and holds the shared journal back until it is
//! flushed.
//!
//! Records lie under their partition's source number ([`Partition::source`], never 0) and offset. Under source 0 lie, per topic, the
//! partition count of its creation (`count/<topic>`), and per partition the floor, below which nothing is given out, and how
//! far removal behind it has come (`floor/<topic>/<index>`: two u64).

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions};
use wardline_domain::{Cause, Failure};

use super::Options;
use super::encoding::{decode, offset_of, row};
use super::journal;
use super::shelf::Shelf;
use crate::topic::{Partition, Topic};

/// A closing owner in the same process needs a moment to let go of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const MEMTABLE_BYTES: u64 = 32 << 20;
const JOURNALS_BYTES: u64 = 256 << 20;

/// The newest offset of each key of a compacted partition.
pub(super) type Newest = HashMap<Partition, HashMap<Box<[u8]>, u64>>;

/// Rows of compacted partitions that a newer one of the same key supersedes.
pub(super) type Stale = Vec<(Partition, u64)>;

pub(super) struct Layout {
    pub(super) database: Database,
    pub(super) rows: Keyspace,
}

impl Layout {
    pub(super) fn open(options: &Options) -> Result<Self, Failure> {
        std::fs::create_dir_all(&options.dir).map_err(unavailable)?;
        let database = open_database(&options.dir)?;
        let rows = database.keyspace("rows", create).map_err(unavailable)?;
        // fjall syncs what is in a keyspace's folder and not the folder's own name. POSIX promises no name without this.
        std::fs::File::open(options.dir.join("keyspaces")).and_then(|dir| dir.sync_all()).map_err(unavailable)?;
        let layout = Self { database, rows };
        layout.verify_counts(options)?;
        Ok(layout)
    }

    fn verify_counts(&self, options: &Options) -> Result<(), Failure> {
        let mut batch = self.database.batch().durability(Some(fjall::PersistMode::SyncAll));
        for topic in Topic::ALL {
            let key = meta_key(&format!("count/{}", topic.name()));
            let wanted = options.count(topic).get();
            match self.rows.get(&key).map_err(unavailable)? {
                None => batch.insert(&self.rows, key, wanted.to_le_bytes().to_vec()),
                Some(found) => {
                    let found = <[u8; 4]>::try_from(&*found).map(u32::from_le_bytes).map_err(corrupt)?;
                    if found != wanted {
                        let name = topic.name();
                        return Err(corrupt(format!(
                            "topic {name} was created with {found} partitions and is configured with {wanted}"
                        )));
                    }
                }
            }
        }
        batch.commit().map_err(unavailable)
    }

    /// What a restart knows of a partition.
    pub(super) fn recover(&self, partition: Partition, tail_bytes: usize) -> Result<Shelf, Failure> {
        let (floor, _) = self.floor(partition)?;
        let last = self.range(partition, 0, u64::MAX).next_back();
        let end = match last {
            Some(guard) => offset_of(&guard.key().map_err(unavailable)?)? + 1,
            None => 0,
        };
        Ok(Shelf::new(floor, end.max(floor), tail_bytes))
    }

    /// (floor, removed below)
    pub(super) fn floor(&self, partition: Partition) -> Result<(u64, u64), Failure> {
        let Some(value) = self.rows.get(floor_key(partition)).map_err(unavailable)? else { return Ok((0, 0)) };
        let bytes = <[u8; 16]>::try_from(&*value).map_err(corrupt)?;
        let (floor, swept) = bytes.split_at(8);
        let number = |half: &[u8]| <[u8; 8]>::try_from(half).map(u64::from_le_bytes).map_err(corrupt);
        Ok((number(floor)?, number(swept)?))
    }

    pub(super) fn put_floor(&self, batch: &mut fjall::OwnedWriteBatch, partition: Partition, floor: u64, swept: u64) {
        batch.insert(&self.rows, floor_key(partition), [floor.to_le_bytes(), swept.to_le_bytes()].concat());
    }

    fn range(&self, partition: Partition, from: u64, to: u64) -> fjall::Iter {
        self.rows.range(row(partition, from)..row(partition, to))
    }

    /// The values of the offsets from `from` to below `to`, of about `records` and `bytes`, at least one if there is one.
    pub(super) fn read(
        &self,
        partition: Partition,
        (from, to): (u64, u64),
        (records, bytes): (usize, usize),
    ) -> Result<Vec<(u64, Bytes)>, Failure> {
        let mut found = Vec::new();
        let mut size = 0;
        for guard in self.range(partition, from, to).take(records.max(1)) {
            let (key, value) = guard.into_inner().map_err(unavailable)?;
            size += value.len();
            if size > bytes && !found.is_empty() {
                break;
            }
            found.push((offset_of(&key)?, Bytes::from(value)));
        }
        Ok(found)
    }

    pub(super) fn compaction_index(&self, options: &Options) -> Result<(Newest, Stale), Failure> {
        let (mut newest, mut stale) = (Newest::new(), Stale::new());
        for topic in Topic::ALL.into_iter().filter(|topic| topic.compacted()) {
            for index in 0..options.count(topic).get() {
                let partition = Partition { topic, index };
                let keys = newest.entry(partition).or_default();
                for guard in self.range(partition, 0, u64::MAX) {
                    let (key, value) = guard.into_inner().map_err(unavailable)?;
                    let offset = offset_of(&key)?;
                    let older = keys.insert(decode(offset, value.into())?.key.as_ref().into(), offset);
                    stale.extend(older.map(|older| (partition, older)));
                }
            }
        }
        Ok((newest, stale))
    }
}

fn create() -> KeyspaceCreateOptions {
    // Ciphertext does not compress.
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_BYTES)
        .data_block_size_policy(fjall::config::BlockSizePolicy::all(32 << 10))
        .data_block_compression_policy(fjall::config::CompressionPolicy::all(CompressionType::None))
}

fn open_database(dir: &Path) -> Result<Database, Failure> {
    let open = || {
        Database::builder(dir)
            .journal_compression(CompressionType::None)
            .manual_journal_persist(true)
            .max_journaling_size(JOURNALS_BYTES)
            .worker_threads(1)
            .open()
    };
    wardline_store::embedded::clear_unfinished(dir).map_err(unavailable)?;
    journal::cut_torn_tail(dir)?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match open() {
            Ok(database) => return Ok(database),
            Err(fjall::Error::Locked) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(10)),
            Err(fjall::Error::JournalRecovery(error)) => return journal::without_last_batch(dir, error, open),
            Err(error) => return Err(unavailable(error)),
        }
    }
}

fn floor_key(partition: Partition) -> Vec<u8> {
    meta_key(&format!("floor/{}/{}", partition.topic.name(), partition.index))
}

fn meta_key(name: &str) -> Vec<u8> {
    [&[0; 4], name.as_bytes()].concat()
}

pub(super) fn unavailable(error: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::unavailable(error))
}

pub(super) fn corrupt(error: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::corrupt(error))
}
