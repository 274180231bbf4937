//! Where the device is in its feed.

use rusqlite::{Connection, params};

use crate::error::Error;

/// Where the device is in its feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The last cursor saved.
    pub(crate) cursor: Vec<u8>,
    /// The cursor of the last event.
    pub(crate) event: Vec<u8>,
    /// Conversations are still to be read up to here.
    pub(crate) resync: bool,
    /// Key packages are to be published.
    pub(crate) packages_low: bool,
}

pub(crate) fn load(connection: &Connection) -> Result<Place, Error> {
    Ok(connection.query_row("SELECT cursor, event, resync, packages_low FROM feed", [], |row| {
        Ok(Place { cursor: row.get(0)?, event: row.get(1)?, resync: row.get(2)?, packages_low: row.get(3)? })
    })?)
}

pub(crate) fn save(connection: &Connection, place: &Place) -> Result<(), Error> {
    connection.execute(
        "UPDATE feed SET cursor = ?, event = ?, resync = ?, packages_low = ?",
        params![place.cursor, place.event, place.resync, place.packages_low],
    )?;
    Ok(())
}

pub(crate) fn set_packages_low(connection: &Connection, low: bool) -> Result<(), Error> {
    connection.execute("UPDATE feed SET packages_low = ?", [low])?;
    Ok(())
}
