//! Revoked devices and deactivated users, folded from the compacted `directory` topic by every role that answers devices.
//!
//! Memory: one entry a revoked device or deactivated user of the deployment, for good (about 64 bytes; a million take
//! 64 MB); beside it a bounded cache of which sessions the registry was last seen not to have ended.
//!
//! Deliberately absent: a checkpoint. The topic is compacted and small; every start folds it from its oldest record.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use metrics::{gauge, histogram};
use prost::Message as _;
use quick_cache::sync::Cache;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use wardline_domain::{Cause, DeviceId, Failure, Position, Timestamp, UserId};
use wardline_log::fold::retry::passes;
use wardline_log::{Event, EventLog, FetchLimits, Group, LogRecord, Start, Subscription, Topic};
use wardline_proto::convert::{Violation, ids};
use wardline_proto::internal::v1::{DirectoryRecord, directory_record::Body};
use wardline_proto::reason::Reason;

use crate::Clock;
use crate::measures as names;
use crate::patience::Waiting;

/// How many ends a slow receiver may lag before it must check all it holds.
const ENDS_KEPT: usize = 1024;
/// How many sessions are remembered as not ended.
const SESSIONS_KEPT: usize = 65_536;
/// How long one look at the registry is believed.
pub(crate) const SESSION_SEEN_FOR: Duration = Duration::from_secs(5);

/// What the `directory` topic says so far. Cheap to clone.
#[derive(Clone)]
pub struct Revocations {
    shared: Arc<Shared>,
}

struct Shared {
    ended: RwLock<State>,
    ends: broadcast::Sender<Ended>,
    sessions: Cache<[u8; 16], (Timestamp, bool)>,
    current: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    devices: HashSet<(UserId, DeviceId)>,
    users: HashSet<UserId>,
    as_of: Option<Timestamp>,
}

/// A device or user whose access ended just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A device was revoked.
    Device(UserId, DeviceId),
    /// A user was deactivated.
    User(UserId),
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.ended.read().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Revocations({} devices, {} users)", state.devices.len(), state.users.len())
    }
}

impl Revocations {
    /// Follows the topic until `stop`. Answers once everything that was in the topic at the call has been folded, and waits for
    /// a log that is away as long as it takes.
    ///
    /// # Errors
    /// `Unavailable` when it was stopped first, `Corrupt` when the topic cannot be followed at all.
    pub async fn follow(log: Arc<dyn EventLog>, stop: CancellationToken) -> Result<Self, Failure> {
        let revocations = Self::empty();
        revocations.shared.current.send_replace(false);
        let follower = Follower { revocations: revocations.clone(), log, behind: HashMap::new(), unassigned: 0 };
        let mut current = revocations.current();
        let mut following = tokio::spawn(follower.run(stop));
        tokio::select! {
            _ = current.wait_for(|current| *current) => Ok(revocations),
            ended = &mut following => Err(match ended {
                Ok(Some(failure)) => failure,
                _ => Failure::NotApplied(Cause::unavailable("stopped before it caught up")),
            }),
        }
    }

    /// Whether all that the topic held when it was last begun is folded, and it can be followed; now and from now on.
    pub fn current(&self) -> watch::Receiver<bool> {
        self.shared.current.subscribe()
    }

