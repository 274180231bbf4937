//! Laws of the fold driver, over a log and a store with faults.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wardline_domain::failure::CauseKind;
use wardline_domain::{Cause, Digest, Failure, Position};
use wardline_store::Checkpoints as _;
use wardline_store::checkpoints::{Checkpoint, PartitionName};

use super::faulty::Dice;
use super::toy::{Toy, ToyFolds, lock};
use super::{Faults, Faulty, Follower, Harness, TOPIC, append, append_batch, at, record, within};
use crate::fold::{Ended, Options, Watch, run};
use crate::seam::{EventLog, FetchLimits, Group, Start};

const NAMES: usize = 40;
const SEEDS: u64 = 4;

fn options() -> Options {
    Options {
        topic: TOPIC,
        group: Group::Named("toy"),
        limits: FetchLimits { records: 8, bytes: 1 << 10 },
        start: Start::Oldest,
        checkpointed: true,
        trim_every: Duration::from_millis(5),
    }
}

async fn drive(log: &Arc<dyn EventLog>, toy: &Arc<Toy>, stop: CancellationToken) -> Ended {
    let folds = Arc::new(ToyFolds(Arc::clone(toy)));
    run(Arc::clone(log), Arc::clone(toy) as _, folds, options(), stop).await
}

/// Appends every name to each partition until it is acknowledged, so some come twice or more.
async fn append_names(log: &dyn EventLog) {
    for n in 0..NAMES {
        for index in 0..4 {
            while append_batch(log, at(index), vec![record("k", format!("{index}/{n}"))]).await.is_err() {}
        }
    }
}

fn assert_each_once_in_order(toy: &Toy) {
    for index in 0..4 {
        let expected: Vec<_> = (0..NAMES).map(|n| format!("{index}/{n}")).collect();
        assert_eq!(toy.names(index), expected);
    }
}

/// Until all names have their rows.
async fn folded(toy: &Toy) {
    let mut progress = toy.progress.subscribe();
    within(progress.wait_for(|(rows, _)| *rows == 4 * NAMES)).await.expect("the toy outlives its watchers");
}

/// Until so many more effects were begun.
async fn some_effects(toy: &Toy, more: u64) {
    let mut progress = toy.progress.subscribe();
    let until = progress.borrow_and_update().1 + more;
    within(progress.wait_for(|(_, begun)| *begun >= until)).await.expect("the toy outlives its watchers");
}

/// Whatever the log and the store do, and wherever the driver is cut off, each record has its effect once and in order.
pub async fn each_effect_once_and_in_order(harness: &dyn Harness) {
    for seed in 0..SEEDS {
        let subject = harness.fresh().await;
        let faults =
            Faults { refused: 0.1, lost: 0.1, told_unknown: 0.1, twice: 0.1, gap: 0.2, read: 0.02, zombies: false };
        let log: Arc<dyn EventLog> = Arc::new(Faulty::new(subject.log(), seed, faults));
        let toy = Arc::new(Toy::new(seed, 0.03));
        let dice = Dice::new(seed);
        let crashing = async {
            for _ in 0..6 {
                // Dropping the driver is the crash.
                tokio::select! {
                    ended = drive(&log, &toy, CancellationToken::new()) => panic!("{ended}"),
                    () = some_effects(&toy, 1 + dice.below(4)) => {}
                }
            }
        };
        futures::join!(append_names(&*log), crashing);
        let stop = CancellationToken::new();
        let following = async {
            folded(&toy).await;
            stop.cancel();
        };
        let (ended, ()) = futures::join!(drive(&log, &toy, stop.clone()), following);
        assert!(matches!(ended, Ended::Stopped), "{ended}");
        assert_each_once_in_order(&toy);
    }
}

/// Two drivers that both believe they own every partition come to the same.
pub async fn zombies_agree(harness: &dyn Harness) {
    for seed in 0..SEEDS {
        let subject = harness.fresh().await;
        let log: Arc<dyn EventLog> = Arc::new(Faulty::new(
            subject.log(),
            seed,
            Faults { told_unknown: 0.2, gap: 0.2, zombies: true, ..Faults::NONE },
        ));
        let toy = Arc::new(Toy::new(seed, 0.03));
        let stop = CancellationToken::new();
        let following = async {
            append_names(&*log).await;
            folded(&toy).await;
            stop.cancel();
        };
        let (one, two, ()) =
            futures::join!(drive(&log, &toy, stop.clone()), drive(&log, &toy, stop.clone()), following);
        assert!(matches!((one, two), (Ended::Stopped, Ended::Stopped)));
        assert_each_once_in_order(&toy);
    }
}

