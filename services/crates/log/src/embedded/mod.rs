//! The embedded engine: every topic in one fjall database, written by one thread.
//!
//! The writer takes all queued appends, commits them as one batch with one sync, then makes them visible and answers. A torn
//! tail is cut at open ([`journal`]); a write or a sync that fails ends the process ([`fatal`]).
//!
//! Deliberately absent: retries of a failed write (what it left behind cannot be known), partitions that change their number,
//! several processes on one directory.

mod encoding;
mod environment;
mod fatal;
mod groups;
mod journal;
mod layout;
mod queue;
mod shelf;
mod subscription;
mod writer;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Cause, Failure, Position};

pub use self::environment::{Environment, Retention};
use self::groups::Groups;
use self::layout::Layout;
use self::queue::{Answer, Queue, Request};
use self::shelf::Shelf;
use self::subscription::Reader;
use crate::seam::{Appended, EventLog, FetchLimits, Group, NewRecord, Permit, Refused, Subscription};
use crate::topic::{Partition, Topic};

/// The incarnation of every embedded topic: they are never re-created.
const INCARNATION: u32 = 1;

/// How the embedded log is laid out. The partition counts are recorded at creation and verified at every open.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files lie.
    pub dir: PathBuf,
    /// Partitions of `conversations`.
    pub conversations: PartitionCount,
    /// Partitions of `feeds`.
    pub feeds: PartitionCount,
    /// Partitions of `receipts`.
    pub receipts: PartitionCount,
    /// Bytes that may wait for durability.
    pub budget_bytes: u32,
}

impl Options {
    /// A small log for one process: 4 partitions of `conversations` and `feeds`, 2 of `receipts`, 64 MiB may wait.
    pub fn small(dir: &Path) -> Self {
        let count = |n| PartitionCount::new(n).expect("4 and 2 are powers of two");
        Self {
            dir: dir.to_owned(),
            conversations: count(4),
            feeds: count(4),
            receipts: count(2),
            budget_bytes: 64 << 20,
        }
    }

    fn count(&self, topic: Topic) -> PartitionCount {
        match topic {
            Topic::Conversations => self.conversations,
            Topic::Feeds => self.feeds,
            Topic::Receipts => self.receipts,
            Topic::Directory | Topic::Audit | Topic::DeadLetters => {
                PartitionCount::new(1).expect("1 is a power of two")
            }
        }
    }
}

/// Opens, or creates, the log. A failed sync ends the process with a clear message: what it left behind cannot be known.
///
/// Fails `NotApplied` with cause `Corrupt` when the directory holds a log of other partition counts or one damaged before its
/// tail, with `Unavailable` when another process holds it.
pub async fn open(options: Options) -> Result<Arc<dyn EventLog>, Failure> {
    open_in(options, Environment::default()).await
}

/// [`open`] with the clock, the retention and the end of the process as parameters.
pub async fn open_in(options: Options, environment: Environment) -> Result<Arc<dyn EventLog>, Failure> {
    let opened = tokio::task::spawn_blocking(move || Embedded::open(&options, environment)).await;
    match opened {
        Ok(Ok(log)) => Ok(Arc::new(log)),
        Ok(Err(failure)) => Err(failure),
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

/// What the log, its writer and its subscriptions share.
struct Shared {
    options: Options,
    layout: Layout,
    queue: Queue,
    groups: Groups,
    shelves: Vec<Vec<Shelf>>,
}

impl Shared {
    fn shelf(&self, partition: Partition) -> Option<&Shelf> {
        self.shelves.get(topic_index(partition.topic))?.get(partition.index as usize)
    }
}

struct Embedded {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    fn open(options: &Options, environment: Environment) -> Result<Self, Failure> {
        let layout = Layout::open(options)?;
        let mut shelves = Vec::new();
        for topic in Topic::ALL {
            let of_topic: Result<Vec<_>, _> = (0..options.count(topic).get())
                .map(|index| layout.recover(Partition { topic, index }, environment.tail_bytes))
                .collect();
            shelves.push(of_topic?);
        }
        let index = layout.compaction_index(options)?;
        let shared = Arc::new(Shared {
            options: options.clone(),
            layout,
            queue: Queue::new(options.budget_bytes),
            groups: Groups::new(),
            shelves,
        });
        let writer = writer::spawn(Arc::clone(&shared), environment, index)?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)) })
    }
}

impl Drop for Embedded {
    /// Waits for what was accepted, so that the directory can be opened again.
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = lock(&self.writer).take() {
            // A writer that panicked has already ended the process's log; there is nobody to tell.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl EventLog for Embedded {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        self.shared.options.count(topic)
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        self.shared.queue.reserve(bytes)
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        if self.shared.shelf(to).is_none() {
            return futures::future::ready(Err(no_such_partition())).boxed();
        }
        let (answer, answered) = tokio::sync::oneshot::channel();
        match self.shared.queue.push(Request::Append { to, batch, permit, answer }) {
            Ok(()) => wait(answered).boxed(),
            Err(closed) => futures::future::ready(Err(closed)).boxed(),
        }
    }

    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure> {
        Ok(Box::new(Reader::join(Arc::clone(&self.shared), group, topic, limits)))
    }

    async fn trim(&self, partition: Partition, through: Position) -> Result<(), Failure> {
        if self.shared.shelf(partition).is_none() {
            return Err(no_such_partition());
        }
        let floor = offset_at_or_above(through).saturating_add(u64::from(through.incarnation() == INCARNATION));
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.shared.queue.push(Request::Trim { partition, floor, answer })?;
        wait(answered).await
    }

    async fn close(&self, deadline: Instant) -> Result<(), Failure> {
        self.shared.queue.close();
        let drained = tokio::time::timeout_at(deadline, self.shared.queue.drained()).await;
        self.shared.groups.wake_all();
        drained.map_err(|_| Failure::Unknown(Cause::timeout("the log did not drain before the deadline")))
    }
}

async fn wait<T>(answered: tokio::sync::oneshot::Receiver<Answer<T>>) -> Answer<T> {
    answered.await.unwrap_or_else(|_| Err(Failure::Unknown(Cause::unavailable("the log's writer ended"))))
}

fn no_such_partition() -> Failure {
    Failure::NotApplied(Cause::corrupt("the topic has no such partition"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn topic_index(topic: Topic) -> usize {
    topic.number() as usize - 1
}

fn position(offset: u64) -> Position {
    Position::new(INCARNATION, offset).expect("2^40 records a partition are not reached in the life of a disk")
}

/// The offset in this incarnation at or above a position: 0 for an older incarnation, none above for a newer.
fn offset_at_or_above(position: Position) -> u64 {
    match position.incarnation().cmp(&INCARNATION) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => position.offset(),
        std::cmp::Ordering::Greater => u64::MAX,
    }
}
