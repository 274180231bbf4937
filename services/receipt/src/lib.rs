//! The receipt role: folds the topic `receipts` into watermarks, tells senders, and answers who has got and read what.
//!
//! Receipts are state: merged by maximum, with the ranges that a resync passed over kept beside ([`watermark`]). Whoever is
//! told gets the state as it is after a batch, for every batch and every replay of one, so that no crash leaves somebody
//! untold ([`consume`]).
//!
//! Deliberately absent: counts. Above 64 members pushes will carry counts instead of each device's state; until then they
//! always carry the state. Also absent: accept, decline and escalation, which the protocol reserves.

mod consume;
mod effects;
mod measures;
mod record;
mod service;
mod watermark;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wardline_log::fold::{self, Ended};
use wardline_log::{FetchLimits, Topic};
use wardline_runtime::consumer::Deps;

pub use self::consume::{PartitionFold, Receipts};
pub use self::effects::Effects;
pub use self::measures::METRICS;
pub use self::service::{Deps as ServiceDeps, Service, service};

/// How the fold runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much a batch holds.
    pub limits: FetchLimits,
    /// How often the store is flushed and the log trimmed behind it.
    pub trim_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: FetchLimits::default(), trim_every: Duration::from_secs(10) }
    }
}

/// Runs the fold until `stop`, or until a person must look.
pub async fn run(deps: Deps, options: Options, stop: CancellationToken) -> Ended {
    let Deps { log, stores, health } = deps;
    let driven = fold::Options {
        limits: options.limits,
        trim_every: options.trim_every,
        ..fold::Options::named(Topic::Receipts, "receipt")
    };
    let receipts = Receipts::new(Arc::clone(&log), stores.watermarks, health);
    fold::run(log, stores.checkpoints, Arc::new(receipts), driven, stop).await
}