async fn halts(harness: &dyn Harness, checkpoint: impl FnOnce(Position) -> Checkpoint) {
    let log = harness.fresh().await.log();
    let positions = append(&*log, at(1), &["a", "b"]).await;
    let toy = Arc::new(Toy::new(0, 0.0));
    let put = toy.put((TOPIC.name(), 1), &checkpoint(positions[1])).await;
    put.expect("a toy without faults keeps places");
    let places = Arc::clone(&toy);
    let folds = Arc::new(Indifferent);
    match within(run(Arc::clone(&log), places, folds, options(), CancellationToken::new())).await {
        Ended::Halted { partition, failure: Failure::NotApplied(cause) } => {
            assert_eq!((partition, cause.kind), (Some(at(1)), CauseKind::Corrupt));
        }
        ended => panic!("{ended}"),
    }
}

/// A log that holds another record at the checkpoint's position halts the driver.
pub async fn a_changed_log_halts(harness: &dyn Harness) {
    halts(harness, |position| Checkpoint { position, digest: Digest::of(b"other"), marks: Default::default() }).await;
}

/// A log that ends before the checkpoint halts the driver.
pub async fn a_checkpoint_beyond_the_log_halts(harness: &dyn Harness) {
    let beyond = |position: Position| Position::from_u64(position.as_u64() + 1_000);
    let checkpoint =
        |position| Checkpoint { position: beyond(position), digest: Digest::of(b"b"), marks: Default::default() };
    halts(harness, checkpoint).await;
}

/// A partition whose store fails is paused and says so; the others go on; stopping does not wait for it.
pub async fn a_stuck_partition_holds_up_no_other(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    append_names(&*log).await;
    let mut toy = Toy::new(0, 0.0);
    toy.stuck = Some(2);
    let toy = Arc::new(toy);
    let stop = CancellationToken::new();
    let following = async {
        let mut progress = toy.progress.subscribe();
        within(progress.wait_for(|(rows, _)| *rows == 3 * NAMES)).await.expect("the toy outlives its watchers");
        some_effects(&toy, 1).await;
        assert_eq!(lock(&toy.paused).iter().copied().collect::<Vec<_>>(), [2]);
        stop.cancel();
    };
    let (ended, ()) = within(async { futures::join!(drive(&log, &toy, stop.clone()), following) }).await;
    assert!(matches!(ended, Ended::Stopped), "{ended}");
    assert!(toy.names(2).is_empty());
}

/// A partition that waits, for its checkpoint or its fold, and is taken away waits no more.
pub async fn a_partition_that_moves_away_waits_no_more(harness: &dyn Harness) {
    for places in [true, false] {
        let log = harness.fresh().await.log();
        let stuck = Arc::new(Stuck { places, waiting: watch::Sender::new(BTreeSet::new()) });
        let mut waiting = stuck.waiting.subscribe();
        let stop = CancellationToken::new();
        let driving = run(Arc::clone(&log), Arc::clone(&stuck) as _, Arc::clone(&stuck), options(), stop.clone());
        let moving = async {
            within(waiting.wait_for(|waiting| waiting.len() == 4)).await.expect("the sender outlives its watchers");
            let mut other = Follower::join(&*log, options().group, TOPIC, Start::Oldest).await;
            other.until_held(2).await;
            let held = other.held.keys().copied().collect::<BTreeSet<_>>();
            let moved = |waiting: &BTreeSet<u32>| waiting.is_disjoint(&held) && waiting.len() == 2;
            within(waiting.wait_for(moved)).await.expect("the sender outlives its watchers");
            stop.cancel();
        };
        let (ended, ()) = within(async { futures::join!(driving, moving) }).await;
        assert!(matches!(ended, Ended::Stopped), "{ended}");
    }
}

/// Keeps every partition waiting, and knows which do: for its checkpoint if `places`, else for its fold.
struct Stuck {
    places: bool,
    waiting: watch::Sender<BTreeSet<u32>>,
}

fn stuck() -> Failure {
    Failure::NotApplied(Cause::unavailable("stuck"))
}

#[async_trait::async_trait]
impl wardline_store::Checkpoints for Stuck {
    async fn put(&self, _: PartitionName, _: &Checkpoint) -> Result<(), Failure> {
        Err(stuck())
    }

    async fn get(&self, _: PartitionName) -> Result<Option<Checkpoint>, Failure> {
        if self.places { Err(stuck()) } else { Ok(None) }
    }

    async fn flush(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait::async_trait]
impl crate::fold::Folds for Stuck {
    type Fold = Indifferent;

    async fn assigned(&self, _: u32, _: Option<&Checkpoint>, _: crate::seam::Started) -> Result<Indifferent, Failure> {
        Err(stuck())
    }

    fn watch(&self) -> &dyn Watch {
        self
    }
}

impl Watch for Stuck {
    fn following(&self, _: bool) {}

    fn paused(&self, partition: u32, _: &Failure) {
        self.waiting.send_if_modified(|waiting| waiting.insert(partition));
    }

