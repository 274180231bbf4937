//! Points in time.

use prost_types::Timestamp as Wire;
use wardline_domain::Timestamp;

use super::Violation;

/// To the wire.
pub fn to_wire(at: Timestamp) -> Wire {
    let micros = at.as_micros();
    // Both fit: u64 micros / 1e6 is below 2^45, the rest below 1e9.
    Wire { seconds: (micros / 1_000_000) as i64, nanos: ((micros % 1_000_000) * 1000) as i32 }
}

/// From the wire: from the Unix epoch up to the year 9999 (RFC 3339's end).
pub fn from_wire(at: &Wire, field: &'static str) -> Result<Timestamp, Violation> {
    const YEAR_10000: i64 = 253_402_300_800;
    if !(0..YEAR_10000).contains(&at.seconds) || !(0..1_000_000_000).contains(&at.nanos) {
        return Err(Violation::new(field, "must be a time between 1970 and 9999"));
    }
    Ok(Timestamp::from_micros(at.seconds as u64 * 1_000_000 + at.nanos as u64 / 1000))
}
