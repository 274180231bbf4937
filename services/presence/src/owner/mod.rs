//! The owner of feeds partitions: single writer of its users' feeds, and the one that knows who is attached.
//!
//! The log alone decides who owns ([`tenure`]). The fold ([`fold`]) writes rows and publishes to [`partition`], which pushes
//! live events; each attachment has a place ([`attachment`]) and a task that catches it up ([`serve`]).
//!
//! Deliberately absent: devices' streams. They end at the edge.

pub(crate) mod attachment;
mod bodies;
pub(crate) mod fold;
mod frames;
pub(crate) mod keeper;
mod marks;
mod open;
mod partition;
pub(crate) mod reads;
mod receipts;
mod ring;
mod serve;
pub(crate) mod session;
mod tenure;

#[cfg(test)]
mod attachment_laws;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wardline_domain::{Position, UserId};
use wardline_log::{EventLog, Topic};
use wardline_proto::internal::v1::ConnectResponse;
use wardline_registry::Registry;
use wardline_runtime::Clock;
use wardline_runtime::members::Members;
use wardline_runtime::revocations::Revocations;
use wardline_runtime::trace;
use wardline_store::Stores;

use self::attachment::{Delivered, Sent};
use self::bodies::Bodies;
use self::partition::Partition;
use self::reads::Reads;
use self::receipts::Receipts;
use self::tenure::Instance;
use crate::measures::Messages;
use crate::options::Options;
use crate::{Deps, Health};

/// The span of an event's way to a device and of the acknowledgement's way back.
const DELIVERY: &str = "deliver";
/// How long the last receipts may take at the end.
const FLUSH_GRACE: Duration = Duration::from_secs(5);

/// What everything at the owner shares.
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) stores: Stores,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) members: Members,
    pub(crate) revocations: Revocations,
    pub(crate) clock: Clock,
    pub(crate) options: Options,
    pub(crate) instance: Instance,
    bodies: Bodies,
    receipts: Receipts,
    reads: Reads,
    partitions: Mutex<BTreeMap<u32, Owned>>,
    paused: Mutex<HashSet<u32>>,
    changed: Mutex<HashSet<UserId>>,
    serials: AtomicU64,
    reclaim: Notify,
    announce: Notify,
    health: watch::Sender<Health>,
    /// The queues of the links to edges, for the metrics.
    links: Mutex<Vec<mpsc::WeakSender<ConnectResponse>>>,
    pub(crate) messages: Messages,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// A partition assigned to this instance.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) partition: Arc<Partition>,
    claimed: Arc<Mutex<Claimed>>,
}

#[derive(Debug, Default)]
struct Claimed {
    at: Option<Instant>,
    served: bool,
    /// One is on its way. While the log takes none, no further one is begun.
    waiting: bool,
}

impl Owned {
    /// Whether to claim now: regularly, and at once when this instance has ceased to serve, but not in a tight loop.
    fn claim_due(&self, now: Instant, every: Duration, serving: bool) -> bool {
        let mut claimed = lock(&self.claimed);
        let pause = if claimed.served && !serving { every / 8 } else { every };
        let due = !claimed.waiting && claimed.at.is_none_or(|at| now.duration_since(at) >= pause);
        if due {
            claimed.at = Some(now);
            claimed.waiting = true;
        }
        due
    }

    /// The log has answered the claim, or never will.
    fn claim_answered(&self) {
        lock(&self.claimed).waiting = false;
    }
}

impl Shared {
    pub(crate) fn new(deps: &Deps, options: Options, health: watch::Sender<Health>) -> Self {
        let (limits, timings) = (options.limits.clone(), options.timings.clone());
        let feeds = Arc::clone(&deps.stores.feeds);
        let receipts = Receipts::new(Arc::clone(&deps.log), feeds, deps.clock.clone(), limits, timings);
        Self {
            log: Arc::clone(&deps.log),
            stores: deps.stores.clone(),
            registry: Arc::clone(&deps.registry),
            members: deps.members.clone(),
            revocations: deps.revocations.clone(),
            clock: deps.clock.clone(),
            options,
            instance: rand::random(),
            bodies: Bodies::new(deps.stores.clone()),
            receipts,
            reads: Reads::default(),
            partitions: Mutex::default(),
            paused: Mutex::default(),
            changed: Mutex::default(),
            serials: AtomicU64::new(1),
            reclaim: Notify::new(),
            announce: Notify::new(),
            health,
            links: Mutex::default(),
            messages: Messages::new(),
        }
    }

    /// The partition of a user's feed.
    pub(crate) fn feeds_partition(&self, user: UserId) -> u32 {
        self.log.partitions(Topic::Feeds).partition_of(user.as_bytes())
    }

