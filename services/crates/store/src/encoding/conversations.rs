//! Messages and outcomes.

use std::time::Duration;

use bytes::Bytes;
use wardline_domain::conversation::{OutcomeKey, RejectReason, Rejection};
use wardline_domain::envelope::{Epoch, Generation, MessageKind, Sealed, Sequence};
use wardline_domain::{ConversationId, DeviceId, MessageId, UserId};

use super::{Decoder, Encoder};
use crate::Result;
use crate::conversations::{MessageRow, OutcomeResult, OutcomeRow};

/// A partition of messages holds 2^10 sequences.
pub const MESSAGE_PARTITION_BITS: u32 = 10;

/// A partition of outcomes holds the ids of 2^27 ms, about 37 hours.
pub const OUTCOME_PARTITION_BITS: u32 = 27;

/// How long outcomes are kept.
pub const OUTCOMES_KEPT: Duration = Duration::from_secs(21 * 24 * 3600);

/// The partition of an outcome: its id's time in units of 2^27 ms. Clocks far beyond what 32 bits hold share the last.
pub fn outcome_partition(unix_millis: u64) -> u32 {
    u32::try_from(unix_millis >> OUTCOME_PARTITION_BITS).unwrap_or(u32::MAX)
}

/// Writes what is not in a message's key.
pub fn encode_message(row: &MessageRow) -> Bytes {
    let mut value = Encoder::new(88 + row.sealed.len());
    value.raw(row.chain.as_bytes()).raw(row.sender.as_bytes()).raw(row.device.as_bytes()).u8(row.kind as u8);
    value.time(row.accepted_at).position(row.position);
    value.bytes(&row.sealed.envelope).raw(&row.sealed.mls_message);
    value.finish()
}

/// Reads what [`encode_message`] wrote. Its ciphertext is a slice of `bytes`.
pub fn decode_message(conversation: ConversationId, sequence: u64, bytes: Bytes) -> Result<MessageRow> {
    let mut value = Decoder::new("messages", bytes)?;
    Ok(MessageRow {
        conversation,
        sequence: Sequence(sequence),
        chain: value.digest()?,
        sender: UserId::from_bytes(value.array()?),
        device: DeviceId::from_bytes(value.array()?),
        kind: kind(&mut value)?,
        accepted_at: value.time()?,
        position: value.position()?,
        sealed: Sealed { envelope: value.bytes()?, mls_message: value.rest() },
    })
}

fn kind(value: &mut Decoder) -> Result<MessageKind> {
    match value.u8()? {
        1 => Ok(MessageKind::Application),
        2 => Ok(MessageKind::Commit),
        3 => Ok(MessageKind::ExternalCommit),
        _ => Err(value.malformed("an unknown kind of message")),
    }
}

/// Writes what is not in an outcome's key.
pub fn encode_outcome(row: &OutcomeRow) -> Bytes {
    let mut value = Encoder::new(128);
    value.position(row.position).time(row.accepted_at).raw(row.payload.as_bytes());
    match &row.result {
        OutcomeResult::Sequenced(sequence) => {
            value.u8(0).u64(sequence.0);
        }
        OutcomeResult::Rejected(rejection) => {
            value.u8(1).u8(rejection.reason as u8).raw(rejection.payload.as_bytes());
            value.u32(rejection.generation.0).u64(rejection.epoch.0);
            value.option(rejection.winner, |value, winner| {
                value.raw(winner.as_bytes());
            });
        }
    }
    value.finish()
}

/// Reads what [`encode_outcome`] wrote.
pub fn decode_outcome(key: OutcomeKey, bytes: Bytes) -> Result<OutcomeRow> {
    let mut value = Decoder::new("outcomes", bytes)?;
    let (position, accepted_at, payload) = (value.position()?, value.time()?, value.digest()?);
    let result = match value.u8()? {
        0 => OutcomeResult::Sequenced(Sequence(value.u64()?)),
        1 => OutcomeResult::Rejected(rejection(&mut value)?),
        _ => return Err(value.malformed("an unknown kind of outcome")),
    };
    value.finish(OutcomeRow { key, position, accepted_at, payload, result })
}

fn rejection(value: &mut Decoder) -> Result<Rejection> {
    Ok(Rejection {
        reason: reason(value)?,
        payload: value.digest()?,
        generation: Generation(value.u32()?),
        epoch: Epoch(value.u64()?),
        winner: value.option(|value| value.array().map(MessageId::from_bytes))?,
    })
}

fn reason(value: &mut Decoder) -> Result<RejectReason> {
    const ALL: [RejectReason; 13] = [
        RejectReason::EpochConflict,
        RejectReason::StaleEpoch,
        RejectReason::NotAMember,
        RejectReason::RemovalRequired,
        RejectReason::MessageIdReused,
        RejectReason::MessageIdTime,
        RejectReason::Expired,
        RejectReason::CommitInvalid,
        RejectReason::RoleRequired,
        RejectReason::ConversationFull,
        RejectReason::Quarantined,
        RejectReason::ConversationUnknown,
        RejectReason::ConversationExists,
    ];
    let number = value.u8()?;
    let found = ALL.into_iter().find(|reason| *reason as u8 == number);
    found.ok_or_else(|| value.malformed("an unknown reason"))
}
