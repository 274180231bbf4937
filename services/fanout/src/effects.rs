//! What a batch came to, and the order in which it is done.
//!
//! Rows (quorum), then feed records (all acknowledged), then heads (quorum); the driver writes the checkpoint after that. So
//! whoever is told of a message finds its row, and a head says only what has been told.
//!
//! Feed records of one source partition reach each feeds partition in source order and without gaps: they go out in waves,
//! and a wave begins when all of the one before is acknowledged. When any append fails, the whole batch's effects come
//! again from the first record on, by this process or by the next owner, before anything later does. So a record may be
//! there twice, which the owner of the feeds partition sees by its mark, but none is overtaken by a later one, which the
//! mark would turn into a loss.
//!
//! Deliberately absent: skipping what was done before. Every part is the same when it is done again.

use wardline_domain::Failure;
use wardline_log::{EventLog, Partition, Topic, append};
use wardline_runtime::Clock;
use wardline_runtime::consumer::DeadLetters;
use wardline_store::Conversations;
use wardline_store::conversations::{HeadRow, RowBatch};

use crate::feed_records::{FeedEvent, Numbering};
use crate::measures::{Stages, Tally};

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages, outcomes, roster versions, memberships.
    pub(crate) rows: RowBatch,
    /// Records that do not decode.
    pub(crate) dead_letters: DeadLetters,
    /// In source order.
    pub(crate) feed_events: Vec<FeedEvent>,
    /// Of the conversations that changed, by id.
    pub(crate) heads: Vec<HeadRow>,
    /// For the metrics.
    pub(crate) tally: Tally,
}

impl Effects {
    /// Does them in order. `source` is the partition they were derived from. Answers with when it had come how far.
    pub(crate) async fn run(
        &self,
        source: Partition,
        log: &dyn EventLog,
        conversations: &dyn Conversations,
    ) -> Result<Stages, Failure> {
        let clock = Clock::system();
        let sequenced = clock.now();
        if self.rows != RowBatch::default() {
            conversations.put_rows(&self.rows).await?;
        }
        let stored = clock.now();
        append::all(log, self.dead_letters.batches()).await?;
        self.tell(source, log).await?;
        let told = clock.now();
        if !self.heads.is_empty() {
            conversations.put_heads(&self.heads).await?;
        }
        Ok(Stages { sequenced, stored, told })
    }

    async fn tell(&self, source: Partition, log: &dyn EventLog) -> Result<(), Failure> {
        let mut numbering = Numbering::default();
        let records = self.feed_events.iter().flat_map(|event| numbering.records(source.source(), event));
        let records: Vec<_> =
            records.map(|(index, record)| (Partition { topic: Topic::Feeds, index }, record)).collect();
        append::in_waves(log, &records).await
    }
}
