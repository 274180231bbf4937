//! One subscriber: membership and fetching apart.
//!
//! A subscription of a named group has two clients. The **member** joins the consumer group (cooperative-sticky) and fetches
//! nothing: it answers every rebalance with an empty assignment, so the group goes on at once, whatever the reader does. The
//! **fetcher** belongs to no group and has its partitions assigned by hand, each with an explicit offset, when the reader
//! starts it. To start again is to unassign and assign: librdkafka then drops what it had fetched before (`seek` fails on a
//! partition that was assigned just now, and a rebalance of the same client would race with it). A subscriber of everything
//! has a fetcher only.
//!
//! Each partition has its own queue in librdkafka, from which [`Reader::next`] takes: a partition that is paused, or is not
//! started, is simply not taken from, its queue fills up to its share of the prefetch budget, and holds up no other. Nothing is
//! fetched twice for a pause.
//!
//! One thread a subscription serves both clients' events, so that membership never waits for the reader.
//!
//! A partition that is taken away gives out nothing from that moment, before its next owner is told.
//!
//! Deliberately absent: Kafka's stored offsets as a place to begin. They are committed for whoever watches the lag, and begin
//! nothing.

mod decode;
mod fetcher;
mod inbox;
mod poller;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;
use wardline_domain::{Failure, Position};
use wardline_log::{Event, FetchLimits, Group, LogRecord, Start, Started, Subscription, Topic};

use self::fetcher::{Fetcher, Watching};
use self::inbox::{Change, Inbox, Term};
use crate::failure::{blocking, corrupt, not_applied, unavailable};
use crate::options::Options;

/// What is followed.
#[derive(Clone)]
struct Source {
    topic: Topic,
    /// Its name on the cluster.
    name: String,
    incarnation: u32,
    partitions: u32,
    /// Stands in metrics.
    group: &'static str,
}

/// Counts the subscriptions that were dropped and have not left their group yet.
#[derive(Clone, Default)]
pub(crate) struct Leaving(Arc<watch::Sender<usize>>);

