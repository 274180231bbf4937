//! Table `outcomes`: conversation, time of the id >> 27, device, message → what it came to.

use bytes::Bytes;
use wardline_domain::conversation::{MESSAGE_ID_MAX_LEAD_MILLIS, OutcomeKey};
use wardline_domain::{ConversationId, Timestamp};

use super::codec::Decoder;
use super::engine::{Engine, key};
use super::messages::Sweep;
use crate::Result;
use crate::conversations::OutcomeRow;
use crate::encoding::conversations::{OUTCOMES_KEPT, encode_outcome, outcome_partition};

fn bucket(unix_millis: u64) -> [u8; 4] {
    outcome_partition(unix_millis).to_be_bytes()
}

pub(super) fn outcome_key(of: &OutcomeKey) -> Vec<u8> {
    let bucket = bucket(of.message.unix_millis());
    key(&[of.conversation.as_bytes(), &bucket, of.device.as_bytes(), of.message.as_bytes()])
}

pub(super) fn encode(row: &OutcomeRow) -> (Vec<u8>, Bytes) {
    (outcome_key(&row.key), encode_outcome(row))
}

/// Deletes a conversation's outcomes that are too old. An id's time is at most 5 minutes ahead of its acceptance, so only the
/// buckets that old need a look; beyond the present lie only ids that were refused for their time.
pub(super) fn expire(engine: &Engine, conversation: ConversationId, now: Timestamp) -> Result<()> {
    let end = now.minus(OUTCOMES_KEPT);
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
