//! A message of librdkafka's as a record.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use wardline_domain::{Failure, Position, Timestamp};
use wardline_log::LogRecord;

use super::Source;
use crate::failure::corrupt;

/// Key and payload are copied once, into one allocation.
pub(super) fn record(source: &Source, message: &BorrowedMessage<'_>) -> Result<LogRecord, Failure> {
    let position = u64::try_from(message.offset()).ok().and_then(|offset| Position::new(source.incarnation, offset));
    let Some(position) = position else {
        return Err(corrupt(format!(
            "topic {} has an offset beyond 2^40: migrate it to a new incarnation",
            source.name
        )));
    };
    let (key, payload) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
    let mut both = BytesMut::with_capacity(key.len() + payload.len());
    both.extend_from_slice(key);
    both.extend_from_slice(payload);
    let key = both.split_to(key.len()).freeze();
    let millis = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok()).unwrap_or_default();
    Ok(LogRecord {
        position,
        appended_at: Timestamp::from_micros(millis.saturating_mul(1000)),
        key,
        payload: both.freeze(),
        headers: headers(message),
    })
}

/// A header whose name is not UTF-8 makes rdkafka panic. None of ours is like that; a record that has one is read without any.
fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, Bytes)> {
    let Some(headers) = message.headers() else { return Vec::new() };
    let copied = catch_unwind(AssertUnwindSafe(|| {
        let copy = |value: Option<&[u8]>| value.map(Bytes::copy_from_slice).unwrap_or_default();
        headers.iter().map(|header| (header.key.to_owned(), copy(header.value))).collect()
    }));
    copied.unwrap_or_default()
}
