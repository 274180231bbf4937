//! How a record lies in the database.
//!
//! Value: version u8, appended_at u64, key length u32, number of headers u16, per header (name length u16, value length u32,
//! name, value), key, payload to the end. All little-endian. Key: the partition's source u32, offset u64, both big-endian.

use bytes::{Buf, BufMut, Bytes};
use wardline_domain::{Cause, Failure, Timestamp};

use super::position;
use crate::seam::{LogRecord, NewRecord};
use crate::topic::Partition;

const VERSION: u8 = 1;

pub(super) fn encode(record: &NewRecord, at: Timestamp) -> Bytes {
    let headers: usize = record.headers.iter().map(|(name, value)| 6 + name.len() + value.len()).sum();
    let mut out = Vec::with_capacity(15 + headers + record.key.len() + record.payload.len());
    out.put_u8(VERSION);
    out.put_u64_le(at.as_micros());
    out.put_u32_le(length32(record.key.len()));
    out.put_u16_le(length16(record.headers.len()));
    for (name, value) in &record.headers {
        out.put_u16_le(length16(name.len()));
        out.put_u32_le(length32(value.len()));
        out.put_slice(name.as_bytes());
        out.put_slice(value);
    }
    out.put_slice(&record.key);
    out.put_slice(&record.payload);
    out.into()
}

/// The record shares the value's memory.
pub(super) fn decode(offset: u64, value: Bytes) -> Result<LogRecord, Failure> {
    try_decode(offset, value).ok_or_else(|| Failure::NotApplied(Cause::corrupt("a stored log record does not decode")))
}

fn try_decode(offset: u64, mut value: Bytes) -> Option<LogRecord> {
    if value.try_get_u8().ok()? != VERSION {
        return None;
    }
    let appended_at = Timestamp::from_micros(value.try_get_u64_le().ok()?);
    let key_length = value.try_get_u32_le().ok()? as usize;
    let count = value.try_get_u16_le().ok()?;
    let mut headers = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let name_length = usize::from(value.try_get_u16_le().ok()?);
        let value_length = value.try_get_u32_le().ok()? as usize;
        let name = String::from_utf8(take(&mut value, name_length)?.to_vec()).ok()?;
        headers.push((name, take(&mut value, value_length)?));
    }
    let key = take(&mut value, key_length)?;
    Some(LogRecord { position: position(offset), appended_at, key, payload: value, headers })
}

fn take(from: &mut Bytes, length: usize) -> Option<Bytes> {
    (from.len() >= length).then(|| from.split_to(length))
}

fn length32(length: usize) -> u32 {
    u32::try_from(length).expect("a batch fits a permit, whose size is a u32")
}

fn length16(length: usize) -> u16 {
    u16::try_from(length).expect("headers are few and their names are constants in the code")
}

pub(super) fn row(partition: Partition, offset: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.source().to_be_bytes());
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

pub(super) fn offset_of(row: &[u8]) -> Result<u64, Failure> {
    let offset = row.get(4..12).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    offset.ok_or_else(|| Failure::NotApplied(Cause::corrupt("a stored log key does not decode")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let record = NewRecord {
            key: Bytes::from_static(b"key"),
            payload: Bytes::from_static(b"payload"),
            headers: vec![("traceparent", Bytes::from_static(b"00-1")), ("empty", Bytes::new())],
        };
        let read = decode(7, encode(&record, Timestamp::from_micros(5))).unwrap();
        assert_eq!((read.position, read.appended_at), (position(7), Timestamp::from_micros(5)));
        assert_eq!((read.key, read.payload), (record.key, record.payload));
        assert_eq!(read.headers[0], ("traceparent".to_owned(), Bytes::from_static(b"00-1")));
        assert_eq!(read.headers[1], ("empty".to_owned(), Bytes::new()));
    }

    #[test]
    fn what_is_cut_short_is_corrupt_or_shorter_never_a_panic() {
        let record =
            NewRecord { key: Bytes::from_static(b"key"), payload: Bytes::new(), headers: vec![("h", Bytes::new())] };
        let whole = encode(&record, Timestamp::default());
        for length in 0..whole.len() {
            assert!(decode(0, whole.slice(..length)).is_err(), "{length} bytes decoded");
        }
    }
}
