//! What fanout measures.
//!
//! Deliberately absent: anything that what is written could depend on. The clock is asked when a batch is done, for these
//! metrics only.

use std::collections::BTreeMap;

use metrics::{Counter, Histogram, counter, histogram};
use wardline_domain::Timestamp;
use wardline_domain::conversation::Outcome;
use wardline_proto::convert::reject;

wardline_domain::metrics! {
    OUTCOMES Counter "wardline_fanout_outcomes_total" ["outcome"] "Records by what the state machine made of them.";
    REJECTED Counter "wardline_fanout_rejected_total" ["reason"] "Messages that were accepted and got no sequence, by reason.";
    LATENCY Histogram "wardline_fanout_latency_seconds" ["stage"] "Age of a message since ingest accepted it: when its batch had given it a sequence (sequenced), when its rows were stored (stored), and when its feed records were durable (told).";
    LOOKUPS Counter "wardline_fanout_conversations_total" ["from"] "Conversations that a batch touched, by where they came from: the cache or the store.";
    CACHE_BYTES Gauge "wardline_fanout_cache_bytes" [] "Bytes of heads and rosters in memory, about.";
}

/// The metrics of every batch, made once: they take no lookup.
pub(crate) struct Measures {
    sequenced: Histogram,
    stored: Histogram,
    told: Histogram,
    pub(crate) cached: Counter,
    pub(crate) loaded: Counter,
}

impl Measures {
    pub(crate) fn new() -> Self {
        let stage = |stage: &'static str| histogram!(LATENCY, "stage" => stage);
        let lookups = |from: &'static str| counter!(LOOKUPS, "from" => from);
        Self {
            sequenced: stage("sequenced"),
            stored: stage("stored"),
            told: stage("told"),
            cached: lookups("cache"),
            loaded: lookups("store"),
        }
    }

    /// A batch is done.
    pub(crate) fn done(&self, tally: &Tally, at: &Stages) {
        for (outcome, count) in &tally.outcomes {
            counter!(OUTCOMES, "outcome" => *outcome).increment(*count);
        }
        for (reason, count) in &tally.rejected {
            counter!(REJECTED, "reason" => *reason).increment(*count);
        }
        for accepted_at in &tally.accepted {
            self.sequenced.record(at.sequenced.since(*accepted_at));
            self.stored.record(at.stored.since(*accepted_at));
            self.told.record(at.told.since(*accepted_at));
        }
    }
}

/// When a batch had reached each stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stages {
    pub(crate) sequenced: Timestamp,
    pub(crate) stored: Timestamp,
    pub(crate) told: Timestamp,
}

/// What the records of a batch came to. Counted when the batch is done: until then it may be folded again.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    outcomes: BTreeMap<&'static str, u64>,
    rejected: BTreeMap<&'static str, u64>,
    /// When the messages that got a sequence were accepted.
    accepted: Vec<Timestamp>,
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: &Outcome, accepted_at: Timestamp) {
        let name = match outcome {
            Outcome::Replayed => "replayed",
            Outcome::Repeat => "repeat",
            Outcome::Conflict(_) => "conflict",
            Outcome::Created { .. } => "created",
            Outcome::CreateRepeated { .. } => "create_repeated",
            Outcome::Sequenced(_) => "sequenced",
            Outcome::Rejected(_) => "rejected",
            Outcome::Changed { .. } => "changed",
            Outcome::Ignored => "ignored",
        };
        *self.outcomes.entry(name).or_default() += 1;
        match outcome {
            Outcome::Sequenced(_) => self.accepted.push(accepted_at),
            Outcome::Rejected(rejection) | Outcome::Conflict(rejection) => {
                *self.rejected.entry(reject::to_reason(rejection.reason).as_str()).or_default() += 1;
            }
            _ => {}
        }
    }
}
