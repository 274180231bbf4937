//! A cursor over the TLS presentation language as MLS uses it (RFC 9420 section 2.1): fixed-width numbers and vectors
//! behind a variable-size length. Bounds-checked, panic-free; what it hands out are slices of its input.
//!
//! Deliberately absent: allocation. The input's size bounds everything that is read from it.

use bytes::Bytes;

use super::InvalidMls;

/// Lengths of 2^30 and above have no encoding (RFC 9420 section 2.1.2).
const LENGTH_LIMIT: usize = 1 << 30;

/// A cursor over part of `source`.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    source: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(source: &'a Bytes) -> Self {
        Self { source, at: 0, end: source.len() }
    }

    /// Moves over `length` bytes and says where they were.
    fn advance(&mut self, length: usize) -> Result<std::ops::Range<usize>, InvalidMls> {
        let start = self.at;
        let end =
            start.checked_add(length).filter(|end| *end <= self.end).ok_or(InvalidMls("the message ends early"))?;
        self.at = end;
        Ok(start..end)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], InvalidMls> {
        let range = self.advance(length)?;
        self.source.get(range).ok_or(InvalidMls("the message ends early"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], InvalidMls> {
        self.take(N)?.try_into().map_err(|_| InvalidMls("the message ends early"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, InvalidMls> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, InvalidMls> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, InvalidMls> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, InvalidMls> {
        self.array().map(u64::from_be_bytes)
    }

    /// The byte before an optional value: whether it is present.
    pub(super) fn present(&mut self) -> Result<bool, InvalidMls> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(InvalidMls("an optional value is neither present nor absent")),
        }
    }

    /// A vector's length. One length has one encoding: the shortest.
    fn length(&mut self) -> Result<usize, InvalidMls> {
        let first = self.u8()?;
        let low = first & 0x3f;
        let (length, least) = match first >> 6 {
            0 => (u32::from(low), 0),
            1 => (u32::from_be_bytes([0, 0, low, self.u8()?]), 1 << 6),
            2 => {
                let [b, c, d] = self.array()?;
                (u32::from_be_bytes([low, b, c, d]), 1 << 14)
            }
            _ => return Err(InvalidMls("a vector's length is too large")),
        };
        // 30 bits fit.
        let length = length as usize;
        if length < least { Err(InvalidMls("a vector's length is not in its shortest form")) } else { Ok(length) }
    }

    /// A cursor over a vector's content.
    pub(super) fn vector(&mut self) -> Result<Self, InvalidMls> {
        let length = self.length()?;
        let range = self.advance(length)?;
        Ok(Self { source: self.source, at: range.start, end: range.end })
    }

    /// A vector's content as a borrowed slice.
    pub(super) fn opaque(&mut self) -> Result<&'a [u8], InvalidMls> {
        let length = self.length()?;
        self.take(length)
    }

    /// A vector's content, sharing the input's buffer.
    pub(super) fn shared(&mut self) -> Result<Bytes, InvalidMls> {
        let length = self.length()?;
        let range = self.advance(length)?;
        Ok(self.source.slice(range))
    }

    pub(super) fn skip_opaque(&mut self) -> Result<(), InvalidMls> {
        self.opaque().map(|_| ())
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// The caller has read everything there should be.
    pub(super) const fn finish(&self) -> Result<(), InvalidMls> {
        if self.is_empty() { Ok(()) } else { Err(InvalidMls("bytes follow the end")) }
    }

    /// What was read since `earlier`, a clone of this cursor made before.
    pub(super) fn since(&self, earlier: &Self) -> &'a [u8] {
        self.source.get(earlier.at..self.at).unwrap_or_default()
    }
}

/// A vector's length in its shortest form, and how many bytes that takes.
pub(super) fn encode_length(length: usize) -> Result<([u8; 4], usize), InvalidMls> {
    let value =
        u32::try_from(length).ok().filter(|_| length < LENGTH_LIMIT).ok_or(InvalidMls("a vector is too long"))?;
    let [a, b, c, d] = value.to_be_bytes();
    Ok(match value {
        0..=0x3f => ([d, 0, 0, 0], 1),
        0x40..=0x3fff => ([c | 0x40, d, 0, 0], 2),
        _ => ([a | 0x80, b, c, d], 4),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length_of(bytes: &[u8]) -> Result<usize, InvalidMls> {
        let bytes = Bytes::copy_from_slice(bytes);
        let mut reader = Reader::new(&bytes);
        let length = reader.length()?;
        reader.finish().map(|()| length)
    }

    #[test]
    fn lengths_round_trip_in_their_shortest_form() {
        for length in [0, 1, 63, 64, 65, 255, 256, 16_383, 16_384, 65_536, (1 << 24) + 7, LENGTH_LIMIT - 1] {
            let (bytes, used) = encode_length(length).expect("below the limit");
            assert_eq!(length_of(&bytes[..used]), Ok(length));
        }
        assert!(encode_length(LENGTH_LIMIT).is_err());
    }

    #[test]
    fn known_lengths_have_the_encodings_of_rfc_9000_appendix_a1() {
        assert_eq!(length_of(&[0x25]), Ok(37));
        assert_eq!(length_of(&[0x7b, 0xbd]), Ok(15_293));
        assert_eq!(length_of(&[0x9d, 0x7f, 0x3e, 0x7d]), Ok(494_878_333));
    }

    #[test]
    fn longer_forms_and_the_eight_byte_form_are_refused() {
        for bytes in [&[0x40, 0x25][..], &[0x40, 0x3f], &[0x80, 0, 0x3f, 0xff], &[0x80, 0, 0, 0]] {
            assert_eq!(length_of(bytes), Err(InvalidMls("a vector's length is not in its shortest form")));
        }
        assert_eq!(length_of(&[0x40, 0x40]), Ok(64));
        assert_eq!(length_of(&[0x80, 0, 0x40, 0]), Ok(16_384));
        assert_eq!(length_of(&[0xc0, 0, 0, 0, 0, 0, 0, 1]), Err(InvalidMls("a vector's length is too large")));
        assert_eq!(length_of(&[]), Err(InvalidMls("the message ends early")));
        assert_eq!(length_of(&[0x40]), Err(InvalidMls("the message ends early")));
    }

    #[test]
    fn a_vector_does_not_reach_past_the_one_around_it() {
        // The outer vector holds 2 bytes; the inner one claims 3, which the buffer has but the outer vector has not.
        let bytes = Bytes::from_static(&[2, 3, 1, 2, 3]);
        let mut outer = Reader::new(&bytes).vector().expect("two bytes are there");
        assert!(outer.vector().is_err());
        let mut whole = Reader::new(&bytes);
        assert!(whole.vector().is_ok());
        assert_eq!(whole.opaque(), Err(InvalidMls("the message ends early")));
    }
}
