//! A log that fails as a cluster's does: a seeded decorator round any engine.
//!
//! What it injects stays within the seam's contract, so whoever works on an engine must work on it too: an append that is
//! answered `Unknown` though it is there, once or twice, or is not; one that did not happen; offsets with gaps; reads that
//! fail; zombies, where every member of a named group believes that it holds every partition; and, by a switch, an engine
//! that is away altogether.
//!
//! Deliberately absent: loss of what was acknowledged, and reordering.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Cause, Failure, Position};

use crate::seam::{
    Appended, Event, EventLog, FetchLimits, Group, NewRecord, Permit, Refused, Start, Started, Subscription,
};
use crate::topic::{Partition, Topic};

/// Names the records that only make gaps; its subscriptions leave them out.
const FILLER: &str = "wardline-laws-filler";

/// How often what goes wrong: each from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// An append did not happen and says so.
    pub refused: f64,
    /// An append did not happen and says `Unknown`.
    pub lost: f64,
    /// An append happened and says `Unknown`.
    pub told_unknown: f64,
    /// An append happened twice and says `Unknown`.
    pub twice: f64,
    /// A batch is preceded by an offset that no reader sees: a filler record is appended, which subscriptions through the
    /// decorator leave out.
    pub gap: f64,
    /// `next` and `start` fail, and pass.
    pub read: f64,
    /// Every member of a named group holds every partition.
    pub zombies: bool,
}

impl Faults {
    /// None.
    pub const NONE: Self =
        Self { refused: 0.0, lost: 0.0, told_unknown: 0.0, twice: 0.0, gap: 0.0, read: 0.0, zombies: false };
}

/// The decorator.
pub struct Faulty {
    inner: Arc<dyn EventLog>,
    faults: Faults,
    dice: Dice,
    switch: Switch,
}

/// Takes the engine away and brings it back: meanwhile it takes no append, and what follows it fails.
#[derive(Debug, Clone)]
pub struct Switch(Arc<watch::Sender<bool>>);

impl Switch {
    /// Whether the engine is away from now on.
    pub fn away(&self, away: bool) {
        self.0.send_replace(away);
    }

    fn check(&self) -> Result<(), Failure> {
        if *self.0.borrow() { Err(gone()) } else { Ok(()) }
    }

    /// Fails when the engine goes away.
    async fn goes(&self) -> Failure {
        // The sender is in `self`, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|away| *away).await;
        gone()
    }
}

fn gone() -> Failure {
    Failure::NotApplied(Cause::unavailable("injected: away"))
}

impl Faulty {
    /// Round a log, with the faults that the seed gives.
    pub fn new(inner: Arc<dyn EventLog>, seed: u64, faults: Faults) -> Self {
        Self { inner, faults, dice: Dice::new(seed), switch: Switch(Arc::new(watch::Sender::new(false))) }
    }

    /// Takes the engine away.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// Appends a record that only makes a gap.
    fn fill(&self, to: Partition) {
        if let Ok(permit) = self.inner.reserve(NonZeroU32::MIN) {
            let filler = NewRecord {
                key: Bytes::from_static(FILLER.as_bytes()),
                payload: Bytes::new(),
                headers: vec![(FILLER, Bytes::new())],
            };
            drop(self.inner.append(permit, to, vec![filler]));
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({:?})", self.faults)
    }
}

#[async_trait]
impl EventLog for Faulty {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        self.inner.partitions(topic)
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        self.inner.reserve(bytes)
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        let faults = self.faults;
        if let Err(failure) = self.switch.check() {
            return futures::future::ready(Err(failure)).boxed();
        }
        let unknown = || Err(Failure::Unknown(Cause::timeout("injected")));
        if self.dice.roll(faults.refused) {
            return futures::future::ready(Err(Failure::NotApplied(Cause::unavailable("injected")))).boxed();
        }
        if self.dice.roll(faults.lost) {
            return futures::future::ready(unknown()).boxed();
        }
        // Fillers are no records of a compacted topic.
        if !to.topic.compacted() && self.dice.roll(faults.gap) {
            self.fill(to);
        }
        if self.dice.roll(faults.twice)
            && let Some(second) = NonZeroU32::new(permit.bytes()).and_then(|bytes| self.inner.reserve(bytes).ok())
        {
            let first = self.inner.append(permit, to, batch.clone());
            let second = self.inner.append(second, to, batch);
            return futures::future::join(first, second).map(move |_| unknown()).boxed();
        }
        let appended = self.inner.append(permit, to, batch);
        if self.dice.roll(faults.told_unknown) { appended.map(move |_| unknown()).boxed() } else { appended }
    }

    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure> {
        self.switch.check()?;
        let group = if self.faults.zombies { Group::Everyone } else { group };
        let inner = self.inner.subscribe(group, topic, limits).await?;
        let (dice, switch) = (self.dice.split(), self.switch.clone());
        Ok(Box::new(FaultySubscription { inner, dice, switch, read: self.faults.read }))
    }

    async fn trim(&self, partition: Partition, through: Position) -> Result<(), Failure> {
        self.switch.check()?;
        self.inner.trim(partition, through).await
    }

    async fn close(&self, deadline: Instant) -> Result<(), Failure> {
        self.inner.close(deadline).await
    }
}

struct FaultySubscription {
    inner: Box<dyn Subscription>,
    dice: Dice,
    switch: Switch,
    read: f64,
}

impl FaultySubscription {
    fn read_fault(&self) -> Result<(), Failure> {
        if self.dice.roll(self.read) { Err(Failure::NotApplied(Cause::unavailable("injected"))) } else { Ok(()) }
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            self.read_fault()?;
            let event = tokio::select! {
                biased;
                failure = self.switch.goes() => Err(failure),
                event = self.inner.next() => event,
            };
            match event? {
                Event::Records { partition, mut records } => {
                    records.retain(|record| record.headers.iter().all(|(name, _)| name != FILLER));
                    if !records.is_empty() {
                        return Ok(Event::Records { partition, records });
                    }
                }
                event => return Ok(event),
            }
        }
    }

    async fn start(&mut self, partition: u32, from: Start) -> Result<Started, Failure> {
        self.read_fault()?;
        self.switch.check()?;
        self.inner.start(partition, from).await
    }

    fn pause(&mut self, partition: u32) {
        self.inner.pause(partition);
    }

    fn resume(&mut self, partition: u32) {
        self.inner.resume(partition);
    }

    fn ack(&mut self, partition: u32, through: Position) {
        self.inner.ack(partition, through);
    }
}

/// Chance from a seed.
pub(super) struct Dice(Mutex<StdRng>);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    pub(super) fn roll(&self, chance: f64) -> bool {
        chance > 0.0 && self.0.lock().unwrap_or_else(PoisonError::into_inner).random_bool(chance)
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..bound)
    }

    fn split(&self) -> Self {
        Self::new(self.below(u64::MAX))
    }

    /// A short moment, so that tasks interleave differently for each seed.
    pub(super) fn moment(&self) -> Duration {
        Duration::from_micros(self.below(300))
    }
}
