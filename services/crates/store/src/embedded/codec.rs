//! How values are laid out: a version byte, then fields in a fixed order, numbers big-endian, what has no fixed length after
//! its length. Reading takes slices of the stored bytes and never panics.
//!
//! Deliberately absent: field names and skipping. A value of another version is read by the code of that version or by
//! nobody.

use bytes::{Buf, Bytes};
use wardline_domain::{Digest, Position, Timestamp};

use super::engine::unusable;
use crate::{Failure, Result};

/// The version byte of every value written today.
const VERSION: u8 = 1;

/// Writes a value.
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn new(capacity: usize) -> Self {
        let mut buffer = Vec::with_capacity(1 + capacity);
        buffer.push(VERSION);
        Self(buffer)
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub(super) fn flag(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn position(&mut self, value: Position) -> &mut Self {
        self.u64(value.as_u64())
    }

    pub(super) fn time(&mut self, value: Timestamp) -> &mut Self {
        self.u64(value.as_micros())
    }

    /// Bytes whose length the reader knows, or that are the rest of the value.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes after their length.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    /// How many of something follow.
    pub(super) fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("every value's size is bounded far below 4 GiB at the door"))
    }

    /// Whether something follows, then that.
    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    pub(super) fn finish(self) -> Bytes {
        Bytes::from(self.0)
    }
}

/// Reads a value.
pub(super) struct Decoder {
    table: &'static str,
    rest: Bytes,
}

impl Decoder {
    /// Begins with the version byte.
    pub(super) fn new(table: &'static str, bytes: Bytes) -> Result<Self> {
        let mut decoder = Self { table, rest: bytes };
        match decoder.u8()? {
            VERSION => Ok(decoder),
            other => Err(decoder.malformed(&format!("version {other} of a value, this program reads {VERSION}"))),
        }
    }

    /// The failure for a value that is not what it should be.
    pub(super) fn malformed(&self, what: &str) -> Failure {
        unusable(format!("{}: {what}", self.table))
    }

    fn need(&self, length: usize) -> Result<()> {
        if self.rest.len() < length { Err(self.malformed("a value is cut short")) } else { Ok(()) }
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is neither 0 nor 1")),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    pub(super) fn position(&mut self) -> Result<Position> {
        self.u64().map(Position::from_u64)
    }

    pub(super) fn time(&mut self) -> Result<Timestamp> {
        self.u64().map(Timestamp::from_micros)
    }

    /// A fixed number of bytes: ids.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.need(N)?;
        let mut array = [0; N];
        self.rest.copy_to_slice(&mut array);
        Ok(array)
    }

    pub(super) fn digest(&mut self) -> Result<Digest> {
        self.array().map(Digest::from_bytes)
    }

    /// Bytes after their length, as a slice of the value.
    pub(super) fn bytes(&mut self) -> Result<Bytes> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    /// A list: its count, then its items, each at least one byte.
    pub(super) fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        self.need(count)?;
        (0..count).map(|_| item(self)).collect()
    }

    pub(super) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// All that is left.
    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    /// Nothing may be left.
    pub(super) fn finish<T>(self, value: T) -> Result<T> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.malformed("a value is too long")) }
    }
}

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
