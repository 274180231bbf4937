//! The small types: what they accept, and what they do not print.

use std::time::Duration;

use bytes::Bytes;
use wardline_domain::envelope::{Generation, Sealed};
use wardline_domain::failure::CauseKind;
use wardline_domain::mls;
use wardline_domain::{Cause, ConversationId, Digest, Failure, MessageId, Position, Timestamp, UserId};

#[test]
fn a_position_is_incarnation_and_offset() {
    let position = Position::new(3, 5).expect("fits");
    assert_eq!((position.as_u64(), position.incarnation(), position.offset()), ((3 << 40) | 5, 3, 5));
    assert_eq!((position.to_string(), Position::from_u64(position.as_u64())), ("3:5".to_owned(), position));
    let greatest = Position::new((1 << 24) - 1, (1 << 40) - 1).expect("fits");
    assert_eq!(greatest.as_u64(), u64::MAX);
    assert_eq!(Position::new(1 << 24, 0), None);
    assert_eq!(Position::new(0, 1 << 40), None);
    assert!(Position::new(2, 0) > Position::new(1, (1 << 40) - 1), "a new incarnation is after all of the old");
}

#[test]
fn a_group_id_is_conversation_and_generation() {
    let conversation = ConversationId::from_bytes([0xc5; 16]);
    let id = mls::group_id(conversation, Generation(0x0102_0304));
    assert_eq!(id[..16], [0xc5; 16]);
    assert_eq!(id[16..], [1, 2, 3, 4]);
}

#[test]
fn times_saturate() {
    let time = Timestamp::from_micros(2_999);
    assert_eq!((time.as_micros(), time.as_millis()), (2_999, 2));
    assert_eq!(time.plus(Duration::from_micros(1)), Timestamp::from_micros(3_000));
    assert_eq!(time.plus(Duration::MAX), Timestamp::from_micros(u64::MAX));
    assert_eq!(time.minus(Duration::from_millis(1)), Timestamp::from_micros(1_999));
    assert_eq!(time.minus(Duration::MAX), Timestamp::from_micros(0));
    assert_eq!(time.since(Timestamp::from_micros(999)), Duration::from_millis(2));
    assert_eq!(Timestamp::from_micros(999).since(time), Duration::ZERO);
}

#[test]
fn ids_are_hyphenated_uuids_and_print_their_kind_only() {
    let text = "019b76da-a800-7000-8000-000000000001";
    let id: MessageId = text.parse().expect("a UUID");
    assert_eq!((id.to_string(), format!("{id:?}")), (text.to_owned(), "MessageId(…)".to_owned()));
    assert_eq!(MessageId::try_from(&id.as_bytes()[..]), Ok(id));
    assert!(id.is_v7());
    assert_eq!(id.unix_millis(), 1_767_225_600_000);
    for refused in ["019b76daa80070008000000000000001", "{019b76da-a800-7000-8000-000000000001}", "", &"-".repeat(36)] {
        assert!(refused.parse::<UserId>().is_err(), "{refused:?}");
    }
    assert!(ConversationId::try_from(&[0; 15][..]).is_err() && ConversationId::try_from(&[0; 17][..]).is_err());
}

#[test]
fn version_and_variant_make_a_v7() {
    let mut bytes = [0; 16];
    for (version, variant, is_v7) in [(0x70, 0x80, true), (0x7f, 0xbf, true), (0x40, 0x80, false), (0x70, 0xc0, false)]
    {
        (bytes[6], bytes[8]) = (version, variant);
        assert_eq!(MessageId::from_bytes(bytes).is_v7(), is_v7);
    }
    (bytes[6], bytes[8]) = (0x70, 0x40);
    assert!(!MessageId::from_bytes(bytes).is_v7());
}

#[test]
fn digests_are_those_of_the_parts_together() {
    assert_eq!(Digest::of_parts(&[b"ab", b"", b"c"]), Digest::of(b"abc"));
    // SHA-256 of "abc" (FIPS 180-4's example).
    assert_eq!(format!("{:?}", Digest::of(b"abc")), "ba7816bf…");
    assert_eq!(Digest::try_from(&Digest::of(b"abc").as_bytes()[..]), Ok(Digest::of(b"abc")));
    assert!(Digest::try_from(&[0; 31][..]).is_err());
}

#[test]
fn sealed_bytes_print_their_lengths_only() {
    let sealed = Sealed { envelope: Bytes::from_static(b"who"), mls_message: Bytes::from_static(b"what") };
    assert_eq!((format!("{sealed:?}"), sealed.len(), sealed.is_empty()), ("Sealed(3 + 4 bytes)".to_owned(), 7, false));
    assert!(Sealed { envelope: Bytes::new(), mls_message: Bytes::new() }.is_empty());
}

#[test]
fn failures_say_whether_it_may_have_happened() {
    let (away, slow, bad) = (Cause::unavailable("a"), Cause::timeout("b"), Cause::corrupt("c"));
    assert_eq!([away.kind, slow.kind, bad.kind], [CauseKind::Unavailable, CauseKind::Timeout, CauseKind::Corrupt]);
    assert_eq!(Failure::NotApplied(away.clone()).cause(), &away);
    assert_eq!(Failure::Unknown(slow.clone()).cause(), &slow);
    assert_eq!(Failure::NotApplied(away).to_string(), "not applied: unavailable: a");
    assert_eq!(Failure::Unknown(slow).to_string(), "unknown: timeout: b");
    assert_eq!(Failure::NotApplied(bad).to_string(), "not applied: corrupt: c");
}
