//! A place in the event log.

use std::fmt;

/// (incarnation << 40) | offset. The incarnation belongs to the topic and rises when the topic is ever re-created or
/// migrated, so positions of one partition only rise. It is also the write timestamp of every mutable cell derived from
/// the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    const OFFSET_BITS: u32 = 40;

    /// From its number.
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// From incarnation (24 bits) and offset (40 bits). `None` when either does not fit.
    pub const fn new(incarnation: u32, offset: u64) -> Option<Self> {
        if incarnation >> 24 != 0 || offset >> Self::OFFSET_BITS != 0 {
            return None;
        }
        Some(Self(((incarnation as u64) << Self::OFFSET_BITS) | offset))
    }

    /// Its number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The topic's incarnation.
    pub const fn incarnation(self) -> u32 {
        (self.0 >> Self::OFFSET_BITS) as u32
    }

    /// The offset in the partition.
    pub const fn offset(self) -> u64 {
        self.0 & ((1 << Self::OFFSET_BITS) - 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation(), self.offset())
    }
}
