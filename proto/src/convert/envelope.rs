//! The clear envelope.

use prost::Message as _;
use wardline_domain::envelope::{Envelope, Epoch, Generation, MessageKind, Urgency};

use super::{Violation, ids, time};
use crate::v1;

/// The largest envelope, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 1024;

/// Parses an envelope's bytes.
pub fn decode(bytes: &[u8]) -> Result<Envelope, Violation> {
    if bytes.len() > MAX_ENVELOPE_BYTES {
        return Err(Violation::new("sealed.envelope", "must be at most 1024 bytes"));
    }
    let wire = v1::Envelope::decode(bytes)
        .map_err(|_| Violation::new("sealed.envelope", "must be a serialized wardline.v1.Envelope"))?;
    let message = ids::message(&wire.message_id, "sealed.envelope.message_id")?;
    if !message.is_v7() {
        return Err(Violation::new("sealed.envelope.message_id", "must be a UUIDv7"));
    }
    Ok(Envelope {
        conversation: ids::conversation(&wire.conversation_id, "sealed.envelope.conversation_id")?,
        sender: ids::user(&wire.sender_user_id, "sealed.envelope.sender_user_id")?,
        device: ids::device(&wire.sender_device_id, "sealed.envelope.sender_device_id")?,
        message,
        generation: Generation(wire.generation),
        epoch: Epoch(wire.epoch),
        kind: kind(wire.kind)?,
        urgency: urgency(wire.urgency)?,
        respond_by: optional_time(wire.respond_by.as_ref(), "sealed.envelope.respond_by")?,
        expires_at: optional_time(wire.expire_time.as_ref(), "sealed.envelope.expire_time")?,
    })
}

/// Serializes an envelope. Only its maker does this; everybody else keeps the bytes.
pub fn encode(envelope: &Envelope) -> bytes::Bytes {
    let wire = v1::Envelope {
        conversation_id: envelope.conversation.to_string(),
        sender_user_id: envelope.sender.to_string(),
        sender_device_id: envelope.device.to_string(),
        message_id: envelope.message.to_string(),
        generation: envelope.generation.0,
        epoch: envelope.epoch.0,
        kind: envelope.kind as i32,
        urgency: envelope.urgency as i32,
        respond_by: envelope.respond_by.map(time::to_wire),
        expire_time: envelope.expires_at.map(time::to_wire),
    };
    wire.encode_to_vec().into()
}

fn optional_time(
    at: Option<&prost_types::Timestamp>,
    field: &'static str,
) -> Result<Option<wardline_domain::Timestamp>, Violation> {
    at.map(|at| time::from_wire(at, field)).transpose()
}

fn kind(number: i32) -> Result<MessageKind, Violation> {
    match v1::MessageKind::try_from(number) {
        Ok(v1::MessageKind::Application) => Ok(MessageKind::Application),
        Ok(v1::MessageKind::Commit) => Ok(MessageKind::Commit),
        Ok(v1::MessageKind::ExternalCommit) => Ok(MessageKind::ExternalCommit),
        Ok(v1::MessageKind::Unspecified) | Err(_) => {
            Err(Violation::new("sealed.envelope.kind", "must be a known MessageKind"))
        }
    }
}

fn urgency(number: i32) -> Result<Urgency, Violation> {
    match v1::Urgency::try_from(number) {
        Ok(v1::Urgency::Unspecified | v1::Urgency::Routine) => Ok(Urgency::Routine),
        Ok(v1::Urgency::Urgent) => Ok(Urgency::Urgent),
        Ok(v1::Urgency::Stat) => Ok(Urgency::Stat),
        Err(_) => Err(Violation::new("sealed.envelope.urgency", "must be a known Urgency")),
    }
}
