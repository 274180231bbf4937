//! Numbers between the domain, where they have no sign, and CQL, where they have one.
//!
//! Deliberately absent: wrapping. A number that does not fit is refused before anything is sent.

use wardline_store::{Cause, Failure, Result};

/// What is stored, or was asked to be stored, cannot be.
pub(crate) fn corrupt(detail: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::corrupt(detail))
}

/// A number to be stored.
pub(crate) fn to_cql(table: &'static str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| corrupt(format!("{table}: a number of 64 bits, CQL keeps 63")))
}

/// A number that bounds a range from above: none that is stored is greater than what fits.
pub(crate) fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number that was stored.
pub(crate) fn from_cql(table: &'static str, value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| corrupt(format!("{table}: a number below zero")))
}

/// How many rows are asked for. Whoever wants more asks again.
pub(crate) fn limit(rows: usize) -> i32 {
    i32::try_from(rows).unwrap_or(i32::MAX)
}

/// An id or digest that was stored.
pub(crate) fn id<T>(table: &'static str, bytes: &[u8]) -> Result<T>
where
    T: for<'a> TryFrom<&'a [u8]>,
{
    T::try_from(bytes).map_err(|_| corrupt(format!("{table}: an id of another length")))
}