    fn resumed(&self, partition: u32) {
        self.waiting.send_if_modified(|waiting| waiting.remove(&partition));
    }
}

/// A checkpoint that another member moved on and trimmed behind, after it was read and before the start, is read again: no
/// fold begins where the records that follow are gone.
pub async fn a_checkpoint_that_was_overtaken_is_read_again(harness: &dyn Harness) {
    let subject = harness.fresh().await;
    if !subject.promises().trims {
        return;
    }
    let log = subject.log();
    let positions = append(&*log, at(0), &["a", "b", "c", "d"]).await;
    let place = |nth: usize| Checkpoint {
        position: positions[nth],
        digest: Digest::of(["a", "b", "c", "d"][nth].as_bytes()),
        marks: Default::default(),
    };
    let overtaken = Arc::new(Overtaken {
        log: Arc::clone(&log),
        first: place(0),
        second: place(2),
        trimmed: positions[1],
        read: AtomicBool::new(false),
        begun: watch::Sender::new(None),
    });
    let mut begun = overtaken.begun.subscribe();
    let stop = CancellationToken::new();
    let driving = run(log, Arc::clone(&overtaken) as _, Arc::clone(&overtaken), options(), stop.clone());
    let watching = async {
        let begun = *within(begun.wait_for(Option::is_some)).await.expect("the sender outlives its watchers");
        stop.cancel();
        begun
    };
    let (ended, begun) = within(async { futures::join!(driving, watching) }).await;
    assert!(matches!(ended, Ended::Stopped), "{ended}");
    assert_eq!(begun, Some(positions[2]));
}

/// Another member moves on from the first place to the second, and trims, just after partition 0's was read.
struct Overtaken {
    log: Arc<dyn EventLog>,
    first: Checkpoint,
    second: Checkpoint,
    trimmed: Position,
    read: AtomicBool,
    /// Where partition 0's fold began.
    begun: watch::Sender<Option<Position>>,
}

#[async_trait::async_trait]
impl wardline_store::Checkpoints for Overtaken {
    async fn put(&self, _: PartitionName, _: &Checkpoint) -> Result<(), Failure> {
        Ok(())
    }

    async fn get(&self, (_, index): PartitionName) -> Result<Option<Checkpoint>, Failure> {
        if index != 0 {
            return Ok(None);
        }
        if self.read.swap(true, Ordering::SeqCst) {
            return Ok(Some(self.second.clone()));
        }
        self.log.trim(at(0), self.trimmed).await?;
        Ok(Some(self.first.clone()))
    }

    async fn flush(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait::async_trait]
impl crate::fold::Folds for Overtaken {
    type Fold = Indifferent;

    async fn assigned(
        &self,
        partition: u32,
        checkpoint: Option<&Checkpoint>,
        _: crate::seam::Started,
    ) -> Result<Indifferent, Failure> {
        if partition == 0 {
            self.begun.send_replace(checkpoint.map(|checkpoint| checkpoint.position));
        }
        Ok(Indifferent)
    }
}

/// A fold that does nothing, for laws in which none is asked to.
struct Indifferent;

#[async_trait::async_trait]
impl crate::fold::Folds for Indifferent {
    type Fold = Self;

    async fn assigned(&self, _: u32, _: Option<&Checkpoint>, _: crate::seam::Started) -> Result<Self, Failure> {
        Ok(Self)
    }
}

#[async_trait::async_trait]
impl crate::fold::Fold for Indifferent {
    type Effects = ();

    async fn apply(&mut self, _: &[crate::seam::LogRecord]) -> Result<(), Failure> {
        Ok(())
    }

    async fn effects(&mut self, (): &()) -> Result<(), Failure> {
        Ok(())
    }
}

/// A log that is away, at the start or later, is told to the role and asked again; all is folded when it is back, and the role
/// hears that it is back although nothing new comes.
pub async fn a_log_that_goes_away_is_told_and_waited_for(harness: &dyn Harness) {
    let subject = harness.fresh().await;
    append(&*subject.log(), at(0), &["one"]).await;
    let faulty = Faulty::new(subject.log(), 0, Faults::NONE);
    let away = faulty.switch();
    let log: Arc<dyn EventLog> = Arc::new(faulty);
    let toy = Arc::new(Toy::new(0, 0.0));
    let (mut told, mut progress) = (toy.following.subscribe(), toy.progress.subscribe());
    let stop = CancellationToken::new();
    away.away(true);
    let outages = async {
        assert!(!*told.borrow(), "it follows nothing yet");
        away.away(false);
        within(progress.wait_for(|(rows, _)| *rows == 1)).await.expect("the toy outlives its watchers");
        within(told.wait_for(|told| *told)).await.expect("the toy outlives its watchers");
        away.away(true);
        within(told.wait_for(|told| !*told)).await.expect("the toy outlives its watchers");
        away.away(false);
        within(told.wait_for(|told| *told)).await.expect("the toy outlives its watchers");
        append(&*log, at(0), &["two"]).await;
        within(progress.wait_for(|(rows, _)| *rows == 2)).await.expect("the toy outlives its watchers");
        stop.cancel();
    };
    let (ended, ()) = futures::join!(drive(&log, &toy, stop.clone()), outages);
    assert!(matches!(ended, Ended::Stopped), "{ended}");
}
