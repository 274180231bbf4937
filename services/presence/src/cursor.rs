//! Cursors: a place in one user's feed, opaque outside.
//!
//! Deliberately absent: secrecy. The check tells garbage and other people's cursors from one's own; a device that forges
//! one only harms its own feed, and the chain of `previous` finds out.

use bytes::Bytes;
use wardline_domain::{Digest, Position, UserId};

/// The version of the encoding.
const VERSION: u8 = 1;
/// Version, position, check.
const LENGTH: usize = 13;
/// Separates this hash from others.
const LABEL: &[u8] = b"wardline cursor 1";

/// Not a cursor of this user's feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this feed")]
pub(crate) struct InvalidCursor;

/// The cursor of a position: version, position (big-endian), the first 4 bytes of a hash over user and position.
pub(crate) fn encode(user: UserId, position: Position) -> Bytes {
    let number = position.as_u64().to_be_bytes();
    let mut out = Vec::with_capacity(LENGTH);
    out.push(VERSION);
    out.extend_from_slice(&number);
    out.extend_from_slice(&check(user, number));
    out.into()
}

/// The cursor of what came before the first event is empty.
pub(crate) fn encode_optional(user: UserId, position: Option<Position>) -> Bytes {
    position.map_or_else(Bytes::new, |position| encode(user, position))
}

/// The position of a cursor; `None` for the empty one.
///
/// # Errors
/// When the bytes are not a cursor of this user's.
pub(crate) fn decode(user: UserId, cursor: &[u8]) -> Result<Option<Position>, InvalidCursor> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let cursor: &[u8; LENGTH] = cursor.try_into().map_err(|_| InvalidCursor)?;
    let [version, number @ .., a, b, c, d] = *cursor;
    if version != VERSION || check(user, number) != [a, b, c, d] {
        return Err(InvalidCursor);
    }
    Ok(Some(Position::from_u64(u64::from_be_bytes(number))))
}

fn check(user: UserId, number: [u8; 8]) -> [u8; 4] {
    let digest = Digest::of_parts(&[LABEL, user.as_bytes(), &number]);
    let [a, b, c, d, ..] = *digest.as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What was given out comes back, for its user only.
        #[test]
        fn a_cursor_belongs_to_its_user(user: [u8; 16], other: [u8; 16], number: u64) {
            let user = UserId::from_bytes(user);
            let cursor = encode(user, Position::from_u64(number));
            prop_assert_eq!(decode(user, &cursor), Ok(Some(Position::from_u64(number))));
            let other = UserId::from_bytes(other);
            prop_assert!(other == user || decode(other, &cursor).is_err());
        }

        /// Garbage is refused, not read.
        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 1..32)) {
            prop_assert!(decode(UserId::from_bytes([7; 16]), &bytes).is_err());
        }
    }

    #[test]
    fn the_empty_cursor_stands_before_the_first_event() {
        let user = UserId::from_bytes([7; 16]);
        assert_eq!(decode(user, b""), Ok(None));
        assert_eq!(encode_optional(user, None), Bytes::new());
    }
}
