//! What a role that folds a topic stands on, and where it puts what does not decode.
//!
//! Deliberately absent: the fold itself, which is the role's, and how it is driven, which is the log's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use wardline_log::trace::{TRACEPARENT, TRACESTATE};
use wardline_log::{EventLog, Headers, LogRecord, NewRecord, Partition, Topic};
use wardline_proto::convert::ids::bytes32;
use wardline_proto::internal::v1::DeadLetterRecord;
use wardline_store::Stores;

use crate::health::FoldHealth;

/// What a role that folds a topic runs on.
#[derive(Clone)]
pub struct Deps {
    /// Where records come from, and where those that they cause go.
    pub log: Arc<dyn EventLog>,
    /// Where rows and checkpoints lie.
    pub stores: Stores,
    /// Is told how the fold is.
    pub health: FoldHealth,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deps")
    }
}

/// A record's headers that go on with what it causes.
pub fn trace_context(record: &LogRecord) -> Headers {
    let known = |name: &str| [TRACEPARENT, TRACESTATE].into_iter().find(|known| *known == name);
    record.headers.iter().filter_map(|(name, value)| Some((known(name)?, value.clone()))).collect()
}

/// Whether a conversation's records belong to the partition. Elsewhere, two owners would fold one conversation.
pub fn belongs(log: &dyn EventLog, conversation: &[u8; 16], partition: Partition) -> Result<(), String> {
    if log.partitions(partition.topic).partition_of(conversation) == partition.index {
        Ok(())
    } else {
        Err("conversation_id: belongs to another partition".to_owned())
    }
}

/// Records that do not decode, each as a record of `deadletters` that says where it lies and why.
#[derive(Debug, Default)]
pub struct DeadLetters(BTreeMap<Partition, Vec<NewRecord>>);

impl DeadLetters {
    /// Sets a record of `source` aside. `reason` names no more than a field.
    pub fn bury(&mut self, log: &dyn EventLog, source: Partition, record: &LogRecord, reason: String) {
        let topic = source.topic.name();
        tracing::error!(topic, partition = source.index, position = %record.position, reason, "a record does not decode");
        let digest = record.digest();
        let letter = DeadLetterRecord {
            topic: topic.to_owned(),
            partition: source.index,
            position: record.position.as_u64(),
            reason,
            digest: bytes32(&digest),
        };
        let (key, _) = digest.as_bytes().split_first_chunk::<16>().expect("a digest has 32 bytes");
        let index = log.partitions(Topic::DeadLetters).partition_of(key);
        let payload = letter.encode_to_vec().into();
        let letter = NewRecord { key: Bytes::copy_from_slice(key), payload, headers: trace_context(record) };
        self.0.entry(Partition { topic: Topic::DeadLetters, index }).or_default().push(letter);
    }

    /// By partition of `deadletters`.
    pub const fn batches(&self) -> &BTreeMap<Partition, Vec<NewRecord>> {
        &self.0
    }
}
