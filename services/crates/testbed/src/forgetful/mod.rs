//! A disk that forgets unsynced writes.
//!
//! After SIGKILL the page cache still holds everything a process wrote, so a killed process alone never shows a missing
//! sync. This module makes up for it: a preloaded library records what each change below one directory replaces, and
//! [`Forgetful::forget`] afterwards takes back what no sync has covered, as if the power had failed at the kill.
//!
//! What the simulated disk keeps:
//! - **Content.** A file has the content and the length it had when its last `fsync` or `fdatasync` that returned was
//!   *entered*. What other threads wrote while it ran is lost. A file never synced is empty. Writes through a
//!   descriptor opened with `O_SYNC` or `O_DSYNC` are kept.
//! - **Names.** A sync of a directory keeps every creation, removal and rename of its entries so far, both sides of a
//!   rename out of or into it, and its own path. A sync of a file keeps its content, its present names and the path to
//!   them, as ext4, XFS and btrfs do. All other changes of names are undone: a removed file is back, a renamed one has
//!   its old name, a replaced one is there again. With [`Forgetful::requiring_directory_syncs`] a sync of a file keeps
//!   no name, and a directory's sync keeps its own entries only: all that POSIX promises.
//! - **Everything from before.** What stood below the directory at [`Forgetful::new`] or after the last
//!   [`Forgetful::forget`] counts as synced. A process that exits and is followed by another loses nothing in between,
//!   and the later loss of power takes back the unsynced work of both.
//!
//! A recorded small write costs about ten microseconds where a bare one costs one, and a write to a socket or a pipe
//! pays for the detour too: take no measurements under it.
//!
//! Deliberately absent:
//! - Partial survival. All of the unsynced is lost, never a part; no torn sectors, no reordering.
//! - `sync`, `syncfs` and `sync_file_range` keep nothing. Modes, owners, times and extended attributes are not undone,
//!   and a directory that has to be made again gets the default mode.
//! - Changes that cannot be recorded are not ignored: shared writable mappings of a watched file end the process with a
//!   message; `fallocate`, `copy_file_range`, `sendfile`, `splice`, reflinks, symbolic links, device nodes, io_uring
//!   and renames or links across the directory's border fail with what a file system without them answers. A Unix
//!   socket is gone afterwards.
//! - More than one process at a time on one journal, programs linked statically, processors other than x86_64.
//! - Freed space: what the process deletes stays in the journal directory until the next `forget`.

mod journal;
mod library;
mod replay;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

pub use library::library;

/// What [`Forgetful::forget`] took back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that remain and whose content was set back.
    pub files_restored: u64,
    /// Bytes that the undone writes and truncations had changed in those files.
    pub bytes_undone: u64,
    /// Names that were removed, put back, or made to name another file.
    pub names_undone: u64,
    /// Syncs that returned to the program and counted.
    pub syncs_kept: u64,
    /// Syncs that returned to the program and were ignored on account of [`Forgetful::without_sync_of`].
    pub syncs_ignored: u64,
}

/// A directory on a disk that forgets, and the journal of what to undo there.
///
/// The caller gives every process that changes the directory the environment of [`Forgetful::command_env`], one process
/// at a time, and changes nothing there itself.
#[derive(Debug)]
pub struct Forgetful {
    watched: PathBuf,
    journal: PathBuf,
    library: PathBuf,
    ignored: Vec<String>,
    strict_names: bool,
}

impl Forgetful {
    /// Watches a directory, whose present content counts as synced. Both directories are created when absent; they
    /// must be on one file system, neither inside the other. An old journal is dropped.
    pub fn new(watched_dir: impl AsRef<Path>, journal_dir: impl AsRef<Path>) -> io::Result<Self> {
        fs::create_dir_all(&watched_dir)?;
        fs::create_dir_all(&journal_dir)?;
        let (watched, journal) = (fs::canonicalize(watched_dir)?, fs::canonicalize(journal_dir)?);
        if watched.starts_with(&journal) || journal.starts_with(&watched) {
            return Err(io::Error::other("the journal and the watched directory must not contain each other"));
        }
        let forgetful = Self { watched, journal, library: library()?, ignored: Vec::new(), strict_names: false };
        forgetful.begin()?;
        Ok(forgetful)
    }

