//! Feed events: as they come in feeds records, as they lie in feed rows, as they go to devices.
//!
//! A row's encoding is a version byte and the record's event without ciphertext: a message is its conversation and sequence.
//!
//! Deliberately absent: recipients, and reading what an event only names.

use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, DeviceId, MessageId, Timestamp, UserId};
use wardline_proto::convert::{Violation, ids, time};
use wardline_proto::internal::v1 as wire;
use wardline_proto::internal::v1::feed_event_record::Event as Wire;
use wardline_proto::v1;
use wardline_store::conversations::MessageRow;

use crate::owner::attachment::Delivered;

/// Larger messages are named, and fetched with GetMessageBody.
pub(crate) const INLINE_BYTES: usize = 256 << 10;

/// The version of the rows' encoding.
const VERSION: u8 = 1;

/// An event whose ids have been checked.
#[derive(Debug)]
pub(crate) struct FeedEvent {
    wire: Wire,
    /// The message for devices, built once for all of them.
    message: OnceLock<v1::Message>,
    delivered: Option<Delivered>,
}

/// Where a message lies.
pub(crate) type MessageKey = (ConversationId, Sequence);

impl FeedEvent {
    /// From a record or a row.
    pub(crate) fn parse(wire: Wire) -> Result<Self, Violation> {
        let mut delivered = None;
        let built = OnceLock::new();
        match &wire {
            Wire::Message(message) => {
                let found = delivered_of(message)?;
                ids::device_bytes(&message.sender_device_id, "message.sender_device_id")?;
                delivered = Some(found);
                if !message.by_reference {
                    // The cell was just made, so it is empty.
                    let _ = built.set(inline(message, found));
                }
            }
            Wire::Welcome(welcome) => {
                joined_of(welcome)?;
            }
            Wire::Rejected(rejected) => check_rejected(rejected)?,
            Wire::ConversationChanged(changed) => check_changed(changed)?,
            Wire::DeviceChanged(changed) => {
                ids::device_bytes(&changed.device_id, "device_changed.device_id")?;
            }
            Wire::KeyPackagesLow(_) => {}
        }
        Ok(Self { wire, message: built, delivered })
    }

    /// From a row.
    pub(crate) fn decode(row: &Bytes) -> Result<Self, Violation> {
        let unreadable = Violation::new("event", "must be a stored event");
        let (version, event) = row.split_first().ok_or(unreadable)?;
        if *version != VERSION {
            return Err(unreadable);
        }
        let record = wire::FeedEventRecord::decode(row.slice_ref(event)).map_err(|_| unreadable)?;
        Self::parse(record.event.ok_or(unreadable)?)
    }

    /// For a row.
    pub(crate) fn encode(&self) -> Bytes {
        let event = match &self.wire {
            Wire::Message(message) => Wire::Message(wire::FeedMessage {
                chain_hash: Bytes::new(),
                envelope: Bytes::new(),
                mls_message: Bytes::new(),
                by_reference: true,
                ..message.clone()
            }),
            other => other.clone(),
        };
        let record = wire::FeedEventRecord { event: Some(event), ..Default::default() };
        let mut out = Vec::with_capacity(1 + record.encoded_len());
        out.push(VERSION);
        record.encode_raw(&mut out);
        out.into()
    }

    /// When ingest accepted what it tells of; `None` for events without acceptance.
    pub(crate) fn accepted_at(&self) -> Option<Timestamp> {
        match &self.wire {
            Wire::Message(message) => Some(Timestamp::from_micros(message.accepted_at_us)),
            _ => None,
        }
    }

    /// What its acknowledgement says.
    pub(crate) fn delivered(&self) -> Option<Delivered> {
        match &self.wire {
            Wire::Welcome(welcome) => joined_of(welcome).ok(),
            _ => self.delivered,
        }
    }

    /// About how much memory it holds, or may come to hold: what is supplied later counts from the start, so that this
    /// never changes.
    pub(crate) fn cost(&self) -> usize {
        256 + match &self.wire {
            Wire::Message(message) if message.by_reference => INLINE_BYTES,
            Wire::Message(message) => message.envelope.len() + message.mls_message.len(),
            _ => 0,
        }
    }

    /// The message to read before [`FeedEvent::ready`] has a body.
    pub(crate) fn wants_message(&self) -> Option<MessageKey> {
        let delivered = self.delivered.filter(|_| self.message.get().is_none())?;
        Some((delivered.conversation, delivered.sequence))
    }

    /// The invitation, whose body depends on the device.
    pub(crate) const fn welcome(&self) -> Option<&wire::FeedWelcome> {
        match &self.wire {
            Wire::Welcome(welcome) => Some(welcome),
            _ => None,
        }
    }

    /// What [`FeedEvent::wants_message`] asked for.
    pub(crate) fn supply(&self, row: &MessageRow) {
        // Whoever came first built the same.
        let _ = self.message.set(message_of(row));
    }

