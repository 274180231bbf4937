//! The cursor and the writer beneath the canonical encodings of heads, rosters and deltas: fixed-width big-endian
//! numbers, options as 0 or 1, lists behind their count.
//!
//! Deliberately absent: self-description and defaults. One value has one encoding, so that two owners of a partition
//! write the same cell; every other byte string is refused.

use crate::Digest;
use crate::ids::MessageId;

/// Why bytes are refused. Each caller wraps it in its own error.
pub(crate) type Refused = &'static str;

/// The bytes end before the value does.
const SHORT: Refused = "ends early";

/// Takes values off the front of a byte string.
pub(crate) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Refused> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Refused> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Refused> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Refused> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn digest(&mut self) -> Result<Digest, Refused> {
        self.array().map(Digest::from_bytes)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self) -> Result<bool, Refused> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    pub(crate) fn message(&mut self) -> Result<Option<MessageId>, Refused> {
        if self.flag()? { self.array().map(|id| Some(MessageId::from_bytes(id))) } else { Ok(None) }
    }

    /// Text behind its length. Copies no more than there is.
    pub(crate) fn text(&mut self) -> Result<String, Refused> {
        let length = usize::try_from(self.u32()?).map_err(|_| SHORT)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| "a text is not UTF-8")
    }

    /// The caller has read everything there should be.
    pub(crate) const fn end(self) -> Result<(), Refused> {
        if self.0.is_empty() { Ok(()) } else { Err("bytes follow the end") }
    }
}

/// Appends values to a byte string.
#[derive(Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// How many entries follow.
    pub(crate) fn count(&mut self, entries: usize) -> &mut Self {
        // Every list encoded here is bounded far below: 5,000 leaves, 64 senders, texts from records of a few MiB.
        self.u32(u32::try_from(entries).unwrap_or(u32::MAX))
    }

    pub(crate) fn message(&mut self, message: Option<MessageId>) -> &mut Self {
        match message {
            None => self.u8(0),
            Some(id) => self.u8(1).raw(id.as_bytes()),
        }
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.count(text.len()).raw(text.as_bytes())
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        self.0
    }
}
