//! Directories and their durability.
//!
//! Deliberately absent: what lies in them.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Makes `dir`, and what is missing above it, readable by its owner only; an existing one is left as it is. On return its
/// name is on disk.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = parent_of(dir) {
        private_dir(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(dir),
    }
}

/// Puts the name of what was made, renamed or removed at `path` on disk.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent_of(path).unwrap_or(Path::new(".")))?.sync_all()
}

/// `None` for a root and for a name in the working directory.
fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}
