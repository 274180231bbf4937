//! Stub.
use crate::error::Error;
use rusqlite::Connection;
pub(crate) fn unsequenced(_: &Connection) -> Result<u64, Error> {
    todo!()
}
