//! Which format the database is in: recorded when it is created, checked whenever it is opened.

use fjall::{Database, KeyspaceCreateOptions, PersistMode};

use super::engine::{fjall_failure, unusable};
use crate::Result;

/// The layout of keys and tables. Values carry their own version byte beside it.
const FORMAT: u32 = 1;

const TABLE: &str = "format";
const KEY: &[u8] = b"version";

/// Records the format of a new database, or checks that of an old one.
pub(super) fn check(db: &Database) -> Result<()> {
    let new = db.keyspace_count() == 0;
    let table = db.keyspace(TABLE, KeyspaceCreateOptions::default).map_err(fjall_failure(TABLE))?;
    match table.get(KEY).map_err(fjall_failure(TABLE))? {
        Some(found) if found[..] == FORMAT.to_be_bytes() => Ok(()),
        Some(found) => Err(unusable(match <[u8; 4]>::try_from(&found[..]) {
            Ok(bytes) => format!("format {} of the store, this program reads {FORMAT}", u32::from_be_bytes(bytes)),
            Err(_) => "the format of the store is not a number".to_owned(),
        })),
        // Only the creation that was cut short leaves this table without its entry, and it makes no other table before.
        None if new || db.keyspace_count() == 1 => record(db, &table),
        None => Err(unusable("the store has tables and no format")),
    }
}

fn record(db: &Database, table: &fjall::Keyspace) -> Result<()> {
    table.insert(KEY, FORMAT.to_be_bytes()).map_err(fjall_failure(TABLE))?;
    db.persist(PersistMode::SyncAll).map_err(fjall_failure(TABLE))
}
