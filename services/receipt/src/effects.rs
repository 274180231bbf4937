//! What a batch came to, and the order in which it is done: watermarks, then summaries.
//!
//! Summaries are states, so they need no place and no mark: whoever is told twice, or by a zombie, merges and is none the
//! wiser.
//!
//! Deliberately absent: leaving out summaries that tell nothing new. After a crash between the two steps the stored rows
//! already hold the change, and only the unconditional summary still tells it.

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::Failure;
use wardline_log::append::{self, Pending};
use wardline_log::{EventLog, NewRecord, Partition};
use wardline_proto::internal::v1 as wire;
use wardline_runtime::consumer::DeadLetters;
use wardline_store::Watermarks;
use wardline_store::watermarks::WatermarkRow;

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Effects {
    /// As they are after the batch.
    pub(crate) watermarks: Vec<WatermarkRow>,
    /// With their feeds partitions.
    pub(crate) summaries: Vec<(Partition, Summary)>,
    /// Records that do not decode.
    pub(crate) dead_letters: DeadLetters,
}

impl Effects {
    /// Does them in order.
    pub(crate) async fn run(&self, log: &dyn EventLog, watermarks: &dyn Watermarks) -> Result<(), Failure> {
        if !self.watermarks.is_empty() {
            watermarks.put(&self.watermarks).await?;
        }
        append::all(log, self.dead_letters.batches()).await?;
        append::in_waves(log, &self.summaries).await
    }
}

/// What one user is told.
#[derive(Debug, PartialEq)]
pub(crate) struct Summary(wire::FeedRecord);

impl Summary {
    pub(crate) fn new(summary: wire::ReceiptSummaryRecord) -> Self {
        Self(wire::FeedRecord { body: Some(wire::feed_record::Body::ReceiptSummary(summary)) })
    }
}

impl Pending for Summary {
    fn bytes(&self) -> usize {
        self.0.encoded_len()
    }

    fn build(&self) -> NewRecord {
        NewRecord { key: Bytes::new(), payload: self.0.encode_to_vec().into(), headers: Vec::new() }
    }
}
