//! Values are read as written; other bytes are a failure, never a panic.

use bytes::Bytes;
use proptest::prelude::*;

use crate::conversations::MessageRow;
use crate::embedded::codec::Decoder;
use crate::embedded::{messages, outcomes};
use crate::encoding::conversations::{decode_message, decode_outcome};
use crate::laws::sample::{conversation, message, outcome};
use crate::{Failure, Result};

fn decode_fifth(bytes: Bytes) -> Result<MessageRow> {
    decode_message(conversation(1), 5, bytes)
}

fn is_corrupt<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Failure::NotApplied(cause)) if cause.kind == wardline_domain::failure::CauseKind::Corrupt)
}

#[test]
fn a_value_cut_short_is_corrupt() {
    let (_, value) = outcomes::encode(&outcome(1, 4, 4));
    for length in 0..value.len() {
        assert!(is_corrupt(&decode_outcome(outcome(1, 4, 4).key, value.slice(..length))), "{length} bytes");
    }
    let longer = Bytes::from([&value[..], &[0]].concat());
    assert!(is_corrupt(&decode_outcome(outcome(1, 4, 4).key, longer)));
}

#[test]
fn a_value_of_another_version_is_corrupt() {
    let (_, value) = messages::encode(&message(1, 5, 100));
    let mut other = value.to_vec();
    other[0] += 1;
    assert!(is_corrupt(&decode_fifth(other.into())));
}

#[test]
fn ciphertext_is_a_slice_of_the_value() {
    let (_, value) = messages::encode(&message(1, 5, 100));
    let row = decode_fifth(value.clone()).unwrap();
    let inside = value.as_ptr_range();
    assert!(inside.contains(&row.sealed.envelope.as_ptr()) && inside.contains(&row.sealed.mls_message.as_ptr()));
}

proptest! {
    #[test]
    fn messages_are_read_as_written(bytes in 0usize..5000) {
        let row = message(1, 5, bytes);
        let (_, value) = messages::encode(&row);
        prop_assert_eq!(decode_fifth(value).unwrap(), row);
    }

    #[test]
    fn outcomes_are_read_as_written(n in 0u64..1000) {
        let row = outcome(1, n, n);
        let (_, value) = outcomes::encode(&row);
        prop_assert_eq!(decode_outcome(row.key, value).unwrap(), row);
    }

    #[test]
    fn other_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_fifth(bytes.clone().into());
        if let Some(version) = bytes.first_mut() {
            *version = 1;
        }
        let bytes = Bytes::from(bytes);
        let _ = decode_fifth(bytes.clone());
        let _ = decode_outcome(outcome(1, 1, 1).key, bytes.clone());
        if let Ok(mut value) = Decoder::new("test", bytes) {
            let _ = value.list(|value| value.option(Decoder::text));
        }
    }
}
