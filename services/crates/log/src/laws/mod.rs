//! The laws every engine keeps, one function each, and the fold driver's over a log with faults.
//!
//! An engine's test file names its [`Harness`] and calls [`laws!`](crate::laws!): each law becomes a test of its name.
//! [`run_all`] runs them in one go for whoever has no test harness.
//!
//! Deliberately absent: laws about time (retention by age, lag) and about what only one engine has.

mod appending;
mod faulty;
mod folding;
mod following;
mod groups;
mod memory;
mod retention;
mod toy;

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{Failure, Position};

pub use self::appending::*;
pub use self::faulty::{Faults, Faulty, Switch};
pub use self::folding::*;
pub use self::following::*;
pub use self::groups::*;
pub use self::memory::{Fault, MemoryLog};
pub use self::retention::*;
pub use self::toy::MemoryCheckpoints;
use crate::seam::{Event, EventLog, FetchLimits, Group, LogRecord, NewRecord, Refused, Start, Started, Subscription};
use crate::topic::{Partition, Topic};

/// The byte budget that a harness opens logs with.
pub const BUDGET_BYTES: u32 = 1 << 20;

/// Longer than anything takes; a law that waits so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes logs to try the laws on.
#[async_trait]
pub trait Harness: Send + Sync {
    /// An empty log with 4 partitions of `conversations` and of `feeds` and a budget of [`BUDGET_BYTES`].
    async fn fresh(&self) -> Box<dyn Subject>;
}

/// Ends the holding back of durability.
pub type Release = Box<dyn FnOnce() + Send>;

/// One log that a law is tried on.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The log.
    fn log(&self) -> Arc<dyn EventLog>;

    /// Which optional promises it keeps.
    fn promises(&self) -> Promises;

    /// Stops the engine and opens what is durable again. Called only when it promises to restart and nobody else holds
    /// the log.
    async fn reopen(&mut self);

    /// Lets nothing become durable until released. `None` when the engine cannot.
    fn hold(&self) -> Option<Release>;
}

/// What not every engine does.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// [`EventLog::trim`] removes at once what lies at or below.
    pub trims: bool,
    /// Superseded records of compacted topics are gone once a few more were appended.
    pub compacts: bool,
    /// It can be stopped and opened again by the harness.
    pub restarts: bool,
    /// [`EventLog::reserve`] refuses what the budget does not hold.
    pub budgets: bool,
}

