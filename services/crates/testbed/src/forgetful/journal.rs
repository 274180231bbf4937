//! The journal directory as the preloaded library leaves it: `log` (what was replaced, in the order of the changes),
//! `initial` (the tree at the start) and `pool` (a second name for every file, its inode number).
//!
//! The layout of a record is fixed by `struct header` in `forgetful.c`.

use super::Entry;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const HEADER_BYTES: usize = 48;
const FLAG_ZEROS: u8 = 1;
const FLAG_DIRECTORY: u8 = 2;

/// A record and where it stands in the log; that offset orders it against the syncs.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) at: u64,
    pub(super) change: Change,
}

#[derive(Debug)]
pub(super) enum Change {
    /// About to change a range of a file. `old` is `None` where `count` zeros stood.
    Undo { inode: u64, old_length: u64, offset: u64, count: u64, old: Option<Vec<u8>>, changed: u64 },
    /// A name came to be, for a new file or one more for an old one.
    Create { inode: u64, path: PathBuf },
    /// A name of a file or an empty directory is gone.
    Remove { path: PathBuf },
    /// A name became another, replacing what stood there.
    Rename { from: PathBuf, to: PathBuf },
    /// An empty directory came to be.
    MakeDir { path: PathBuf },
    /// A sync returned; it covers the log below `since`.
    Sync { target: Target, path: PathBuf, since: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    File(u64),
    Directory,
}

/// Reads the log. A record cut short by the kill is no record: the change it announces was not made.
pub(super) fn read(log: &Path) -> io::Result<Vec<Record>> {
    let bytes = fs::read(log)?;
    let mut records = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
        let number = |from: usize| header[from..from + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let length = (number(0) & 0xffff_ffff) as usize;
        let Some(payload) = bytes.get(at + HEADER_BYTES..at + length) else { break };
        let (kind, flags) = (header[4], header[5]);
        let path_length = usize::from(u16::from_le_bytes([header[6], header[7]]));
        if payload.len() < path_length {
            return Err(malformed(at));
        }
        let (path, payload) = payload.split_at(path_length);
        let path = PathBuf::from(OsStr::from_bytes(path));
        let (inode, old_length, offset, count, changed) = (number(8), number(16), number(24), number(32), number(40));
        let change = match kind {
            1 => {
                let old = (flags & FLAG_ZEROS == 0).then(|| payload.to_vec());
                Change::Undo { inode, old_length, offset, count, old, changed }
            }
            2 => Change::Create { inode, path },
            3 => Change::Remove { path },
            4 => Change::Rename { from: path, to: PathBuf::from(OsStr::from_bytes(payload)) },
            5 => Change::MakeDir { path },
            6 => {
                let target = if flags & FLAG_DIRECTORY != 0 { Target::Directory } else { Target::File(inode) };
                Change::Sync { target, path, since: old_length }
            }
            _ => return Err(malformed(at)),
        };
        records.push(Record { at: at as u64, change });
        at += length;
    }
    Ok(records)
}

fn malformed(at: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log of the forgetful disk is malformed at byte {at}"))
}

/// Appends an entry to the listing of the initial tree: inode (0 for a directory), path, NUL.
pub(super) fn write_initial(into: &mut Vec<u8>, entry: &Entry) {
    into.extend_from_slice(&entry.inode.unwrap_or(0).to_le_bytes());
    into.extend_from_slice(entry.path.as_os_str().as_bytes());
    into.push(0);
}

/// Reads the listing of the initial tree.
pub(super) fn read_initial(from: &Path) -> io::Result<Vec<Entry>> {
    let bytes = fs::read(from)?;
    let mut rest = bytes.as_slice();
    let mut entries = Vec::new();
    while let Some((inode, after)) = rest.split_first_chunk::<8>() {
        let end = after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
        let inode = u64::from_le_bytes(*inode);
        let path = PathBuf::from(OsStr::from_bytes(&after[..end]));
        entries.push(Entry { path, inode: (inode != 0).then_some(inode) });
        rest = after.get(end + 1..).unwrap_or_default();
    }
    Ok(entries)
}
