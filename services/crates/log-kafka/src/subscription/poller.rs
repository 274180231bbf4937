//! The thread of a subscription: serves the events of its clients, whatever the reader does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use wardline_domain::Failure;
use wardline_log::Group;

use super::fetcher::{Fetcher, native, settings};
use super::inbox::Inbox;
use super::{Leaving, Source};
use crate::context;
use crate::failure::{corrupt, unavailable};
use crate::measures;
use crate::options::Options;

/// How long it waits for events before it looks whether it must end.
const POLL: Duration = Duration::from_millis(25);

/// How often places are committed, for whoever watches the lag.
const COMMIT: Duration = Duration::from_secs(1);

/// How often brokers that were away are asked for, and how long they may take to answer.
const PROBE: Duration = Duration::from_secs(1);

/// How long they are away before the reader is told, and how long until it is told again.
const AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));

/// Starts it.
pub(super) fn spawn(
    options: &Options,
    group: Group,
    source: &Source,
    fetcher: Arc<Fetcher>,
    inbox: Arc<Inbox>,
    leaving: Leaving,
) -> Result<(), Failure> {
    let member = match group {
        Group::Everyone => None,
        Group::Named(name) => Some(join(options, name, source, &fetcher, &inbox)?),
    };
    let now = Instant::now();
    let poller = Poller { source: source.clone(), fetcher, member, inbox, committed: now, probed: now, outage: None };
    std::thread::Builder::new()
        .name("wardline-kafka-follow".to_owned())
        .spawn(move || {
            poller.run();
            leaving.end();
        })
        .map(drop)
        .map_err(unavailable)
}

fn join(
    options: &Options,
    group: &str,
    source: &Source,
    fetcher: &Arc<Fetcher>,
    inbox: &Arc<Inbox>,
) -> Result<BaseConsumer<Membership>, Failure> {
    let session = options.session_timeout.as_millis();
    let mut config = settings(options);
    config
        .set("group.id", format!("{}.{group}", options.prefix))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session.to_string())
        .set("heartbeat.interval.ms", (session / 4).max(1).to_string())
        // This thread polls whatever the reader does; the bound is for a process that stands still.
        .set("max.poll.interval.ms", session.max(300_000).to_string());
    let membership = Membership { source: source.clone(), fetcher: Arc::clone(fetcher), inbox: Arc::clone(inbox) };
    let refused = |error: KafkaError| corrupt(format!("librdkafka refuses its settings: {error}"));
    let member = BaseConsumer::from_config_and_context(&config, membership).map_err(refused)?;
    member.subscribe(&[&source.name]).map_err(refused)?;
    Ok(member)
}

struct Poller {
    source: Source,
    fetcher: Arc<Fetcher>,
    member: Option<BaseConsumer<Membership>>,
    inbox: Arc<Inbox>,
    committed: Instant,
    probed: Instant,
    outage: Option<Outage>,
}

/// No broker answers.
struct Outage {
    began: Instant,
    told: Option<Instant>,
}

impl Poller {
    /// Until the reader is gone. What is left is dropped here: the member leaves its group first.
    fn run(mut self) {
        while !self.inbox.is_over() {
            let (member, fetcher) = match &self.member {
                Some(member) => (member.poll(POLL), self.fetcher.consumer().poll(Duration::ZERO)),
                None => (None, self.fetcher.consumer().poll(POLL)),
            };
            // Neither is given messages here: those of a partition are in its own queue.
            for error in [member, fetcher].into_iter().flatten().filter_map(Result::err) {
                self.trouble(&error);
            }
            if self.committed.elapsed() >= COMMIT {
                self.commit();
            }
            self.probe();
        }
        self.commit();
        drop(self.member.take());
    }

    fn trouble(&self, error: &KafkaError) {
        count_error(&self.source, error);
        match error.rdkafka_error_code() {
            // They pass, or `probe` tells.
            Some(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut,
            ) => {}
            _ => self.inbox.fail(unavailable(error)),
        }
    }

    fn commit(&mut self) {
        let Some(member) = &self.member else { return };
        self.committed = Instant::now();
        let places = self.inbox.take_uncommitted();
        if places.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(places.len());
        for (index, offset) in places {
            let (Ok(partition), Ok(offset)) = (native(index), i64::try_from(offset)) else { continue };
            if let Err(error) = list.add_partition_offset(&self.source.name, partition, Offset::Offset(offset)) {
                tracing::debug!(%error, "cannot name a place");
            }
        }
        if let Err(error) = member.commit(&list, CommitMode::Async) {
            tracing::debug!(topic = self.source.name, %error, "cannot commit places");
        }
    }

    /// librdkafka says when the last broker goes and not when one comes back, so they are asked until one answers.
    fn probe(&mut self) {
        let watching = self.fetcher.consumer().context();
        if !watching.is_down() || self.probed.elapsed() < PROBE {
            return;
        }
        match self.fetcher.consumer().fetch_metadata(Some(&self.source.name), PROBE) {
            Ok(_) => {
                watching.is_up_again();
                self.outage = None;
                tracing::info!(topic = self.source.name, "brokers answer again");
            }
            Err(error) => {
                let outage = self.outage.get_or_insert_with(|| Outage { began: Instant::now(), told: None });
                let due = outage.told.is_none_or(|told| told.elapsed() >= AWAY.1);
                if due && outage.began.elapsed() >= AWAY.0 {
                    outage.told = Some(Instant::now());
                    self.inbox.fail(unavailable(format!("no broker answers: {error}")));
                }
            }
        }
        self.probed = Instant::now();
    }
}

/// What cannot be followed, by librdkafka's name for the reason.
pub(super) fn count_error(source: &Source, error: &KafkaError) {
    let reason = error.rdkafka_error_code().map_or_else(|| "Other".to_owned(), |code| format!("{code:?}"));
    metrics::counter!(measures::FETCH_ERRORS, "topic" => source.topic.name(), "reason" => reason).increment(1);
}

/// What the member's client tells.
struct Membership {
    source: Source,
    fetcher: Arc<Fetcher>,
    inbox: Arc<Inbox>,
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        context::trouble(&error, reason);
    }
}

impl ConsumerContext for Membership {
    /// The group goes on when the change is acknowledged. The acknowledgement names no partitions, so this client fetches none.
    fn rebalance(&self, member: &BaseConsumer<Self>, change: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let elements = partitions.elements_for_topic(&self.source.name);
        let indexes = elements.iter().filter_map(|element| u32::try_from(element.partition()).ok());
        let none = TopicPartitionList::new();
        let acknowledged = if change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            indexes.for_each(|index| self.inbox.assign(index));
            member.incremental_assign(&none)
        } else {
            for index in indexes {
                // Nothing of it is given out any more when its next owner is told.
                self.inbox.revoke(index);
                self.fetcher.release(index);
                self.source.lag(index, 0);
            }
            member.incremental_unassign(&none)
        };
        if let Err(error) = acknowledged {
            tracing::error!(topic = self.source.name, %error, "cannot acknowledge a rebalance");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _places: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(topic = self.source.name, %error, "places were not committed");
        }
    }
}
