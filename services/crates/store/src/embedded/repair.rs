//! Cuts the torn end off the journal before fjall reads it.
//!
//! fjall allocates its journal ahead, so after a power cut what was not yet on disk reads as zeros, also in the middle of a
//! batch. fjall 3.1 expects a torn batch to be cut short: zeros in an entry's lengths fail an assertion, and a batch whose
//! count of items is wrong fails the opening for good. What follows the last whole batch was never synced, so nobody was
//! answered that it survives.
//!
//! Deliberately absent: sealed journals, which were synced as a whole, and the check of a batch's checksum, which fjall makes.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::engine::unavailable;
use crate::Result;

/// fjall's own marker of its format: the only one this reader knows.
const FORMAT: &[u8] = b"FJL\x03";

/// Cuts the journal under `dir` back to its last whole batch, unless another process holds the database.
pub(super) fn cut_torn_end(dir: &Path) -> Result<()> {
    repair(dir).map_err(|error| unavailable(format!("end of the journal: {error}")))
}

fn repair(dir: &Path) -> std::io::Result<()> {
    let Ok(lock) = OpenOptions::new().read(true).write(true).open(dir.join("lock")) else { return Ok(()) };
    let known = std::fs::read(dir.join("version")).is_ok_and(|version| version.starts_with(FORMAT));
    // Whoever holds the lock is writing; fjall will say so.
    if !known || lock.try_lock().is_err() {
        return Ok(());
    }
    let done = active_journal(dir)?.map_or(Ok(()), |journal| cut(&journal));
    lock.unlock()?;
    done
}

/// The journal with the highest number is the one that was written last.
fn active_journal(dir: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut last = None;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        last = last.max(number.map(|number| (number, path)));
    }
    Ok(last.map(|(_, path)| path))
}

fn cut(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut journal = Journal { reader: BufReader::new(&file), left: length };
    let mut whole = 0;
    while journal.batch()?.is_some() {
        whole = length - journal.left;
    }
    if whole < length {
        file.set_len(whole)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Reads batches as fjall writes them: a start with a count, items, an end. `None` stands for bytes that are not one.
struct Journal<'a> {
    reader: BufReader<&'a File>,
    left: u64,
}

impl Journal<'_> {
    fn batch(&mut self) -> std::io::Result<Option<()>> {
        const START: u8 = 1;
        const END: u8 = 3;
        let Some([START, count @ .., _, _, _, _, _, _, _, _]) = self.array::<13>()? else { return Ok(None) };
        for _ in 0..u32::from_le_bytes(count) {
            if self.item()?.is_none() {
                return Ok(None);
            }
        }
        match self.array::<13>()? {
            Some([END, .., a, b, c, d]) if [a, b, c, d] == *FORMAT => Ok(Some(())),
            _ => Ok(None),
        }
    }

    fn item(&mut self) -> std::io::Result<Option<()>> {
        const ITEM: u8 = 2;
        const CLEAR: u8 = 4;
        match self.array::<1>()? {
            Some([ITEM]) => self.value(),
            Some([CLEAR]) => self.skip(8),
            _ => Ok(None),
        }
    }

    /// Kind, compression, table, lengths of key, value and stored value, then key and stored value.
    fn value(&mut self) -> std::io::Result<Option<()>> {
        let Some(head) = self.array::<20>()? else { return Ok(None) };
        let [_, compression, _, _, _, _, _, _, _, _, k0, k1, v0, v1, v2, v3, s0, s1, s2, s3] = head;
        let (key, value) = (u16::from_le_bytes([k0, k1]), u32::from_le_bytes([v0, v1, v2, v3]));
        let stored = u32::from_le_bytes([s0, s1, s2, s3]);
        if compression == 0 && value != stored {
            return Ok(None);
        }
        self.skip(u64::from(key) + u64::from(stored))
    }

    fn array<const N: usize>(&mut self) -> std::io::Result<Option<[u8; N]>> {
        if self.left < N as u64 {
            return Ok(None);
        }
        let mut array = [0; N];
        self.reader.read_exact(&mut array)?;
        self.left -= N as u64;
        Ok(Some(array))
    }

    fn skip(&mut self, bytes: u64) -> std::io::Result<Option<()>> {
        if self.left < bytes {
            return Ok(None);
        }
        self.left -= bytes;
        // An item is little more than 4 GiB.
        let Ok(bytes) = i64::try_from(bytes) else { return Ok(None) };
        self.reader.seek_relative(bytes).map(Some)
    }
}