    /// The body for a device, when it takes no reading. Ciphertext shares its buffer.
    pub(crate) fn ready(&self) -> Option<v1::event::Body> {
        use v1::event::Body;
        Some(match &self.wire {
            Wire::Message(_) => Body::Message(self.message.get()?.clone()),
            Wire::Welcome(_) => return None,
            Wire::Rejected(rejected) => Body::Rejected(v1::Rejected {
                conversation_id: text(&rejected.conversation_id),
                message_id: text(&rejected.message_id),
                reason: i32::try_from(rejected.reason).unwrap_or_default(),
                generation: rejected.generation,
                epoch: rejected.epoch,
                winner_message_id: text(&rejected.winner_message_id),
                device_id: text(&rejected.device_id),
            }),
            Wire::ConversationChanged(changed) => Body::ConversationChanged(v1::ConversationChanged {
                conversation_id: text(&changed.conversation_id),
                removal_pending: changed.removal_pending.iter().map(device_ref).collect(),
            }),
            Wire::DeviceChanged(changed) => Body::DeviceChanged(v1::DeviceChanged {
                version: changed.version,
                device_id: text(&changed.device_id),
                revoked: changed.revoked,
            }),
            Wire::KeyPackagesLow(low) => {
                Body::KeyPackagesLow(v1::KeyPackagesLow { suite: low.suite, available: low.available })
            }
        })
    }
}

/// A stored message for devices: large ones by reference.
pub(crate) fn message_of(row: &MessageRow) -> v1::Message {
    v1::Message {
        conversation_id: row.conversation.to_string(),
        sequence: row.sequence.0,
        chain_hash: ids::bytes32(&row.chain),
        envelope: row.sealed.envelope.clone(),
        body: Some(body_of(row.sequence, &row.sealed.envelope, &row.sealed.mls_message)),
        accept_time: Some(time::to_wire(row.accepted_at)),
    }
}

/// The name of a body for GetMessageBody.
pub(crate) fn blob_ref(sequence: Sequence) -> String {
    format!("m:{}", sequence.0)
}

/// The sequence in such a name.
pub(crate) fn parse_blob_ref(text: &str) -> Option<Sequence> {
    text.strip_prefix("m:")?.parse().ok().map(Sequence)
}

/// 16 bytes of an id in its public form; anything else is left empty.
pub(crate) fn text(id: &[u8]) -> String {
    UserId::try_from(id).map(|id| id.to_string()).unwrap_or_default()
}

fn device_ref(device: &wire::DeviceRefRecord) -> v1::DeviceRef {
    v1::DeviceRef { user_id: text(&device.user_id), device_id: text(&device.device_id) }
}

fn body_of(sequence: Sequence, envelope: &Bytes, mls_message: &Bytes) -> v1::message::Body {
    if envelope.len() + mls_message.len() > INLINE_BYTES {
        v1::message::Body::BlobRef(blob_ref(sequence))
    } else {
        v1::message::Body::MlsMessage(mls_message.clone())
    }
}

fn inline(message: &wire::FeedMessage, delivered: Delivered) -> v1::Message {
    v1::Message {
        conversation_id: delivered.conversation.to_string(),
        sequence: message.sequence,
        chain_hash: message.chain_hash.clone(),
        envelope: message.envelope.clone(),
        body: Some(body_of(delivered.sequence, &message.envelope, &message.mls_message)),
        accept_time: Some(time::to_wire(Timestamp::from_micros(message.accepted_at_us))),
    }
}

fn delivered_of(message: &wire::FeedMessage) -> Result<Delivered, Violation> {
    Ok(Delivered {
        conversation: ids::conversation_bytes(&message.conversation_id, "message.conversation_id")?,
        sequence: Sequence(message.sequence),
        sender: Some(ids::user_bytes(&message.sender_user_id, "message.sender_user_id")?),
        accepted_at: None,
        sent: None,
    })
}

fn joined_of(welcome: &wire::FeedWelcome) -> Result<Delivered, Violation> {
    Ok(Delivered {
        conversation: ids::conversation_bytes(&welcome.conversation_id, "welcome.conversation_id")?,
        sequence: Sequence(welcome.sequence),
        sender: None,
        accepted_at: None,
        sent: None,
    })
}

fn check_rejected(rejected: &wire::FeedRejected) -> Result<(), Violation> {
    ids::conversation_bytes(&rejected.conversation_id, "rejected.conversation_id")?;
    ids::device_bytes(&rejected.device_id, "rejected.device_id")?;
    ids::message_bytes(&rejected.message_id, "rejected.message_id")?;
    if !rejected.winner_message_id.is_empty() {
        MessageId::try_from(&*rejected.winner_message_id)
            .map_err(|_| Violation::new("rejected.winner_message_id", "must be 16 bytes"))?;
    }
    Ok(())
}

fn check_changed(changed: &wire::FeedConversationChanged) -> Result<(), Violation> {
    ids::conversation_bytes(&changed.conversation_id, "conversation_changed.conversation_id")?;
    for device in &changed.removal_pending {
        ids::user_bytes(&device.user_id, "removal_pending.user_id")?;
        DeviceId::try_from(&*device.device_id)
            .map_err(|_| Violation::new("removal_pending.device_id", "must be 16 bytes"))?;
    }
    Ok(())
}