impl Leaving {
    fn begin(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    fn end(&self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }

    pub(crate) async fn wait(&self) {
        // The sender is a field of self, so it cannot be gone.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A partition that was started.
struct Cursor {
    term: Term,
    paused: bool,
    /// Taken from the queue, and too large for the batch before.
    held: Option<LogRecord>,
    /// Told when what came before is given out.
    failure: Option<Failure>,
}

pub(crate) struct Reader {
    source: Source,
    limits: FetchLimits,
    inbox: Arc<Inbox>,
    /// `None` only while it is dropped.
    fetcher: Option<Arc<Fetcher>>,
    queues: BTreeMap<u32, PartitionQueue<Watching>>,
    cursors: BTreeMap<u32, Cursor>,
    /// The partition that gave last: the others go first.
    last: u32,
    leaving: Leaving,
}

impl Reader {
    /// Blocks for a moment: clients start threads.
    pub(crate) fn join(
        options: &Options,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
        leaving: Leaving,
    ) -> Result<Self, Failure> {
        let source = Source {
            topic,
            name: options.topic_name(topic),
            incarnation: options.incarnations.of(topic),
            partitions: options.count(topic).get(),
            group: match group {
                Group::Named(name) => name,
                Group::Everyone => "everyone",
            },
        };
        let inbox = Arc::new(Inbox::default());
        let fetcher = Arc::new(Fetcher::connect(options, source.clone(), Arc::clone(&inbox))?);
        poller::spawn(options, group, &source, Arc::clone(&fetcher), Arc::clone(&inbox), leaving.clone())?;
        if group == Group::Everyone {
            (0..source.partitions).for_each(|index| inbox.assign(index));
        }
        Ok(Self {
            source,
            limits,
            inbox,
            fetcher: Some(fetcher),
            queues: BTreeMap::new(),
            cursors: BTreeMap::new(),
            last: u32::MAX,
            leaving,
        })
    }

    /// The next batch that was fetched. What is taken from a queue is given out or kept, never lost.
    fn read(&mut self) -> Option<Result<Event, Failure>> {
        for index in self.inbox.ready_after(self.last) {
            if let Some(event) = self.read_partition(index) {
                self.last = index;
                return Some(event);
            }
        }
        None
    }

    fn read_partition(&mut self, index: u32) -> Option<Result<Event, Failure>> {
        let (cursor, queue) = (self.cursors.get_mut(&index)?, self.queues.get(&index)?);
        if cursor.paused || self.inbox.term(index) != Some(cursor.term) {
            return None;
        }
        // Before the look: what comes in meanwhile says so again.
        self.inbox.unready(index);
        let (records, left) = take(&self.source, self.limits, index, cursor, queue);
        if left {
            self.inbox.still_ready(index);
        }
        // It may have moved to another member meanwhile.
        if self.inbox.term(index) != Some(cursor.term) {
            return None;
        }
        if !records.is_empty() {
            return Some(Ok(Event::Records { partition: index, records }));
        }
        cursor.failure.take().map(Err)
    }

    fn told(&mut self, change: Change) -> Event {
        match change {
            Change::Assigned(index) => {
                self.cursors.remove(&index);
                Event::Assigned(index)
            }
            Change::Revoked(index) => {
                self.cursors.remove(&index);
                // It is unassigned by now, so this frees what it had fetched.
                while self.queues.get(&index).is_some_and(|queue| queue.poll(Duration::ZERO).is_some()) {}
                Event::Revoked(index)
            }
        }
    }

    /// The partition's own queue. Made before the partition is first assigned, so that nothing of it goes elsewhere.
    fn split(&mut self, index: u32) -> Result<(), Failure> {
        if self.queues.contains_key(&index) {
            return Ok(());
        }
        let fetcher = self.fetcher.as_ref().ok_or_else(|| unavailable("the subscription is ending"))?;
        let mut queue = fetcher.split(index)?;
        let inbox = Arc::clone(&self.inbox);
        queue.set_nonempty_callback(move || inbox.ready(index));
        self.queues.insert(index, queue);
        Ok(())
    }
}

/// Takes a batch from a partition's queue, and says whether something may be left.
fn take(
    source: &Source,
    limits: FetchLimits,
    index: u32,
    cursor: &mut Cursor,
    queue: &PartitionQueue<Watching>,
) -> (Vec<LogRecord>, bool) {
    let (mut records, mut bytes) = (Vec::new(), 0);
    while records.len() < limits.records.max(1) && cursor.failure.is_none() {
        let next = match cursor.held.take() {
            Some(held) => Some(Ok(held)),
            None => queue.poll(Duration::ZERO).map(|polled| match polled {
                Ok(message) => decode::record(source, &message),
                Err(error) => Err(fetch_failed(source, index, &error)),
            }),
        };
        match next {
            None => return (records, false),
            Some(Ok(record)) => {
                bytes += record.payload.len();
                if bytes > limits.bytes && !records.is_empty() {
                    cursor.held = Some(record);
                    break;
                }
                records.push(record);
            }
            Some(Err(failure)) => cursor.failure = Some(failure),
        }
    }
    (records, true)
}

fn fetch_failed(source: &Source, index: u32, error: &KafkaError) -> Failure {
    poller::count_error(source, error);
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => corrupt(format!(
            "topic {} does not hold partition {index}'s next record any more: retention removed it before it was read, or the \
             log was cut or created anew. Restore the log, or raise its incarnation, and start again",
            source.name
        )),
        // librdkafka goes on behind what it cannot read, so going on would leave it out.
        Some(RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::NotImplemented) => {
            corrupt(format!(
                "topic {} holds a batch in partition {index} that cannot be read: {error}. If it is whole on another replica, \
                 restore it from there; else raise the topic's incarnation after restoring the log",
                source.name
            ))
        }
        _ => not_applied(error),
    }
}

#[async_trait]
impl Subscription for Reader {
    async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(change) = self.inbox.take_change() {
                return Ok(self.told(change));
            }
            if let Some(event) = self.read() {
                return event;
            }
            if let Some(failure) = self.inbox.take_failure() {
                return Err(failure);
            }
            self.inbox.stirred.notified().await;
        }
    }

    /// A start that fails leaves the partition not started.
    async fn start(&mut self, partition: u32, from: Start) -> Result<Started, Failure> {
        self.cursors.remove(&partition);
        if partition >= self.source.partitions {
            return Err(corrupt("the topic has no such partition"));
        }
        let Some(term) = self.inbox.term(partition) else {
            return Err(unavailable("the partition is not assigned"));
        };
        self.split(partition)?;
        let fetcher = self.fetcher.clone().ok_or_else(|| unavailable("the subscription is ending"))?;
        let turn = fetcher.next_turn(partition);
        let started = blocking(move || fetcher.begin(partition, (term, turn), from)).await?;
        self.cursors.insert(partition, Cursor { term, paused: false, held: None, failure: None });
        self.inbox.ready(partition);
        Ok(started)
    }

    fn pause(&mut self, partition: u32) {
        if let Some(cursor) = self.cursors.get_mut(&partition) {
            cursor.paused = true;
        }
    }

    fn resume(&mut self, partition: u32) {
        if let Some(cursor) = self.cursors.get_mut(&partition) {
            cursor.paused = false;
            self.inbox.ready(partition);
        }
    }

    fn ack(&mut self, partition: u32, through: Position) {
        if through.incarnation() == self.source.incarnation {
            self.inbox.done(partition, through.offset() + 1);
        }
    }
}

impl Drop for Reader {
    /// Leaves the group in the background: the thread still holds the clients, so none of them ends here.
    fn drop(&mut self) {
        self.leaving.begin();
        self.cursors.clear();
        self.queues.clear();
        self.fetcher = None;
        self.inbox.end();
    }
}
