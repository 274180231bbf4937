//! A database whose creation a crash cut short.
//!
//! fjall writes its version marker last, and refuses to create a database where a journal lies already. Before the marker
//! nothing was ever written to it, so that journal can go.
//!
//! Deliberately absent: judgement of anything else. A folder that holds more than an unfinished creation is left as it is.

use std::io;
use std::path::Path;

/// fjall's marker of a database that was created to the end.
const MARKER: &str = "version";
/// The journal that a creation begins with.
const FIRST_JOURNAL: &str = "0.jnl";
/// Where tables lie, once there are any.
const TABLES: &str = "keyspaces";

/// Removes what an unfinished creation left in `dir`, for fjall to begin anew. The caller's duty: nobody else has it open.
pub fn clear_unfinished(dir: &Path) -> io::Result<()> {
    let journal = dir.join(FIRST_JOURNAL);
    if dir.join(MARKER).try_exists()? || !journal.try_exists()? || has_tables(&dir.join(TABLES))? {
        return Ok(());
    }
    std::fs::remove_file(journal)
}

fn has_tables(tables: &Path) -> io::Result<bool> {
    match std::fs::read_dir(tables) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
