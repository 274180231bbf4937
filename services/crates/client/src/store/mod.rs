//! The device's file: SQLite with openmls' tables and our own, in one schema and one transaction.
//!
//! Deliberately absent: migration from other versions (there is one), and encryption of the file; the operating system's
//! file encryption is the place for that.

pub(crate) mod authority;
pub(crate) mod conversations;
pub(crate) mod device_logs;
pub(crate) mod feed;
pub(crate) mod identity;
pub(crate) mod messages;
pub(crate) mod outbox;
pub(crate) mod requests;
mod schema;
pub(crate) mod watermarks;

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use openmls_sqlite_storage::SqliteStorageProvider;
use rusqlite::Connection;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};

use crate::device::Durability;
use crate::error::Error;
use crate::mls::provider::Cbor;

/// Makes the file, readable by its owner only.
pub(crate) fn create(file: &Path, durability: Durability) -> Result<Connection, Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(file).map_err(|error| Error::Store(error.to_string()))?;
    let mut connection = open(file, durability)?;
    SqliteStorageProvider::<Cbor, _>::new(&mut connection)
        .run_migrations()
        .map_err(|error| Error::Store(error.to_string()))?;
    connection.execute_batch(schema::TABLES)?;
    Ok(connection)
}

/// Opens the file, which must exist, for this process alone.
pub(crate) fn open(file: &Path, durability: Durability) -> Result<Connection, Error> {
    if !file.exists() {
        return Err(Error::Invalid("there is no such file"));
    }
    let connection = Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "secure_delete", true)?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Process => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    Ok(connection)
}

/// A fixed number of bytes in a column.
pub(crate) struct Fixed<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> FromSql for Fixed<N> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let bytes = value.as_blob()?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| FromSqlError::InvalidBlobSize { expected_size: N, blob_size: bytes.len() })
    }
}
