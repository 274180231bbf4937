//! What a batch came to, and the order in which it is done: watermarks, then summaries.
//!
//! Summaries are states, so they need no place and no mark: whoever is told twice, or by a zombie, merges and is none the
//! wiser.
//!
//! Deliberately absent: leaving out summaries that tell nothing new. After a crash between the two steps the stored rows
//! already hold the change, and only the unconditional summary still tells it.

use std::sync::Arc;

use bytes::Bytes;
use metrics::{counter, histogram};
use prost::Message as _;
use wardline_domain::{Failure, Timestamp};
use wardline_log::append::{self, Pending};
use wardline_log::trace::TraceParent;
use wardline_log::{EventLog, NewRecord, Partition};
use wardline_proto::internal::v1 as wire;
use wardline_runtime::Clock;
use wardline_runtime::consumer::DeadLetters;
use wardline_store::Watermarks;
use wardline_store::watermarks::WatermarkRow;

use crate::measures as names;

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Effects {
    /// As they are after the batch.
    pub(crate) watermarks: Vec<WatermarkRow>,
    /// With their feeds partitions.
    pub(crate) summaries: Vec<(Partition, Summary)>,
    /// Records that do not decode.
    pub(crate) dead_letters: DeadLetters,
    /// For the metrics: how many reports there were, and when presence gathered each flush of them.
    pub(crate) reports: u64,
    pub(crate) gathered: Vec<Timestamp>,
}

impl Effects {
    /// Does them in order.
    pub(crate) async fn run(&self, log: &dyn EventLog, watermarks: &dyn Watermarks) -> Result<(), Failure> {
        if !self.watermarks.is_empty() {
            watermarks.put(&self.watermarks).await?;
        }
        append::all(log, self.dead_letters.batches()).await?;
        append::in_waves(log, &self.summaries).await?;
        self.measure();
        Ok(())
    }

    fn measure(&self) {
        counter!(names::REPORTS).increment(self.reports);
        counter!(names::SUMMARIES).increment(self.summaries.len() as u64);
        let (now, latency) = (Clock::system().now(), histogram!(names::LATENCY));
        self.gathered.iter().for_each(|at| latency.record(now.since(*at)));
    }
}

/// What one user is told.
#[derive(Debug, PartialEq)]
pub(crate) struct Summary {
    record: wire::FeedRecord,
    /// The spans that it comes from.
    traces: Arc<[TraceParent]>,
}

impl Summary {
    pub(crate) fn new(summary: wire::ReceiptSummaryRecord, traces: Arc<[TraceParent]>) -> Self {
        let record = wire::FeedRecord { body: Some(wire::feed_record::Body::ReceiptSummary(summary)) };
        Self { record, traces }
    }
}

impl Pending for Summary {
    fn bytes(&self) -> usize {
        self.record.encoded_len()
    }

    fn build(&self) -> NewRecord {
        let headers = self.traces.iter().map(|trace| trace.header()).collect();
        NewRecord { key: Bytes::new(), payload: self.record.encode_to_vec().into(), headers }
    }
}
