//! Fetches the partitions that were started, from where they were started.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use wardline_domain::{Failure, Position};
use wardline_log::{Start, Started};

use super::Source;
use super::inbox::{Inbox, Term};
use crate::context;
use crate::failure::{corrupt, not_applied, unavailable};
use crate::measures;
use crate::options::{Options, TOPIC_MESSAGE_BYTES};

/// How long a broker may take to tell a partition's extent. Health learns no later that it does not.
const ASK: Duration = Duration::from_secs(5);

/// How long until a broker is asked again that does not lead a partition, or does not know of it yet.
const LEADER_PAUSE: Duration = Duration::from_millis(50);

/// What a partition's queue holds at least, whatever its share of the budget: smaller fetches cost more than they save.
const LEAST_QUEUE_BYTES: u32 = 256 << 10;

pub(super) struct Fetcher {
    source: Source,
    inbox: Arc<Inbox>,
    consumer: Arc<BaseConsumer<Watching>>,
    assigned: Mutex<Assigned>,
}

#[derive(Default)]
struct Assigned {
    partitions: BTreeSet<u32>,
    /// Counts each partition's starts: of one that was cancelled nothing must come after the next one.
    turns: BTreeMap<u32, u64>,
}

/// What is configured of consumers in common.
pub(super) fn settings(options: &Options) -> ClientConfig {
    let mut config = options.client();
    config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        // A silent broker is noticed after this.
        .set("socket.timeout.ms", "6000")
        .set("api.version.request.timeout.ms", "6000");
    config
}

fn fetching(options: &Options, source: &Source) -> ClientConfig {
    let share = (options.prefetch_bytes / source.partitions.max(1)).max(LEAST_QUEUE_BYTES);
    let mut config = settings(options);
    config
        // librdkafka wants a name though it never joins.
        .set("group.id", format!("{}.fetch", options.prefix))
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", (share >> 10).to_string())
        .set("queued.min.messages", "10000")
        .set("fetch.message.max.bytes", share.min(1 << 20).to_string())
        .set("fetch.max.bytes", (4 * TOPIC_MESSAGE_BYTES).to_string())
        // A partition that is started waits for the fetch that is under way.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        .set("statistics.interval.ms", "5000");
    config
}

