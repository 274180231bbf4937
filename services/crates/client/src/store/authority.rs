//! The tenant authority's keys, as they were first seen or configured.

use rusqlite::{Connection, OptionalExtension as _};

use crate::error::Error;

/// What is pinned; `None` before anything is.
pub(crate) fn load(connection: &Connection) -> Result<Option<Vec<[u8; 32]>>, Error> {
    let keys = connection.query_row("SELECT keys FROM authority", [], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(keys.map(|keys| keys.as_chunks().0.to_vec()))
}

/// Pins the keys unless some are pinned; answers those that are pinned then.
pub(crate) fn pin(connection: &Connection, keys: &[[u8; 32]]) -> Result<Vec<[u8; 32]>, Error> {
    connection.execute("INSERT OR IGNORE INTO authority (one, keys) VALUES (1, ?)", [keys.concat()])?;
    Ok(load(connection)?.unwrap_or_default())
}

/// Pins the keys, whatever was pinned.
pub(crate) fn replace(connection: &Connection, keys: &[[u8; 32]]) -> Result<(), Error> {
    connection.execute("INSERT OR REPLACE INTO authority (one, keys) VALUES (1, ?)", [keys.concat()])?;
    Ok(())
}
