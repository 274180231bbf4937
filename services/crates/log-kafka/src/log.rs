//! The engine: appends through `producer`, follows through `subscription`.

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio::time::Instant;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Cause, Failure, Position};
use wardline_log::{
    Appended, EventLog, FetchLimits, Group, NewRecord, Partition, Permit, Refused, Subscription, Topic,
};

use crate::budget::Budget;
use crate::failure::{blocking, corrupt};
use crate::measures;
use crate::options::{Environment, Options};
use crate::producer::{self, Lane, Producer};
use crate::subscription::{Leaving, Reader};
use crate::topics;

/// Opens the log, having verified that its topics are there and are what is configured.
///
/// # Errors
/// `NotApplied` with cause `Corrupt` when the configuration or the topics are not what they must be, with text that says what to
/// do; with `Unavailable` or `Timeout` when the brokers do not answer.
pub async fn open(options: Options) -> Result<Arc<dyn EventLog>, Failure> {
    open_in(options, Environment::default()).await
}

/// [`open`] with settings that stand for the engine's own. For tests.
///
/// # Errors
/// Those of [`open`].
pub async fn open_in(options: Options, environment: Environment) -> Result<Arc<dyn EventLog>, Failure> {
    options.check()?;
    topics::verify(&options).await?;
    let log = blocking(move || Kafka::start(options, environment)).await?;
    Ok(Arc::new(log))
}

struct Kafka {
    options: Arc<Options>,
    budget: Arc<Budget>,
    producer: Producer,
    /// Of each topic, a lane for each partition.
    lanes: Vec<Vec<Arc<Lane>>>,
    leaving: Leaving,
}

impl Kafka {
    fn start(options: Options, environment: Environment) -> Result<Self, Failure> {
        let mut settings = producer::settings(&options);
        for (key, value) in environment.producer {
            settings.set(key, value);
        }
        let budget = Arc::new(Budget::new(options.budget_bytes));
        let gauged = Arc::clone(&budget);
        let producer = Producer::start(settings, move || {
            metrics::gauge!(measures::IN_FLIGHT).set(f64::from(gauged.used()));
        })?;
        let lanes = Topic::ALL.into_iter().map(|topic| lanes(&options, topic)).collect::<Result<_, _>>()?;
        Ok(Self { options: Arc::new(options), budget, producer, lanes, leaving: Leaving::default() })
    }

    fn send(
        &self,
        permit: Permit,
        to: Partition,
        batch: &[NewRecord],
    ) -> Result<tokio::sync::oneshot::Receiver<Result<Vec<Position>, Failure>>, Failure> {
        let lanes = self.lanes.get(topic_index(to.topic)).ok_or_else(no_such_partition)?;
        let lane = lanes.get(to.index as usize).ok_or_else(no_such_partition)?;
        self.producer.append(lane, batch, permit)
    }
}

fn lanes(options: &Options, topic: Topic) -> Result<Vec<Arc<Lane>>, Failure> {
    let (name, incarnation) = (Arc::from(options.topic_name(topic)), options.incarnations.of(topic));
    let lane = |index| {
        let partition = i32::try_from(index).map_err(|_| no_such_partition())?;
        Ok(Arc::new(Lane::new(Arc::clone(&name), partition, incarnation)))
    };
    (0..options.count(topic).get()).map(lane).collect()
}

#[async_trait]
impl EventLog for Kafka {
    fn partitions(&self, topic: Topic) -> PartitionCount {
        self.options.count(topic)
    }

    fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        if self.producer.is_closed() {
            return Err(Refused::Closed);
        }
        self.budget.reserve(bytes)
    }

    fn append(&self, permit: Permit, to: Partition, batch: Vec<NewRecord>) -> Appended {
        if batch.is_empty() {
            return futures::future::ready(Ok(Vec::new())).boxed();
        }
        match self.send(permit, to, &batch) {
            Ok(answered) => async move {
                let gone = Failure::Unknown(Cause::unavailable("the producer ended without an answer"));
                answered.await.unwrap_or(Err(gone))
            }
            .boxed(),
            Err(failure) => futures::future::ready(Err(failure)).boxed(),
        }
    }

    async fn subscribe(
        &self,
        group: Group,
        topic: Topic,
        limits: FetchLimits,
    ) -> Result<Box<dyn Subscription>, Failure> {
        let (options, leaving) = (Arc::clone(&self.options), self.leaving.clone());
        let reader = blocking(move || Reader::join(&options, group, topic, limits, leaving)).await?;
        Ok(Box::new(reader))
    }

    /// Kafka keeps records by time.
    async fn trim(&self, _partition: Partition, _through: Position) -> Result<(), Failure> {
        Ok(())
    }

    /// Also waits, until `deadline`, for subscriptions that were dropped before to have left their groups, so that their
    /// partitions are taken over at once.
    async fn close(&self, deadline: Instant) -> Result<(), Failure> {
        let closed = self.producer.close(deadline).await;
        // Whoever has not left in time is missed after the session timeout.
        let _ = tokio::time::timeout_at(deadline, self.leaving.wait()).await;
        closed
    }
}

fn no_such_partition() -> Failure {
    corrupt("the topic has no such partition")
}

fn topic_index(topic: Topic) -> usize {
    topic.number() as usize - 1
}
