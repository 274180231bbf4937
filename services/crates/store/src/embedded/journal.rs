//! How fjall 3 lays out its journals, as far as their structure goes: batches of a start, items and an end.
//!
//! Little-endian: tag u8; 1 = start (items u32, seqno u64), 2 = item (type u8, compression u8, keyspace u64, key length u16,
//! value length u32, stored length u32, key, stored value), 3 = end (checksum u64, "FJL\x03"), 4 = clear (keyspace u64).
//!
//! Deliberately absent: checksums. fjall checks them; and sealed journals, which were synced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Cursor, Read, Result, Seek};
use std::path::{Path, PathBuf};

/// What ends each batch, and fjall's own marker of its format: the only one that is known here.
pub const MAGIC: [u8; 4] = *b"FJL\x03";

/// The value types that fjall has.
const VALUE_TYPES: [u8; 4] = [0, 1, 2, 4];

/// The journal in `dir` that was written last: the one with the highest number. `None` when there is none.
pub fn newest(dir: &Path) -> Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        newest = newest.max(number.map(|number| (number, path)));
    }
    Ok(newest.map(|(_, path)| path))
}

/// Ends a journal at a byte, durably.
pub fn cut(journal: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(journal)?;
    file.set_len(at)?;
    file.sync_all()
}

/// What a journal begins with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Behind the last batch that is whole in structure, as all before it are.
    pub whole: u64,
    /// Where that batch begins. `None` when there is none.
    pub last_batch: Option<u64>,
    /// The highest sequence number of those batches.
    pub seqno: u64,
}

/// Reads a journal's batches up to the first place that is none.
pub fn scan(journal: &Path) -> Result<Scan> {
    let file = File::open(journal)?;
    let length = file.metadata()?.len();
    let mut reader = Batches { reader: BufReader::new(&file), left: length };
    let mut scan = Scan::default();
    while let Some(seqno) = reader.batch()? {
        scan = Scan { last_batch: Some(scan.whole), whole: length - reader.left, seqno: scan.seqno.max(seqno) };
    }
    Ok(scan)
}

/// The sequence number of the batch that `bytes` begin with; `None` when they begin with none that is whole.
pub fn batch(bytes: &[u8]) -> Option<u64> {
    // Reading from memory does not fail.
    Batches { reader: Cursor::new(bytes), left: bytes.len() as u64 }.batch().ok().flatten()
}

/// Reads batches as fjall writes them. `None` stands for bytes that are not one.
struct Batches<R> {
    reader: R,
    left: u64,
}

impl<R: Read + Seek> Batches<R> {
    fn batch(&mut self) -> Result<Option<u64>> {
        const START: u8 = 1;
        const END: u8 = 3;
        let Some([START, count @ .., s0, s1, s2, s3, s4, s5, s6, s7]) = self.array::<13>()? else { return Ok(None) };
        for _ in 0..u32::from_le_bytes(count) {
            if self.item()?.is_none() {
                return Ok(None);
            }
        }
        match self.array::<13>()? {
            Some([END, .., a, b, c, d]) if [a, b, c, d] == MAGIC => {
                Ok(Some(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])))
            }
            _ => Ok(None),
        }
    }

    fn item(&mut self) -> Result<Option<()>> {
        const ITEM: u8 = 2;
        const CLEAR: u8 = 4;
        match self.array::<1>()? {
            Some([ITEM]) => self.value(),
            Some([CLEAR]) => self.skip(8),
            _ => Ok(None),
        }
    }

    /// Type, compression, keyspace, lengths of key, value and stored value, then key and stored value.
    fn value(&mut self) -> Result<Option<()>> {
        let Some(head) = self.array::<20>()? else { return Ok(None) };
        let [kind, compression, _, _, _, _, _, _, _, _, k0, k1, v0, v1, v2, v3, s0, s1, s2, s3] = head;
        let (key, value) = (u16::from_le_bytes([k0, k1]), u32::from_le_bytes([v0, v1, v2, v3]));
        let stored = u32::from_le_bytes([s0, s1, s2, s3]);
        if !VALUE_TYPES.contains(&kind) || (compression == 0 && value != stored) {
            return Ok(None);
        }
        self.skip(u64::from(key) + u64::from(stored))
    }

    fn array<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        if self.left < N as u64 {
            return Ok(None);
        }
        let mut array = [0; N];
        self.reader.read_exact(&mut array)?;
        self.left -= N as u64;
        Ok(Some(array))
    }

    fn skip(&mut self, bytes: u64) -> Result<Option<()>> {
        if self.left < bytes {
            return Ok(None);
        }
        self.left -= bytes;
        // An item is little more than 4 GiB.
        let Ok(bytes) = i64::try_from(bytes) else { return Ok(None) };
        self.reader.seek_relative(bytes).map(Some)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn a_batch(seqno: u64, kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u32::try_from(value.len()).unwrap().to_le_bytes();
        let item = [&[2, kind, 0][..], &[1; 8], &[1, 0], &length, &length, b"k", value].concat();
        let clear = [&[4][..], &[1; 8]].concat();
        [&[1, 2, 0, 0, 0][..], &seqno.to_le_bytes(), &item, &clear, &[3], &[9; 8], &MAGIC].concat()
    }

    #[test]
    fn whole_batches_are_counted_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (a_batch(7, 0, b"one"), a_batch(2, 1, b"two"));
        let journal = dir.path().join("3.jnl");
        for rest in [&[][..], &[0; 100], &one[..one.len() - 1], &a_batch(9, 3, b"no such type")] {
            std::fs::write(&journal, [&one[..], &two, rest].concat()).unwrap();
            let (begins, ends) = (one.len() as u64, (one.len() + two.len()) as u64);
            assert_eq!(scan(&journal).unwrap(), Scan { whole: ends, last_batch: Some(begins), seqno: 7 });
        }
        std::fs::write(&journal, [0; 100]).unwrap();
        assert_eq!(scan(&journal).unwrap(), Scan::default());
        assert_eq!((batch(&two), batch(&two[1..])), (Some(2), None));
    }

    #[test]
    fn the_newest_journal_has_the_highest_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(dir.path()).unwrap(), None);
        for name in ["9.jnl", "10.jnl", "11.tmp", "x.jnl"] {
            std::fs::write(dir.path().join(name), []).unwrap();
        }
        assert_eq!(newest(dir.path()).unwrap(), Some(dir.path().join("10.jnl")));
    }
}
