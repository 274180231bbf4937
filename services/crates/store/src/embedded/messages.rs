//! Table `messages`: conversation, sequence → ciphertext.

use bytes::Bytes;
use fjall::OwnedWriteBatch;
use wardline_domain::ConversationId;
use wardline_domain::envelope::Sequence;

use super::codec::u64_at;
use super::engine::{Engine, Table, key};
use crate::Result;
use crate::conversations::MessageRow;
use crate::encoding::conversations::{MESSAGE_PARTITION_BITS, decode_message, encode_message};

/// Where the sequence stands in a key: behind the conversation.
const SEQUENCE_AT: usize = 16;

pub(super) fn message_key(conversation: ConversationId, sequence: u64) -> Vec<u8> {
    key(&[conversation.as_bytes(), &sequence.to_be_bytes()])
}

pub(super) fn encode(row: &MessageRow) -> (Vec<u8>, Bytes) {
    (message_key(row.conversation, row.sequence.0), encode_message(row))
}

/// Messages above `after`, as far as the limits go.
pub(super) fn page(
    engine: &Engine,
    conversation: ConversationId,
    after: Sequence,
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<MessageRow>> {
    let table = &engine.tables.messages;
    let Some(first) = after.0.checked_add(1) else { return Ok(Vec::new()) };
    let mut page = Vec::new();
    let mut bytes = 0;
    let range = table.range(&message_key(conversation, first), &message_key(conversation, u64::MAX));
    for row in range.take(limit) {
        let (key, value) = row?;
        let row = decode_message(conversation, u64_at(table.name, &key, SEQUENCE_AT)?, value)?;
        bytes += row.sealed.len();
        if bytes > max_bytes && !page.is_empty() {
            break;
        }
        page.push(row);
    }
    Ok(page)
}

/// Deletes the partitions that lie at or below `through` as a whole.
pub(super) fn drop_through(engine: &Engine, conversation: ConversationId, through: Sequence) -> Result<()> {
    let below = (through.0.saturating_add(1) >> MESSAGE_PARTITION_BITS) << MESSAGE_PARTITION_BITS;
    let Some(last) = below.checked_sub(1) else { return Ok(()) };
    let table = &engine.tables.messages;
    let mut sweep = Sweep::new(engine, table);
    for key in table.keys(&message_key(conversation, 0), &message_key(conversation, last)) {
        if !sweep.delete(key?)? {
            break;
        }
    }
    sweep.finish()
}

/// How many rows one call deletes at most; the next call goes on.
const SWEEP_ROWS: usize = 1 << 17;
/// How many rows one batch deletes.
const SWEEP_BATCH: usize = 1 << 10;

/// Deletes rows in batches, so that neither memory nor the journal's lock is held for long.
pub(super) struct Sweep<'a> {
    engine: &'a Engine,
    table: &'a Table,
    batch: OwnedWriteBatch,
    left: usize,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(engine: &'a Engine, table: &'a Table) -> Self {
        Self { engine, table, batch: engine.batch(), left: SWEEP_ROWS }
    }

    /// Deletes a row. Answers false when the call has deleted enough.
    pub(super) fn delete(&mut self, key: Bytes) -> Result<bool> {
        self.batch.remove(&self.table.keyspace, key);
        self.left -= 1;
        if self.batch.len() >= SWEEP_BATCH {
            let full = std::mem::replace(&mut self.batch, self.engine.batch());
            self.engine.commit(full)?;
        }
        Ok(self.left > 0)
    }

    /// Deletes what is still collected.
    pub(super) fn finish(self) -> Result<()> {
        self.engine.commit(self.batch)
    }
}