    /// A partition assigned to this instance.
    pub(crate) fn partition(&self, index: u32) -> Option<Arc<Partition>> {
        lock(&self.partitions).get(&index).map(|owned| Arc::clone(&owned.partition))
    }

    /// The term of a partition that this instance serves.
    pub(crate) fn term(&self, index: u32) -> Option<Position> {
        self.partition(index)?.serving()
    }

    /// Gathers and flushes what devices report until `stop`, and checks their read marks.
    pub(crate) async fn report(&self, stop: CancellationToken) {
        tokio::join!(self.receipts.run(stop.clone(), FLUSH_GRACE), self.reads.run(self, stop));
    }

    /// Messages are safe on a device: the spans of their sending end, and go on in the names that are left in `sent`.
    pub(crate) fn acknowledged(&self, delivered: &mut [Delivered]) {
        let now = self.clock.now();
        for message in delivered {
            if let Some(accepted_at) = message.accepted_at {
                self.messages.acknowledged.record(now.since(accepted_at));
            }
            let passed = |sent: Sent| Some(Sent { from: trace::passed(DELIVERY, sent.from, sent.at)?, ..sent });
            message.sent = message.sent.and_then(passed);
        }
    }

    /// A link to an edge is up.
    fn linked(&self, queue: &mpsc::Sender<ConnectResponse>) {
        lock(&self.links).push(queue.downgrade());
    }

    /// Frames that wait on the links to edges.
    fn frames_waiting(&self) -> usize {
        let mut frames = 0;
        lock(&self.links).retain(|queue| {
            let queue = queue.upgrade();
            frames += queue.as_ref().map_or(0, |queue| queue.max_capacity() - queue.capacity());
            queue.is_some()
        });
        frames
    }

    fn owned(&self) -> Vec<Owned> {
        lock(&self.partitions).values().cloned().collect()
    }

    fn assigned(&self, index: u32, checkpoint: Option<Position>) -> Arc<Partition> {
        let (limits, timings) = (self.options.limits.clone(), self.options.timings.clone());
        let partition = Arc::new(Partition::new(index, self.instance, checkpoint, limits, timings));
        let owned = Owned { partition: Arc::clone(&partition), claimed: Arc::default() };
        if let Some(before) = lock(&self.partitions).insert(index, owned) {
            before.partition.end_all();
        }
        self.reclaim.notify_one();
        partition
    }

    fn revoked(&self, index: u32) {
        if let Some(owned) = lock(&self.partitions).remove(&index) {
            owned.partition.end_all();
        }
        self.paused(index, false);
    }

    /// Ends everything served here.
    pub(crate) fn end_all(&self) {
        for owned in std::mem::take(&mut *lock(&self.partitions)).into_values() {
            owned.partition.end_all();
        }
    }

    /// Whether a partition is served has been looked at: a new service is announced at once.
    fn served(&self, index: u32, serving: bool) {
        let partitions = lock(&self.partitions);
        let Some(owned) = partitions.get(&index) else { return };
        let mut claimed = lock(&owned.claimed);
        if serving && !claimed.served {
            self.announce.notify_one();
            tracing::info!(partition = index, "serving a feeds partition");
        }
        // Stays set when the service ends: the claim that follows is due sooner.
        claimed.served |= serving;
    }

    /// Healthy once every assigned partition has been served; `settled`: assignments have had their time.
    fn look(&self, settled: bool) {
        let partitions = lock(&self.partitions);
        let all = partitions.values().all(|owned| lock(&owned.claimed).served);
        let some = !partitions.is_empty();
        drop(partitions);
        self.tell_health(all && (some || settled));
    }

    fn paused(&self, index: u32, paused: bool) {
        let mut all = lock(&self.paused);
        if paused {
            all.insert(index);
        } else {
            all.remove(&index);
        }
        drop(all);
        self.tell_health(false);
    }

    fn tell_health(&self, serving: bool) {
        let paused = !lock(&self.paused).is_empty();
        self.health.send_if_modified(|health| {
            let next = match *health {
                Health::Draining => Health::Draining,
                Health::Starting if !serving => Health::Starting,
                _ if paused => Health::Paused,
                _ => Health::Serving,
            };
            std::mem::replace(health, next) != next
        });
    }

    fn changed(&self, user: UserId) {
        lock(&self.changed).insert(user);
    }

    fn take_changed(&self) -> HashSet<UserId> {
        std::mem::take(&mut *lock(&self.changed))
    }

    fn serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }
}

/// What is behind these locks is changed in one step each.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