impl Fetcher {
    pub(super) fn connect(options: &Options, source: Source, inbox: Arc<Inbox>) -> Result<Self, Failure> {
        let watching = Watching { source: source.clone(), inbox: Arc::clone(&inbox), down: AtomicBool::new(false) };
        let consumer = BaseConsumer::from_config_and_context(&fetching(options, &source), watching)
            .map_err(|error| corrupt(format!("librdkafka refuses its settings: {error}")))?;
        Ok(Self { source, inbox, consumer: Arc::new(consumer), assigned: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Assigned> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn consumer(&self) -> &BaseConsumer<Watching> {
        &self.consumer
    }

    /// A partition's own queue.
    pub(super) fn split(&self, index: u32) -> Result<PartitionQueue<Watching>, Failure> {
        let queue = self.consumer.split_partition_queue(&self.source.name, native(index)?);
        queue.ok_or_else(|| unavailable("librdkafka has no queue for the partition"))
    }

    /// The number of a start, which makes those before it void.
    pub(super) fn next_turn(&self, index: u32) -> u64 {
        let mut assigned = self.lock();
        let turn = assigned.turns.entry(index).or_default();
        *turn += 1;
        *turn
    }

    /// Fetches a partition from there, if it is still held under that term. Blocks while the broker is asked.
    pub(super) fn begin(&self, index: u32, (term, turn): (Term, u64), from: Start) -> Result<Started, Failure> {
        let extent = self.extent(index)?;
        let at = match from {
            Start::Oldest => None,
            Start::Newest => Some(extent.end),
            Start::At(position) => self.place(index, position, extent)?,
        };
        let mut assigned = self.lock();
        if self.inbox.term(index) != Some(term) || assigned.turns.get(&index) != Some(&turn) {
            return Err(unavailable("the partition was taken away, or started again"));
        }
        let failed = |error| not_applied(&error);
        if assigned.partitions.remove(&index) {
            self.consumer.incremental_unassign(&self.list(index, Offset::Invalid)?).map_err(failed)?;
        }
        let offset = at.and_then(|at| i64::try_from(at).ok()).map_or(Offset::Beginning, Offset::Offset);
        self.consumer.incremental_assign(&self.list(index, offset)?).map_err(failed)?;
        assigned.partitions.insert(index);
        self.inbox.begin(index, at.unwrap_or(extent.oldest));
        let oldest = (extent.oldest < extent.end).then_some(extent.oldest);
        Ok(Started { oldest: oldest.map(|oldest| self.position(oldest)).transpose()?, end: self.position(extent.end)? })
    }

    /// Fetches a partition no more.
    pub(super) fn release(&self, index: u32) {
        let mut assigned = self.lock();
        if !assigned.partitions.remove(&index) {
            return;
        }
        let released = self
            .list(index, Offset::Invalid)
            .and_then(|list| self.consumer.incremental_unassign(&list).map_err(|error| not_applied(&error)));
        if let Err(failure) = released {
            tracing::warn!(topic = self.source.name, partition = index, %failure, "cannot end fetching");
        }
    }

    /// Asks again while the partition's leader changes.
    fn extent(&self, index: u32) -> Result<Extent, Failure> {
        let (partition, deadline) = (native(index)?, Instant::now() + ASK);
        let (low, high) = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.consumer.fetch_watermarks(&self.source.name, partition, left) {
                Ok(extent) => break extent,
                Err(error) if is_of_leader(&error) && left > LEADER_PAUSE => std::thread::sleep(LEADER_PAUSE),
                Err(error) => return Err(not_applied(&error)),
            }
        };
        let offset = |offset| u64::try_from(offset).map_err(|_| unavailable("the broker told no extent"));
        Ok(Extent { oldest: offset(low)?, end: offset(high)? })
    }

    /// The offset to begin at, `None` for the oldest.
    fn place(&self, index: u32, at: Position, extent: Extent) -> Result<Option<u64>, Failure> {
        let Source { name, incarnation, .. } = &self.source;
        match at.incarnation().cmp(incarnation) {
            // It was made on the log before this one: of this one, nothing is read yet.
            std::cmp::Ordering::Less => Ok(None),
            std::cmp::Ordering::Greater => Err(corrupt(format!(
                "the start {at} is of incarnation {} and topic {name} is configured with {incarnation}: configure the \
                 incarnation that the store's checkpoints were made with, or restore the store that belongs to this log",
                at.incarnation()
            ))),
            std::cmp::Ordering::Equal if at.offset() > extent.end => Err(corrupt(format!(
                "topic {name} partition {index} ends at {} and the start {at} lies beyond: the log was cut or created anew. \
                 Restore it, or raise the topic's incarnation to read what is there from its beginning",
                extent.end
            ))),
            std::cmp::Ordering::Equal => Ok((at.offset() > extent.oldest).then_some(at.offset())),
        }
    }

    fn position(&self, offset: u64) -> Result<Position, Failure> {
        Position::new(self.source.incarnation, offset)
            .ok_or_else(|| corrupt(format!("topic {} has an offset beyond 2^40", self.source.name)))
    }

    fn list(&self, index: u32, offset: Offset) -> Result<TopicPartitionList, Failure> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.source.name, native(index)?, offset).map_err(|error| not_applied(&error))?;
        Ok(list)
    }
}

/// Whether it passes when the partition has its leader, as it does not just after a topic was created or a broker went.
fn is_of_leader(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{FencedLeaderEpoch, LeaderNotAvailable, NotLeaderForPartition, UnknownLeaderEpoch};
    let transient = [LeaderNotAvailable, NotLeaderForPartition, FencedLeaderEpoch, UnknownLeaderEpoch];
    error.rdkafka_error_code().is_some_and(|code| transient.contains(&code))
}

/// What a partition holds: from the oldest to below the end.
#[derive(Clone, Copy)]
struct Extent {
    oldest: u64,
    end: u64,
}

/// As librdkafka numbers partitions.
pub(super) fn native(index: u32) -> Result<i32, Failure> {
    i32::try_from(index).map_err(|_| corrupt("the topic has no such partition"))
}

/// What the fetcher's client tells.
pub(super) struct Watching {
    source: Source,
    inbox: Arc<Inbox>,
    down: AtomicBool,
}

impl Watching {
    /// Whether no broker could be reached when it was last tried.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    pub(super) fn is_up_again(&self) {
        self.down.store(false, Ordering::Relaxed);
    }
}

impl ClientContext for Watching {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.down.store(true, Ordering::Relaxed);
        }
        context::trouble(&error, reason);
    }

    /// The lag of each partition that is held: what it ends at, as the last fetch told, less what is done.
    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.source.name) else { return };
        for (index, done) in self.inbox.places() {
            let told = i32::try_from(index).ok().and_then(|index| topic.partitions.get(&index));
            let Some(end) = told.and_then(|partition| u64::try_from(partition.hi_offset).ok()) else { continue };
            self.source.lag(index, end.saturating_sub(done));
        }
    }
}

impl ConsumerContext for Watching {}

impl Source {
    /// Records of a partition that are appended and not done.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn lag(&self, index: u32, records: u64) {
        let (topic, partition) = (self.topic.name(), index.to_string());
        metrics::gauge!(measures::LAG, "topic" => topic, "group" => self.group, "partition" => partition)
            .set(records as f64);
    }
}
