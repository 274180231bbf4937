//! Table `outcomes`: conversation, time of the id >> 27, device, message → what it came to.

use std::time::Duration;

use bytes::Bytes;
use wardline_domain::conversation::{MESSAGE_ID_MAX_LEAD_MILLIS, OutcomeKey, RejectReason, Rejection};
use wardline_domain::envelope::{Epoch, Generation, Sequence};
use wardline_domain::{ConversationId, MessageId, Timestamp};

use super::codec::{Decoder, Encoder};
use super::engine::{Engine, key};
use super::messages::Sweep;
use crate::Result;
use crate::conversations::{OutcomeResult, OutcomeRow};

/// How long outcomes are kept.
pub(super) const KEPT: Duration = Duration::from_secs(21 * 24 * 3600);

/// 2^27 ms are about 37 hours.
const BUCKET_BITS: u32 = 27;

fn bucket(unix_millis: u64) -> [u8; 4] {
    // 48 bits of milliseconds leave 21; clocks far beyond that share the last bucket.
    u32::try_from(unix_millis >> BUCKET_BITS).unwrap_or(u32::MAX).to_be_bytes()
}

pub(super) fn outcome_key(of: &OutcomeKey) -> Vec<u8> {
    let bucket = bucket(of.message.unix_millis());
    key(&[of.conversation.as_bytes(), &bucket, of.device.as_bytes(), of.message.as_bytes()])
}

pub(super) fn encode(row: &OutcomeRow) -> (Vec<u8>, Bytes) {
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
    (outcome_key(&row.key), value.finish())
}

pub(super) fn decode(key: OutcomeKey, bytes: Bytes) -> Result<OutcomeRow> {
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

/// Deletes a conversation's outcomes that are too old. An id's time is at most 5 minutes ahead of its acceptance, so only the
/// buckets that old need a look; beyond the present lie only ids that were refused for their time.
pub(super) fn expire(engine: &Engine, conversation: ConversationId, now: Timestamp) -> Result<()> {
    let end = now.minus(KEPT);
    let bound = |bucket: [u8; 4], fill: u8| key(&[conversation.as_bytes(), &bucket, &[fill; 32]]);
    let old = bucket(end.as_millis() + MESSAGE_ID_MAX_LEAD_MILLIS);
    let ahead = bucket(now.as_millis() + MESSAGE_ID_MAX_LEAD_MILLIS);
    let mut sweep = Sweep::new(engine, &engine.tables.outcomes);
    for (first, last) in [(bound([0; 4], 0), bound(old, 0xff)), (bound(ahead, 0), bound([0xff; 4], 0xff))] {
        for row in engine.tables.outcomes.range(&first, &last) {
            let (key, bytes) = row?;
            let mut value = Decoder::new("outcomes", bytes)?;
            value.position()?;
            if value.time()? < end && !sweep.delete(key)? {
                return sweep.finish();
            }
        }
    }
    sweep.finish()
}
