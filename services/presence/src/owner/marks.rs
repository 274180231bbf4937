//! Which derived records a feeds partition has taken in: one mark per source partition over (position, part). What is not
//! above its source's mark is a repeat.
//!
//! Deliberately absent: source 0, whose events derive from no log and may repeat.

use std::collections::BTreeMap;

use bytes::Bytes;
use wardline_domain::{Cause, Failure, Position};

/// The version of the encoding.
const VERSION: u8 = 1;
/// Source, position, part.
const ENTRY: usize = 16;

/// The marks of one feeds partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks(BTreeMap<u32, (Position, u32)>);

impl Marks {
    /// Takes a record in, once.
    pub(crate) fn admit(&mut self, source: u32, position: Position, part: u32) -> bool {
        if source == 0 {
            return true;
        }
        let above = self.0.get(&source).is_none_or(|mark| (position, part) > *mark);
        if above {
            self.0.insert(source, (position, part));
        }
        above
    }

    /// For the checkpoint.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(1 + self.0.len() * ENTRY);
        out.push(VERSION);
        for (source, (position, part)) in &self.0 {
            out.extend_from_slice(&source.to_be_bytes());
            out.extend_from_slice(&position.as_u64().to_be_bytes());
            out.extend_from_slice(&part.to_be_bytes());
        }
        out.into()
    }

    /// From a checkpoint.
    ///
    /// # Errors
    /// `NotApplied` with cause `Corrupt` for anything that [`Marks::encode`] did not write.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        let corrupt =
            || Failure::NotApplied(Cause::corrupt("the checkpoint's marks are not those of a feeds partition"));
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let (version, entries) = bytes.split_first().ok_or_else(corrupt)?;
        if *version != VERSION || !entries.len().is_multiple_of(ENTRY) {
            return Err(corrupt());
        }
        let marks = entries.chunks_exact(ENTRY).map(|entry| {
            let (source, rest) = entry.split_first_chunk::<4>()?;
            let (position, rest) = rest.split_first_chunk::<8>()?;
            let part = rest.first_chunk::<4>()?;
            let position = Position::from_u64(u64::from_be_bytes(*position));
            Some((u32::from_be_bytes(*source), (position, u32::from_be_bytes(*part))))
        });
        marks.collect::<Option<BTreeMap<_, _>>>().map(Self).ok_or_else(corrupt)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(number: u64) -> Position {
        Position::from_u64(number)
    }

    /// A record is taken in once; sources do not shadow each other; source 0 is never dropped.
    #[test]
    fn repeats_are_dropped() {
        let mut marks = Marks::default();
        assert!(marks.admit(1, at(5), 0));
        assert!(marks.admit(1, at(5), 1));
        assert!(!marks.admit(1, at(5), 0));
        assert!(!marks.admit(1, at(4), 9));
        assert!(marks.admit(2, at(1), 0));
        assert!(marks.admit(0, at(1), 0) && marks.admit(0, at(1), 0));
        assert_eq!(Marks::decode(&marks.encode()).unwrap(), marks);
        assert!(Marks::decode(&[9]).is_err());
    }
}
