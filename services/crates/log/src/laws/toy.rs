//! A fold to try the driver with: it numbers the records of each partition, each name once, and keeps rows and a head in a
//! store that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use wardline_domain::{Cause, Failure, Position};
use wardline_store::Checkpoints;
use wardline_store::checkpoints::{Checkpoint, PartitionName};

use super::faulty::Dice;
use crate::fold::{Fold, Folds, Watch};
use crate::seam::{LogRecord, Started};

/// Checkpoints in memory: a lower position changes nothing.
#[derive(Debug, Default)]
pub struct MemoryCheckpoints(Mutex<BTreeMap<PartitionName, Checkpoint>>);

#[async_trait]
impl Checkpoints for MemoryCheckpoints {
    async fn put(&self, partition: PartitionName, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let mut places = lock(&self.0);
        if places.get(&partition).is_none_or(|place| place.position < checkpoint.position) {
            places.insert(partition, checkpoint.clone());
        }
        Ok(())
    }

    async fn get(&self, partition: PartitionName) -> Result<Option<Checkpoint>, Failure> {
        Ok(lock(&self.0).get(&partition).cloned())
    }

    async fn flush(&self) -> Result<(), Failure> {
        Ok(())
    }
}

/// What is folded from a partition so far.
#[derive(Debug, Clone, Default)]
struct Head {
    last: Option<Position>,
    names: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Tables {
    /// (partition, number) → name
    rows: BTreeMap<(u32, usize), String>,
    heads: BTreeMap<u32, Head>,
    /// Effects that were begun.
    begun: u64,
}

/// The store, and what the driver told about pauses.
pub(super) struct Toy {
    tables: Mutex<Tables>,
    places: MemoryCheckpoints,
    dice: Dice,
    /// How often each call of the store fails, and half of those after it happened.
    chance: f64,
    /// No effect of this partition succeeds.
    pub(super) stuck: Option<u32>,
    pub(super) paused: Mutex<BTreeSet<u32>>,
    /// What the driver told last of whether it can follow the topic.
    pub(super) following: watch::Sender<bool>,
    /// The number of rows and of effects begun.
    pub(super) progress: watch::Sender<(usize, u64)>,
}

impl Toy {
    pub(super) fn new(seed: u64, chance: f64) -> Self {
        Self {
            tables: Mutex::default(),
            places: MemoryCheckpoints::default(),
            dice: Dice::new(seed),
            chance,
            stuck: None,
            paused: Mutex::default(),
            following: watch::Sender::new(false),
            progress: watch::Sender::new((0, 0)),
        }
    }

    /// A partition's names in the order of their numbers.
    pub(super) fn names(&self, partition: u32) -> Vec<String> {
        let tables = lock(&self.tables);
        tables.rows.range((partition, 0)..(partition + 1, 0)).map(|(_, name)| name.clone()).collect()
    }

    async fn call<T>(&self, call: impl FnOnce() -> T) -> Result<T, Failure> {
        tokio::time::sleep(self.dice.moment()).await;
        if !self.dice.roll(self.chance) {
            return Ok(call());
        }
        if self.dice.roll(0.5) {
            return Err(Failure::NotApplied(Cause::unavailable("injected")));
        }
        call();
        Err(Failure::Unknown(Cause::timeout("injected")))
    }
}

#[async_trait]
impl Checkpoints for Toy {
    async fn put(&self, partition: PartitionName, checkpoint: &Checkpoint) -> Result<(), Failure> {
        self.call(|| ()).await?;
        self.places.put(partition, checkpoint).await
    }

    async fn get(&self, partition: PartitionName) -> Result<Option<Checkpoint>, Failure> {
        self.call(|| ()).await?;
        self.places.get(partition).await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.call(|| ()).await
    }
}

pub(super) struct ToyFolds(pub(super) Arc<Toy>);

pub(super) struct ToyFold {
    toy: Arc<Toy>,
    partition: u32,
    head: Head,
}

pub(super) struct ToyEffects {
    rows: Vec<(usize, String)>,
    head: Head,
}

#[async_trait]
impl Fold for ToyFold {
    type Effects = ToyEffects;

    async fn apply(&mut self, batch: &[LogRecord]) -> Result<ToyEffects, Failure> {
        self.toy.call(|| ()).await?;
        assert!(batch.is_sorted_by(|a, b| a.position < b.position), "positions rise");
        let mut rows = Vec::new();
        for record in batch {
            if self.head.last.is_some_and(|last| record.position <= last) {
                continue;
            }
            self.head.last = Some(record.position);
            let name = String::from_utf8_lossy(&record.payload).into_owned();
            if self.head.names.insert(name.clone()) {
                rows.push((self.head.names.len(), name));
            }
        }
        Ok(ToyEffects { rows, head: self.head.clone() })
    }

    async fn effects(&mut self, effects: &ToyEffects) -> Result<(), Failure> {
        let toy = Arc::clone(&self.toy);
        let begun = {
            let mut tables = lock(&toy.tables);
            tables.begun += 1;
            tables.begun
        };
        toy.progress.send_modify(|progress| progress.1 = begun);
        if toy.stuck == Some(self.partition) {
            return Err(Failure::NotApplied(Cause::unavailable("stuck")));
        }
        for (number, name) in &effects.rows {
            let write = || {
                let mut tables = lock(&toy.tables);
                let row = tables.rows.entry((self.partition, *number)).or_insert_with(|| name.clone());
                assert_eq!(row, name, "a row is written again only with the same bytes");
            };
            toy.call(write).await?;
        }
        let write = || {
            let mut tables = lock(&toy.tables);
            let head = tables.heads.entry(self.partition).or_default();
            if head.last < effects.head.last {
                *head = effects.head.clone();
            }
        };
        toy.call(write).await?;
        let rows = lock(&toy.tables).rows.len();
        toy.progress.send_modify(|progress| progress.0 = rows);
        Ok(())
    }

    fn marks(&self) -> Bytes {
        Bytes::from(self.head.names.len().to_string())
    }
}

#[async_trait]
impl Folds for ToyFolds {
    type Fold = ToyFold;

    async fn assigned(&self, partition: u32, checkpoint: Option<&Checkpoint>, _: Started) -> Result<ToyFold, Failure> {
        let toy = &self.0;
        let head = toy.call(|| lock(&toy.tables).heads.get(&partition).cloned().unwrap_or_default()).await?;
        assert!(
            checkpoint.map(|checkpoint| checkpoint.position) <= head.last,
            "a checkpoint never runs ahead of the head"
        );
        Ok(ToyFold { toy: Arc::clone(toy), partition, head })
    }

    fn watch(&self) -> &dyn Watch {
        &*self.0
    }
}

impl Watch for Toy {
    fn following(&self, following: bool) {
        self.following.send_replace(following);
    }

    fn paused(&self, partition: u32, _: &Failure) {
        lock(&self.paused).insert(partition);
    }

    fn resumed(&self, partition: u32) {
        lock(&self.paused).remove(&partition);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