    /// Makes [`Forgetful::forget`] ignore the syncs of the files and directories whose path matches, which still
    /// return OK to the program: the ablation that shows which test notices a missing sync.
    ///
    /// The pattern is matched against the whole path below the watched directory at the time of the sync; `*` stands
    /// for any characters, `/` included. The path of a directory ends with `/`, that of the watched directory is `/`.
    #[must_use]
    pub fn without_sync_of(mut self, pattern: impl Into<String>) -> Self {
        self.ignored.push(pattern.into());
        self
    }

    /// Makes the disk keep only what POSIX promises: a name lasts when its directory was synced, and only then.
    #[must_use]
    pub fn requiring_directory_syncs(mut self) -> Self {
        self.strict_names = true;
        self
    }

    /// Sets what a command needs for its process to be recorded.
    pub fn command_env(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("WARDLINE_TEST_FORGETFUL_WATCHED", &self.watched)
            .env("WARDLINE_TEST_FORGETFUL_JOURNAL", &self.journal);
    }

    /// Takes back everything that no sync has covered. The recorded process must be dead and waited for.
    pub fn forget(&self) -> io::Result<Report> {
        let log = self.lock_log()?;
        let records = journal::read(&self.log())?;
        let kept = |path: &OsStr| !self.ignored.iter().any(|pattern| matches(pattern, path));
        let report = replay::undo(&self.watched, &self.journal, &records, &kept, self.strict_names)?;
        drop(log);
        self.begin()?;
        Ok(report)
    }

    fn log(&self) -> PathBuf {
        self.journal.join("log")
    }

    fn lock_log(&self) -> io::Result<File> {
        let log = OpenOptions::new().read(true).open(self.log())?;
        match log.try_lock() {
            Ok(()) => Ok(log),
            Err(TryLockError::WouldBlock) => Err(io::Error::other("the recorded process is still running")),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Starts an empty journal: the present content of the directory is what the disk holds.
    fn begin(&self) -> io::Result<()> {
        let pool = self.journal.join("pool");
        if pool.exists() {
            fs::remove_dir_all(&pool)?;
        }
        fs::create_dir(&pool)?;
        let mut initial = Vec::new();
        list(&self.watched, Path::new(""), &mut initial)?;
        let mut lines = Vec::new();
        for entry in &initial {
            if let Some(inode) = entry.inode {
                link_once(&self.watched.join(&entry.path), &pool.join(inode.to_string()))?;
            }
            journal::write_initial(&mut lines, entry);
        }
        fs::write(self.journal.join("initial"), lines)?;
        fs::write(self.log(), b"")
    }
}

/// One name below the watched directory; a directory has no inode here.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    inode: Option<u64>,
}

/// Lists a tree, every directory before what is in it.
fn list(root: &Path, below: &Path, into: &mut Vec<Entry>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            into.push(Entry { path: path.clone(), inode: None });
            list(root, &path, into)?;
        } else {
            into.push(Entry { path, inode: Some(entry.ino()) });
        }
    }
    Ok(())
}

fn link_once(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let same = fs::symlink_metadata(from)?.ino() == fs::symlink_metadata(to)?.ino();
            if same { Ok(()) } else { Err(error) }
        }
        other => other,
    }
}

fn matches(pattern: &str, path: &OsStr) -> bool {
    fn rest(pattern: &[u8], path: &[u8]) -> bool {
        match pattern.split_first() {
            None => path.is_empty(),
            Some((b'*', pattern)) => (0..=path.len()).any(|skipped| rest(pattern, &path[skipped..])),
            Some((byte, pattern)) => {
                path.split_first().is_some_and(|(first, path)| first == byte && rest(pattern, path))
            }
        }
    }
    rest(pattern.as_bytes(), path.as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        assert!(matches("*.jnl", OsStr::new("db/0.jnl")));
        assert!(matches("*/", OsStr::new("/")));
        assert!(matches("db/*/tables/*", OsStr::new("db/keyspaces/1/tables/4")));
        assert!(!matches("0.jnl", OsStr::new("db/0.jnl")));
        assert!(!matches("*/", OsStr::new("db/0.jnl")));
    }
}
