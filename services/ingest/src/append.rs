//! Reserve, append, await, answer.

use std::num::NonZeroU32;

use bytes::Bytes;
use tokio::time::timeout;
use wardline_domain::record::Body;
use wardline_domain::{ConversationId, Failure, Position, Timestamp};
use wardline_log::{Appended, NewRecord, Partition, Topic};
use wardline_proto::convert::record;
use wardline_proto::reason::Reason;
use wardline_runtime::Refusal;

use crate::Inner;

/// A record on its way into the log.
pub(crate) struct InFlight {
    /// When it was accepted, if it becomes durable.
    pub(crate) accepted_at: Timestamp,
    appended: Appended,
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
        let appended = self.deps.log.append(permit, to, vec![NewRecord { key, payload, headers: Vec::new() }]);
        Ok(InFlight { accepted_at, appended })
    }

    /// Waits until the record is durable. Any refusal means that the outcome is unknown, or that nothing happened; the caller
    /// may repeat the same bytes in both cases.
    pub(crate) async fn durable(&self, in_flight: InFlight) -> Result<Timestamp, Refusal> {
        match timeout(self.options.append_deadline, in_flight.appended).await {
            Ok(Ok(positions)) => {
                debug_assert!(positions.iter().all(|at| *at > Position::default()));
                Ok(in_flight.accepted_at)
            }
            Ok(Err(failure @ (Failure::NotApplied(_) | Failure::Unknown(_)))) => Err(failure.into()),
            Err(_elapsed) => Err(Refusal::new(Reason::DeadlineExceeded)),
        }
    }
}
