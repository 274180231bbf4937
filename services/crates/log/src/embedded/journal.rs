//! The journal's tail after a crash, before the database opens it.
//!
//! Each commit is one journal batch and synced before the next begins, so a power cut can only tear the last batch, which
//! nobody was told about. The database itself drops a last batch that is cut short. Two cases are left, and they are here: a
//! last batch whose pages came to the disk out of order, which the database refuses to open, is cut off; and damage before
//! the last batch, which the database would take for the end and silently drop all behind it, is reported as corrupt.
//!
//! Deliberately absent: checksums. The database checks them; here is only the structure (fjall 3 journal format: tag u8;
//! 1 = start (items u32, seqno u64), 2 = item (type u8, compression u8, keyspace u64, key length u16, value length u32, stored
//! length u32, key, value), 3 = end (checksum u64, "FJL\x03"), 4 = clear (keyspace u64)).

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bytes::Buf;
use fjall::Database;
use wardline_domain::Failure;

use super::layout::{corrupt, unavailable};

const MAGIC: &[u8; 4] = b"FJL\x03";
/// A later batch's sequence number is above an earlier one's, and not by more than this.
const SEQNO_REACH: u64 = 1 << 20;
const DAMAGED: &str = "the log's journal is damaged before its last batch";

struct Scan {
    /// Where the last structurally whole batch begins.
    last_batch: Option<usize>,
    /// Behind the last structurally whole batch.
    valid: usize,
    /// The highest sequence number seen.
    seqno: u64,
}

/// Cuts off a last batch that is structurally torn. Fails `Corrupt`, and changes nothing, when a whole batch follows the
/// torn place.
pub(super) fn cut_torn_tail(dir: &Path) -> Result<(), Failure> {
    let Some(path) = newest_journal(dir)? else { return Ok(()) };
    let journal = std::fs::read(&path).map_err(unavailable)?;
    let scan = scan(&journal);
    let rest = without_zeros(journal.get(scan.valid..).unwrap_or_default());
    if rest.is_empty() {
        return Ok(());
    }
    if holds_a_later_batch(rest, scan.seqno) {
        return Err(corrupt(DAMAGED));
    }
    tracing::warn!(bytes = rest.len(), "cutting a torn batch off the log's journal");
    cut(&path, scan.valid).map_err(unavailable)
}

/// The database found a batch that does not match its checksum. Opens without the last one; when that does not help the
/// damage lies before it, and the journal is put back as it was.
pub(super) fn without_last_batch(
    dir: &Path,
    error: fjall::JournalRecoveryError,
    open: impl Fn() -> fjall::Result<Database>,
) -> Result<Database, Failure> {
    let Some(path) = newest_journal(dir)? else { return Err(corrupt(error)) };
    let journal = std::fs::read(&path).map_err(unavailable)?;
    let Some(start) = scan(&journal).last_batch else { return Err(corrupt(error)) };
    cut(&path, start).map_err(unavailable)?;
    match open() {
        Ok(database) => {
            tracing::warn!("cut a torn batch off the log's journal");
            Ok(database)
        }
        Err(_) => {
            put_back(&path, &journal, start).map_err(unavailable)?;
            Err(corrupt(DAMAGED))
        }
    }
}

fn newest_journal(dir: &Path) -> Result<Option<PathBuf>, Failure> {
    let mut newest = None;
    for entry in std::fs::read_dir(dir).map_err(unavailable)? {
        let path = entry.map_err(unavailable)?.path();
        let id = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        if let Some(id) = id {
            newest = newest.max(Some((id, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

fn cut(path: &Path, at: usize) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(at as u64)?;
    file.sync_all()
}

fn put_back(path: &Path, journal: &[u8], from: usize) -> std::io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(from as u64))?;
    file.write_all(journal.get(from..).unwrap_or_default())?;
    file.sync_all()
}

/// Without the zeros that it ends with, by whole blocks: the database lays its journals out ahead.
fn without_zeros(mut bytes: &[u8]) -> &[u8] {
    const ZEROS: [u8; 4096] = [0; 4096];
    while let Some(block) = bytes.chunks(ZEROS.len()).next_back()
        && ZEROS.starts_with(block)
    {
        bytes = bytes.get(..bytes.len() - block.len()).unwrap_or_default();
    }
    bytes
}

fn scan(journal: &[u8]) -> Scan {
    let mut scan = Scan { last_batch: None, valid: 0, seqno: 0 };
    while let Some((length, seqno)) = journal.get(scan.valid..).and_then(batch) {
        scan.last_batch = Some(scan.valid);
        scan.valid += length;
        scan.seqno = scan.seqno.max(seqno);
    }
    scan
}

/// Length and sequence number of the batch that `bytes` begins with.
fn batch(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut rest = bytes;
    if rest.try_get_u8().ok()? != 1 {
        return None;
    }
    let items = rest.try_get_u32_le().ok()?;
    let seqno = rest.try_get_u64_le().ok()?;
    for _ in 0..items {
        item(&mut rest)?;
    }
    if rest.try_get_u8().ok()? != 3 {
        return None;
    }
    rest = rest.get(8..)?.strip_prefix(MAGIC)?;
    Some((bytes.len() - rest.len(), seqno))
}

fn item(rest: &mut &[u8]) -> Option<()> {
    match rest.try_get_u8().ok()? {
        2 => {
            let value_type = rest.try_get_u8().ok()?;
            let compression = rest.try_get_u8().ok()?;
            rest.try_get_u64_le().ok()?;
            let key = usize::from(rest.try_get_u16_le().ok()?);
            let value = rest.try_get_u32_le().ok()?;
            let stored = rest.try_get_u32_le().ok()?;
            if value_type > 2 || compression != 0 || value != stored {
                return None;
            }
            *rest = rest.get(key.checked_add(stored as usize)?..)?;
        }
        4 => {
            rest.try_get_u64_le().ok()?;
        }
        _ => return None,
    }
    Some(())
}

/// Whether a whole batch begins behind an end marker in `bytes`. A client who guesses sequence numbers could at worst make a
/// torn batch of its own look like damage.
fn holds_a_later_batch(bytes: &[u8], seqno: u64) -> bool {
    let ends =
        bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| window == MAGIC).map(|(at, _)| at + MAGIC.len());
    let later = |at: usize| bytes.get(at..).and_then(batch).is_some_and(|(_, s)| s > seqno && s - seqno <= SEQNO_REACH);
    ends.into_iter().any(later)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_batch(seqno: u64, value: &[u8]) -> Vec<u8> {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes();
        let head = [&[1, 1, 0, 0, 0][..], &seqno.to_le_bytes(), &[2, 0, 0], &[1; 8], &[1, 0], &length, &length, b"k"];
        [&head.concat(), value, &[3], &[9; 8], MAGIC].concat()
    }

    #[test]
    fn whole_batches_are_counted_to_their_end() {
        let journal = [a_batch(1, b"one"), a_batch(2, b"two"), vec![0; 100]].concat();
        let scan = scan(&journal);
        assert_eq!((scan.valid, scan.last_batch, scan.seqno), (journal.len() - 100, Some(a_batch(1, b"one").len()), 2));
    }

    #[test]
    fn a_torn_last_batch_is_no_damage_and_one_before_the_last_is() {
        let mut last = a_batch(2, b"two");
        if let Some(tag) = last.get_mut(13) {
            *tag = 0;
        }
        assert!(!holds_a_later_batch(&last, 1));
        assert!(holds_a_later_batch(&[last, a_batch(3, b"three")].concat(), 1));
    }
}
