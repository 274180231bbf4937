//! Rows of users' feeds.

use bytes::Bytes;
use wardline_domain::{DeviceId, Position, UserId};

use super::{Decoder, Encoder};
use crate::Result;
use crate::feeds::FeedRow;

/// Writes what is not in a feed row's key.
pub fn encode_feed(row: &FeedRow) -> Bytes {
    let mut value = Encoder::new(21 + 16 * row.devices.len() + row.event.len());
    value.time(row.at).option(row.previous, |value, previous| {
        value.position(previous);
    });
    value.count(row.devices.len());
    for device in &row.devices {
        value.raw(device.as_bytes());
    }
    value.raw(&row.event);
    value.finish()
}

/// Reads what [`encode_feed`] wrote.
pub fn decode_feed(user: UserId, position: Position, bytes: Bytes) -> Result<FeedRow> {
    let mut value = Decoder::new("feeds", bytes)?;
    Ok(FeedRow {
        user,
        position,
        at: value.time()?,
        previous: value.option(Decoder::position)?,
        devices: value.list(|value| value.array().map(DeviceId::from_bytes))?,
        event: value.rest(),
    })
}