/// Names each law to another macro, behind the arguments given.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_law {
    ([$($then:tt)*] ($($arguments:tt)*)) => {
        $($then)*! {
            $($arguments)*;
            acknowledged_is_readable, order_of_calls_is_order_of_log, a_batch_is_adjacent, not_readable_before_durable,
            unacknowledged_may_repeat, dense_or_gapped_positions_rise, reserve_is_bounded_and_returned,
            close_drops_nothing_in_flight, closed_takes_nothing,
            start_at_oldest, start_at_position, start_at_newest, start_beyond_end_is_corrupt, nothing_comes_before_start,
            cancelled_next_loses_nothing, limits_bound_a_batch, pause_and_resume, everything_returns_as_it_was,
            two_groups_are_independent, a_named_group_shares_partitions, everyone_gets_everything,
            revoked_partition_yields_nothing, leaving_rebalances,
            trim_keeps_the_rest, compaction_keeps_the_latest, a_compacted_topic_is_not_trimmed, restart_keeps_everything,
            each_effect_once_and_in_order, zombies_agree, a_changed_log_halts, a_checkpoint_beyond_the_log_halts,
            a_stuck_partition_holds_up_no_other, a_partition_that_moves_away_waits_no_more,
            a_checkpoint_that_was_overtaken_is_read_again, a_log_that_goes_away_is_told_and_waited_for
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __law_tests {
    ($harness:expr; $($law:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $law() {
            $crate::laws::$law(&$harness).await;
        }
    )*};
}

/// Makes a test of each law for the [`Harness`](crate::laws::Harness) that the expression gives.
#[macro_export]
macro_rules! laws {
    ($harness:expr) => {
        $crate::__each_law! { [$crate::__law_tests] ($harness) }
    };
}
macro_rules! run_each {
    ($harness:ident; $($law:ident),* $(,)?) => {$(
        tracing::info!(law = stringify!($law));
        $law($harness).await;
    )*};
}

/// Runs every law, one after the other. Panics at the first that is broken; its name is the last one traced.
pub async fn run_all(harness: &dyn Harness) {
    crate::__each_law! { [run_each] (harness) }
}

/// What the laws append and read with.
const TOPIC: Topic = Topic::Conversations;

const fn at(index: u32) -> Partition {
    Partition { topic: TOPIC, index }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, what).await {
        Ok(done) => done,
        Err(_) => panic!("waited {PATIENCE:?} for what never came"),
    }
}

fn record(key: &str, payload: impl Into<Bytes>) -> NewRecord {
    NewRecord { key: Bytes::copy_from_slice(key.as_bytes()), payload: payload.into(), headers: Vec::new() }
}

/// Appends when the budget has room.
async fn append_batch(log: &dyn EventLog, to: Partition, batch: Vec<NewRecord>) -> Result<Vec<Position>, Failure> {
    let bytes: usize = batch.iter().map(|record| record.key.len() + record.payload.len()).sum();
    let bytes = u32::try_from(bytes).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    loop {
        match log.reserve(bytes) {
            Ok(permit) => return within(log.append(permit, to, batch)).await,
            Err(Refused::Overloaded { retry_after }) => tokio::time::sleep(retry_after).await,
            Err(refused) => panic!("the log refused: {refused}"),
        }
    }
}

/// Appends and insists.
async fn append(log: &dyn EventLog, to: Partition, payloads: &[&str]) -> Vec<Position> {
    let batch = payloads.iter().map(|payload| record("key", payload.to_string())).collect();
    append_batch(log, to, batch).await.expect("a log without faults appends")
}

/// A subscriber that starts whatever it is assigned and remembers what it read.
struct Follower {
    subscription: Box<dyn Subscription>,
    start: Start,
    held: BTreeMap<u32, Started>,
    read: BTreeMap<u32, Vec<LogRecord>>,
}

impl Follower {
    async fn join(log: &dyn EventLog, group: Group, topic: Topic, start: Start) -> Self {
        Self::join_with(log, group, topic, start, FetchLimits::default()).await
    }

    async fn join_with(log: &dyn EventLog, group: Group, topic: Topic, start: Start, limits: FetchLimits) -> Self {
        let subscription = within(log.subscribe(group, topic, limits)).await.expect("a log without faults is followed");
        Self { subscription, start, held: BTreeMap::new(), read: BTreeMap::new() }
    }

    async fn step(&mut self) {
        match within(self.subscription.next()).await.expect("a log without faults is read") {
            Event::Assigned(index) => {
                let started = self.subscription.start(index, self.start).await.expect("what is assigned starts");
                self.held.insert(index, started);
            }
            Event::Revoked(index) => {
                self.held.remove(&index);
            }
            Event::Records { partition, records } => {
                assert!(self.held.contains_key(&partition), "records come only of what is held and started");
                self.read.entry(partition).or_default().extend(records);
            }
        }
    }

    async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.step().await;
        }
    }

    async fn until_held(&mut self, count: usize) {
        self.until(|follower| follower.held.len() == count).await;
    }

    fn payloads(&self, index: u32) -> Vec<String> {
        let of = self.read.get(&index).map(Vec::as_slice).unwrap_or_default();
        of.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned()).collect()
    }

    /// Reads a partition until this payload came, and answers all that came of it.
    async fn read_to(&mut self, index: u32, payload: &str) -> Vec<String> {
        self.until(|follower| follower.payloads(index).iter().any(|read| read == payload)).await;
        self.payloads(index)
    }

    fn positions(&self, index: u32) -> Vec<Position> {
        self.read.get(&index).into_iter().flatten().map(|record| record.position).collect()
    }
}
