//! Values are laid out as every engine lays them out; what stands in a key is read here.

pub(super) use crate::encoding::{Decoder, Encoder};

use super::engine::unusable;
use crate::Result;

/// The big-endian number at `at` in a key.
pub(super) fn u64_at(table: &'static str, key: &[u8], at: usize) -> Result<u64> {
    let bytes = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| unusable(format!("{table}: a key is cut short")))
}

/// The bytes at `at` in a key: an id or digest.
pub(super) fn array_at<const N: usize>(table: &'static str, key: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = key.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| unusable(format!("{table}: a key is cut short")))
}