    /// Nothing has ended, and nothing will: for servers without a log, and tests.
    pub fn empty() -> Self {
        let shared = Shared {
            ended: RwLock::default(),
            ends: broadcast::channel(ENDS_KEPT).0,
            sessions: Cache::new(SESSIONS_KEPT),
            current: watch::Sender::new(true),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether the device (and its user) may still act: `Err(DeviceRevoked | UserDeactivated)`.
    pub fn check(&self, user: UserId, device: DeviceId) -> Result<(), Reason> {
        let state = self.shared.ended.read().unwrap_or_else(PoisonError::into_inner);
        if state.users.contains(&user) {
            return Err(Reason::UserDeactivated);
        }
        if state.devices.contains(&(user, device)) { Err(Reason::DeviceRevoked) } else { Ok(()) }
    }

    /// Whether the user may still act.
    pub fn check_user(&self, user: UserId) -> Result<(), Reason> {
        let state = self.shared.ended.read().unwrap_or_else(PoisonError::into_inner);
        if state.users.contains(&user) { Err(Reason::UserDeactivated) } else { Ok(()) }
    }

    /// Tells of every end from now on. A receiver that lags must check all it holds.
    pub fn subscribe(&self) -> broadcast::Receiver<Ended> {
        self.shared.ends.subscribe()
    }

    /// When the topic's newest record folded so far was appended.
    pub fn as_of(&self) -> Option<Timestamp> {
        self.shared.ended.read().unwrap_or_else(PoisonError::into_inner).as_of
    }

    /// How many ends have been folded so far. It rises with each end that is news, and with nothing else: who looked
    /// something through at a count need not look again while it stands.
    pub fn changes(&self) -> u64 {
        let state = self.shared.ended.read().unwrap_or_else(PoisonError::into_inner);
        // Ends are for good, so the sets only grow.
        (state.devices.len() + state.users.len()) as u64
    }

    /// Whether the registry was seen lately to have ended the session, or not to have.
    pub(crate) fn session_seen(&self, session: [u8; 16], now: Timestamp) -> Option<bool> {
        let (at, ended) = self.shared.sessions.get(&session)?;
        // An end is for good; its absence is believed for a while.
        (ended || now.since(at) < SESSION_SEEN_FOR).then_some(ended)
    }

    /// Remembers what the registry said.
    pub(crate) fn see_session(&self, session: [u8; 16], now: Timestamp, ended: bool) {
        self.shared.sessions.insert(session, (now, ended));
    }

    /// Remembers that a session was ended by this process, so that it does not ask first.
    pub fn session_ended_here(&self, session: [u8; 16], now: Timestamp) {
        self.see_session(session, now, true);
    }

    fn apply(&self, record: &LogRecord) {
        let end = match end_of(record) {
            Ok(end) => end,
            Err(_) => return tracing::error!(position = %record.position, "a directory record does not decode"),
        };
        let mut state = self.shared.ended.write().unwrap_or_else(PoisonError::into_inner);
        state.as_of = state.as_of.max(Some(record.appended_at));
        let news = match end {
            Some(Ended::Device(user, device)) => state.devices.insert((user, device)),
            Some(Ended::User(user)) => state.users.insert(user),
            None => false,
        };
        gauge!(names::REVOKED, "what" => "devices").set(state.devices.len() as f64);
        gauge!(names::REVOKED, "what" => "users").set(state.users.len() as f64);
        drop(state);
        if let (true, Some(end)) = (news, end) {
            // Nobody listening is no error.
            let _ = self.shared.ends.send(end);
        }
    }
}

/// How old records were when they came, once all that was there at the start had come.
fn measure(records: &[LogRecord]) {
    let now = Clock::system().now();
    let age = histogram!(names::REVOCATION_AGE);
    records.iter().for_each(|record| age.record(now.since(record.appended_at)));
}

/// What a record ends, if anything.
fn end_of(record: &LogRecord) -> Result<Option<Ended>, Violation> {
    let wire = DirectoryRecord::decode(record.payload.clone())
        .map_err(|_| Violation::new("record", "must be a DirectoryRecord"))?;
    Ok(match wire.body {
        Some(Body::Device(device)) if device.revoked => Some(Ended::Device(
            ids::user_bytes(&device.user_id, "device.user_id")?,
            ids::device_bytes(&device.device_id, "device.device_id")?,
        )),
        Some(Body::User(user)) if user.deactivated => {
            Some(Ended::User(ids::user_bytes(&user.user_id, "user.user_id")?))
        }
        _ => None,
    })
}

/// The task behind [`Revocations::follow`].
struct Follower {
    revocations: Revocations,
    log: Arc<dyn EventLog>,
    /// Partitions that are not folded to where they ended at the start, and that end.
    behind: HashMap<u32, Position>,
    /// How many partitions have not been assigned yet.
    unassigned: u32,
}

impl Follower {
    /// Until it is stopped, or fails for good.
    async fn run(mut self, stop: CancellationToken) -> Option<Failure> {
        let mut waiting = Waiting::default();
        loop {
            let Err(failure) = stop.run_until_cancelled(self.follow(&mut waiting)).await?;
            self.tell(false);
            if !passes(&failure) {
                tracing::error!(%failure, "the directory topic cannot be followed");
                return Some(failure);
            }
            let pause = waiting.pause("the directory topic", &failure);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await?;
        }
    }

    async fn follow(&mut self, waiting: &mut Waiting) -> Result<Infallible, Failure> {
        self.behind.clear();
        self.unassigned = self.log.partitions(Topic::Directory).get();
        let mut subscription = self.log.subscribe(Group::Everyone, Topic::Directory, FetchLimits::default()).await?;
        loop {
            let event = subscription.next().await?;
            self.on(event, subscription.as_mut()).await?;
            if self.unassigned == 0 && self.behind.is_empty() {
                waiting.over();
                self.tell(true);
            }
        }
    }

    fn tell(&self, current: bool) {
        self.revocations.shared.current.send_if_modified(|known| std::mem::replace(known, current) != current);
    }

    async fn on(&mut self, event: Event, subscription: &mut dyn Subscription) -> Result<(), Failure> {
        match event {
            Event::Assigned(partition) => {
                let started = subscription.start(partition, Start::Oldest).await?;
                self.unassigned = self.unassigned.saturating_sub(1);
                if started.oldest.is_some_and(|oldest| oldest < started.end) {
                    self.behind.insert(partition, started.end);
                }
            }
            Event::Revoked(partition) => {
                self.behind.remove(&partition);
                self.unassigned += 1;
            }
            Event::Records { partition, records } => {
                let live = self.unassigned == 0 && self.behind.is_empty();
                records.iter().for_each(|record| self.revocations.apply(record));
                if live {
                    measure(&records);
                }
                if let (Some(last), Some(end)) = (records.last(), self.behind.get(&partition))
                    && last.position.as_u64().saturating_add(1) >= end.as_u64()
                {
                    self.behind.remove(&partition);
                }
            }
        }
        Ok(())
    }
}
