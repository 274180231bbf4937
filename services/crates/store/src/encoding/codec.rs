//! How values are laid out: a version byte, then fields in a fixed order, numbers big-endian, what has no fixed length after
//! its length. Reading takes slices of the stored bytes and never panics.
//!
//! Deliberately absent: field names and skipping. A value of another version is read by the code of that version or by
//! nobody.

use bytes::{Buf, Bytes};
use wardline_domain::{Digest, Position, Timestamp};

use crate::{Cause, Failure, Result};

/// The version byte of every value written today.
const VERSION: u8 = 1;

/// Writes a value.
#[derive(Debug)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Begins a value of about `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        let mut buffer = Vec::with_capacity(1 + capacity);
        buffer.push(VERSION);
        Self(buffer)
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// 0 or 1.
    pub fn flag(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// A position's number.
    pub fn position(&mut self, value: Position) -> &mut Self {
        self.u64(value.as_u64())
    }

    /// Microseconds since the Unix epoch.
    pub fn time(&mut self, value: Timestamp) -> &mut Self {
        self.u64(value.as_micros())
    }

    /// Bytes whose length the reader knows, or that are the rest of the value.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes after their length.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    /// How many of something follow.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("every value's size is bounded far below 4 GiB at the door"))
    }

    /// Whether something follows, then that.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    /// The value.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.0)
    }
}

/// Reads a value. Every failure is [`wardline_domain::failure::CauseKind::Corrupt`] and names the table.
#[derive(Debug)]
pub struct Decoder {
    table: &'static str,
    rest: Bytes,
}

impl Decoder {
    /// Begins with the version byte.
    pub fn new(table: &'static str, bytes: Bytes) -> Result<Self> {
        let mut decoder = Self { table, rest: bytes };
        match decoder.u8()? {
            VERSION => Ok(decoder),
            other => Err(decoder.malformed(&format!("version {other} of a value, this program reads {VERSION}"))),
        }
    }

    /// The failure for a value that is not what it should be.
    pub fn malformed(&self, what: &str) -> Failure {
        corrupt(format!("{}: {what}", self.table))
    }

    fn need(&self, length: usize) -> Result<()> {
        if self.rest.len() < length { Err(self.malformed("a value is cut short")) } else { Ok(()) }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    /// 0 or 1.
    pub fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is neither 0 nor 1")),
        }
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    /// A position's number.
    pub fn position(&mut self) -> Result<Position> {
        self.u64().map(Position::from_u64)
    }

    /// Microseconds since the Unix epoch.
    pub fn time(&mut self) -> Result<Timestamp> {
        self.u64().map(Timestamp::from_micros)
    }

    /// A fixed number of bytes: ids.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.need(N)?;
        let mut array = [0; N];
        self.rest.copy_to_slice(&mut array);
        Ok(array)
    }

    /// A digest's bytes.
    pub fn digest(&mut self) -> Result<Digest> {
        self.array().map(Digest::from_bytes)
    }

    /// Bytes after their length, as a slice of the value.
    pub fn bytes(&mut self) -> Result<Bytes> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.rest.split_to(length))
    }

    /// UTF-8 after its length.
    pub fn text(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    /// A list: its count, then its items, each at least one byte.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = self.u32()? as usize;
        self.need(count)?;
        (0..count).map(|_| item(self)).collect()
    }

    /// What [`Encoder::option`] wrote.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    /// All that is left.
    pub fn rest(self) -> Bytes {
        self.rest
    }

    /// Nothing may be left.
    pub fn finish<T>(self, value: T) -> Result<T> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.malformed("a value is too long")) }
    }
}

/// What is stored cannot be used.
fn corrupt(detail: String) -> Failure {
    Failure::NotApplied(Cause::corrupt(detail))
}
