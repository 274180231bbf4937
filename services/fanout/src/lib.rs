//! The fanout role: folds the topic `conversations` into order, members and duplicates, stores ciphertext once, and tells
//! each feeds partition what its users get.
//!
//! Everything it writes is computed from the log alone, so that two owners of a partition, a zombie included, write the same.
//! The state machine is [`wardline_domain::conversation`]; here are what its outcomes mean for tables and feeds
//! ([`outcome`]), in which order that is done ([`effects`]), and what is kept in memory meanwhile ([`cache`]).
//!
//! Deliberately absent: clocks (but to measure, in [`measures`]), the directory, the registry, gRPC. What fanout must know comes
//! in the log.

mod cache;
mod consume;
mod effects;
mod feed_records;
mod measures;
mod outcome;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wardline_log::fold::{self, Ended};
use wardline_log::{FetchLimits, Topic};
use wardline_runtime::consumer::Deps;

pub use self::consume::{Fanout, PartitionFold};
pub use self::effects::Effects;
pub use self::measures::METRICS;

/// How the role runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much a batch holds.
    pub limits: FetchLimits,
    /// About how many bytes of heads and rosters are kept in memory, over all partitions.
    pub cache_bytes: u64,
    /// A message's bytes travel in the feed records while its size times their number is at most this; above, they are read
    /// from the store once a partition.
    pub inline_bytes: usize,
    /// How often the store is flushed and the log trimmed behind it.
    pub trim_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: FetchLimits::default(),
            cache_bytes: 256 << 20,
            inline_bytes: 256 << 10,
            trim_every: Duration::from_secs(10),
        }
    }
}

/// Runs the role until `stop`, or until a person must look.
pub async fn run(deps: Deps, options: Options, stop: CancellationToken) -> Ended {
    let Deps { log, stores, health } = deps;
    let driven = fold::Options {
        limits: options.limits,
        trim_every: options.trim_every,
        ..fold::Options::named(Topic::Conversations, "fanout")
    };
    let fanout = Fanout::new(Arc::clone(&log), stores.conversations, health, &options);
    fold::run(log, stores.checkpoints, Arc::new(fanout), driven, stop).await
}
