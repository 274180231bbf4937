//! Reserve, append, await, answer.

use std::num::NonZeroU32;
use std::time::Instant;

use bytes::Bytes;
use metrics::{counter, histogram};
use tokio::time::timeout;
use wardline_domain::record::Body;
use wardline_domain::{ConversationId, Failure, Position, Timestamp};
use wardline_log::{Appended, NewRecord, Partition, Topic};
use wardline_proto::convert::record;
use wardline_proto::reason::Reason;
use wardline_runtime::Refusal;
use wardline_runtime::trace::{self, Ongoing};

use crate::Inner;
use crate::measures as names;

/// A record on its way into the log.
pub(crate) struct InFlight {
    /// When it was accepted, if it becomes durable.
    pub(crate) accepted_at: Timestamp,
    appended: Appended,
    began: Instant,
    /// Ends when the record is durable.
    trace: Ongoing,
}

impl Inner {
    /// Puts a record into the log's queue. The order of calls is the order in the log.
    pub(crate) fn append(
        &self,
        conversation: ConversationId,
        accepted_at: Timestamp,
        body: &Body,
    ) -> Result<InFlight, Refusal> {
        let payload = record::encode(conversation, accepted_at, body);
        let key = Bytes::copy_from_slice(conversation.as_bytes());
        let bytes = u32::try_from(payload.len() + key.len())
            .ok()
            .and_then(NonZeroU32::new)
            .ok_or(Refusal::new(Reason::TooLarge))?;
        let permit = self.deps.log.reserve(bytes)?;
        let index = self.deps.log.partitions(Topic::Conversations).partition_of(conversation.as_bytes());
        let to = Partition { topic: Topic::Conversations, index };
        let (began, trace) = (Instant::now(), trace::append(to.topic));
        let appended = self.deps.log.append(permit, to, vec![NewRecord { key, payload, headers: trace.headers() }]);
        Ok(InFlight { accepted_at, appended, began, trace })
    }

    /// Waits until the record is durable. Any refusal means that the outcome is unknown, or that nothing happened; the caller
    /// may repeat the same bytes in both cases.
    pub(crate) async fn durable(&self, in_flight: InFlight) -> Result<Timestamp, Refusal> {
        let InFlight { accepted_at, appended, began, trace } = in_flight;
        let answer = timeout(self.options.append_deadline, appended).await;
        drop(trace);
        match answer {
            Ok(Ok(positions)) => {
                debug_assert!(positions.iter().all(|at| *at > Position::default()));
                histogram!(names::DURABLE_SECONDS).record(began.elapsed());
                Ok(accepted_at)
            }
            Ok(Err(failure @ Failure::NotApplied(_))) => Err(failure.into()),
            Ok(Err(failure @ Failure::Unknown(_))) => {
                counter!(names::UNKNOWN).increment(1);
                Err(failure.into())
            }
            Err(_elapsed) => {
                counter!(names::UNKNOWN).increment(1);
                Err(Refusal::new(Reason::DeadlineExceeded))
            }
        }
    }
}
