//! The journal's tail after a crash, before the database opens it.
//!
//! Each commit is one journal batch and synced before the next begins, so a power cut can only tear the last batch, which
//! nobody was told about. The database itself drops a last batch that is cut short. Two cases are left, and they are here: a
//! last batch whose pages came to the disk out of order, which the database refuses to open, is cut off; and damage before
//! the last batch, which the database would take for the end and silently drop all behind it, is reported as corrupt.
//!
//! Deliberately absent: checksums, which the database checks, and the layout ([`wardline_store::embedded::journal`]).

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use fjall::Database;
use wardline_domain::Failure;
use wardline_store::embedded::journal::{MAGIC, batch, cut, newest, scan};

use super::layout::{corrupt, unavailable};

/// A later batch's sequence number is above an earlier one's, and not by more than this.
const SEQNO_REACH: u64 = 1 << 20;
const DAMAGED: &str = "the log's journal is damaged before its last batch";

/// Cuts off a last batch that is structurally torn. Fails `Corrupt`, and changes nothing, when a whole batch follows the
/// torn place.
pub(super) fn cut_torn_tail(dir: &Path) -> Result<(), Failure> {
    let Some(path) = newest(dir).map_err(unavailable)? else { return Ok(()) };
    let scan = scan(&path).map_err(unavailable)?;
    let rest = read_from(&path, scan.whole).map_err(unavailable)?;
    let rest = without_zeros(&rest);
    if rest.is_empty() {
        return Ok(());
    }
    if holds_a_later_batch(rest, scan.seqno) {
        return Err(corrupt(DAMAGED));
    }
    tracing::warn!(bytes = rest.len(), "cutting a torn batch off the log's journal");
    cut(&path, scan.whole).map_err(unavailable)
}

/// The database found a batch that does not match its checksum. Opens without the last one; when that does not help the
/// damage lies before it, and the journal is put back as it was.
pub(super) fn without_last_batch(
    dir: &Path,
    error: fjall::JournalRecoveryError,
    open: impl Fn() -> fjall::Result<Database>,
) -> Result<Database, Failure> {
    let Some(path) = newest(dir).map_err(unavailable)? else { return Err(corrupt(error)) };
    let Some(start) = scan(&path).map_err(unavailable)?.last_batch else { return Err(corrupt(error)) };
    let last = read_from(&path, start).map_err(unavailable)?;
    cut(&path, start).map_err(unavailable)?;
    match open() {
        Ok(database) => {
            tracing::warn!("cut a torn batch off the log's journal");
            Ok(database)
        }
        Err(_) => {
            put_back(&path, &last, start).map_err(unavailable)?;
            Err(corrupt(DAMAGED))
        }
    }
}

fn read_from(path: &Path, at: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    Ok(rest)
}

fn put_back(path: &Path, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)?;
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

/// Whether a whole batch begins behind an end marker in `bytes`. A client who guesses sequence numbers could at worst make a
/// torn batch of its own look like damage.
fn holds_a_later_batch(bytes: &[u8], seqno: u64) -> bool {
    let ends =
        bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC).map(|(at, _)| at + MAGIC.len());
    let later = |at: usize| bytes.get(at..).and_then(batch).is_some_and(|s| s > seqno && s - seqno <= SEQNO_REACH);
    ends.into_iter().any(later)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_batch(seqno: u64, value: &[u8]) -> Vec<u8> {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes();
        let head = [&[1, 1, 0, 0, 0][..], &seqno.to_le_bytes(), &[2, 0, 0], &[1; 8], &[1, 0], &length, &length, b"k"];
        [&head.concat(), value, &[3], &[9; 8], &MAGIC].concat()
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
