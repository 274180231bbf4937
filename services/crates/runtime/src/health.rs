//! How the roles of a process are: what each of them needs, and whether it has it.
//!
//! A role has conditions. Each has one [`Cause`] and is met or not; a condition that was never told of is not met. The role
//! serves while all of its conditions that matter are met. [`Health::mirror`] tells it to `grpc.health.v1`, the admin port
//! reads [`Health::snapshot`].
//!
//! Deliberately absent: liveness. A process whose engine is away is alive, keeps what it has and comes back by itself; only a
//! fault ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use wardline_domain::Failure;
use wardline_log::fold::Watch;

/// What a condition is about. The set is fixed: names go to diagnostics and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The role has not begun yet: what it needs was not all there so far.
    Start,
    /// The event log cannot be read or takes nothing.
    Log,
    /// The stores do not answer.
    Store,
    /// A partition waits for an engine, of which the failure does not say whether it is the log or a store.
    Fold,
    /// The registry does not answer. It holds hints only, so nobody stops serving for it.
    Registry,
    /// This machine's clock and the log's differ.
    Clock,
    /// The instance is going away.
    Drain,
}

impl Cause {
    /// Its name, as in metrics and diagnostics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Log => "log",
            Self::Store => "store",
            Self::Fold => "fold",
            Self::Registry => "registry",
            Self::Clock => "clock",
            Self::Drain => "drain",
        }
    }

    const fn ends_service(self) -> bool {
        !matches!(self, Self::Registry)
    }
}

/// The number of the conditions that are about the role itself.
const ITSELF: u64 = 0;

/// What is not met, by role.
type Board = BTreeMap<&'static str, BTreeSet<(Cause, u64)>>;

/// How the roles of a process are. Cheap to clone; all clones tell the same.
#[derive(Clone)]
pub struct Health(Arc<Shared>);

struct Shared {
    board: watch::Sender<Board>,
    next: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Shared { board: watch::Sender::new(Board::new()), next: AtomicU64::new(ITSELF + 1) }))
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.snapshot()).finish()
    }
}

impl Health {
    /// Lists roles that have not begun. They do not serve before [`Health::started`].
    pub fn starting(&self, roles: impl IntoIterator<Item = &'static str>) {
        for role in roles {
            self.role(role);
            self.set(role, Cause::Start, ITSELF, false);
        }
    }

    /// The role has all it needs to begin.
    pub fn started(&self, role: &'static str) {
        self.set(role, Cause::Start, ITSELF, true);
    }

    /// The role goes away: it does not serve any more.
    pub fn draining(&self, role: &'static str) {
        self.set(role, Cause::Drain, ITSELF, false);
    }

    /// Lists a role, or finds it. It serves until it gets a condition that is not met.
    pub fn role(&self, name: &'static str) -> Reporter {
        self.0.board.send_if_modified(|board| {
            let new = !board.contains_key(name);
            board.entry(name).or_default();
            new
        });
        Reporter { health: self.clone(), role: name }
    }

    /// Whether each role serves, by name.
    pub fn snapshot(&self) -> Vec<(String, bool)> {
        self.0.board.borrow().iter().map(|(role, unmet)| ((*role).to_owned(), serves(unmet))).collect()
    }

    /// Why a role is not as it should be, each cause once, also those for which it goes on serving.
    pub fn causes(&self, role: &str) -> BTreeSet<Cause> {
        let board = self.0.board.borrow();
        board.get(role).into_iter().flatten().map(|(cause, _)| *cause).collect()
    }

    /// Waits until the role serves, or does not. Cancel-safe.
    pub async fn until(&self, role: &str, serving: bool) {
        let mut board = self.0.board.subscribe();
        // The sender is in `self`, so the wait cannot fail.
        let _ = board.wait_for(|board| board.get(role).is_some_and(|unmet| serves(unmet) == serving)).await;
    }

    /// Tells a listener's health service how a role is, for each service by its name and for the whole, until it is dropped.
    pub async fn mirror(self, role: &'static str, services: &[&'static str], reporter: HealthReporter) -> Infallible {
        let mut board = self.0.board.subscribe();
        loop {
            let status = match board.borrow_and_update().get(role).is_some_and(serves) {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            for service in services.iter().copied().chain([""]) {
                reporter.set_service_status(service, status).await;
            }
            // The sender is in `self`, so the wait cannot fail.
            let _ = board.changed().await;
        }
    }

    fn set(&self, role: &'static str, cause: Cause, condition: u64, met: bool) {
        let mut turned = None;
        self.0.board.send_if_modified(|board| {
            let Some(unmet) = board.get_mut(role) else { return false };
            let served = serves(unmet);
            let changed = if met { unmet.remove(&(cause, condition)) } else { unmet.insert((cause, condition)) };
            turned = Some(serves(unmet)).filter(|serves| *serves != served);
            changed
        });
        match turned {
            Some(true) => tracing::info!(role, cause = cause.name(), "the role serves"),
            Some(false) => tracing::warn!(role, cause = cause.name(), "the role does not serve"),
            None => {}
        }
    }
}

fn serves(unmet: &BTreeSet<(Cause, u64)>) -> bool {
    !unmet.iter().any(|(cause, _)| cause.ends_service())
}

/// One role's side of [`Health`]. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    health: Health,
    role: &'static str,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reporter({})", self.role)
    }
}

impl Reporter {
    /// Something that the role needs. It is not met before [`Condition::set`] says so, and counts until it is dropped.
    pub fn condition(&self, cause: Cause) -> Condition {
        let id = self.health.0.next.fetch_add(1, Ordering::Relaxed);
        self.health.set(self.role, cause, id, false);
        Condition { reporter: self.clone(), cause, id }
    }
}

/// Something that a role needs.
#[derive(Debug)]
pub struct Condition {
    reporter: Reporter,
    cause: Cause,
    id: u64,
}

impl Condition {
    /// Tells whether it is met. Told twice is told once.
    pub fn set(&self, met: bool) {
        self.reporter.health.set(self.reporter.role, self.cause, self.id, met);
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.set(true);
    }
}

/// How a fold is: whether it follows its topic, and which partitions wait for an engine. Cheap to clone; all clones tell the
/// same.
#[derive(Debug, Clone)]
pub struct FoldHealth(Arc<Folding>);

#[derive(Debug)]
struct Folding {
    following: Condition,
    going: Condition,
    waiting: Mutex<BTreeSet<u32>>,
}

impl FoldHealth {
    /// Of a role. It does not serve before the fold follows its topic.
    pub fn of(role: &Reporter) -> Self {
        let (following, going) = (role.condition(Cause::Log), role.condition(Cause::Fold));
        going.set(true);
        Self(Arc::new(Folding { following, going, waiting: Mutex::default() }))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<u32>) -> bool) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if change(&mut waiting) {
            self.0.going.set(waiting.is_empty());
        }
    }
}

impl Watch for FoldHealth {
    fn following(&self, following: bool) {
        self.0.following.set(following);
    }

    fn paused(&self, partition: u32, _failure: &Failure) {
        self.change(|waiting| waiting.insert(partition));
    }

    fn resumed(&self, partition: u32) {
        self.change(|waiting| waiting.remove(&partition));
    }
}

/// Of a role that nobody asks about: for folds driven by hand.
impl Default for FoldHealth {
    fn default() -> Self {
        Self::of(&Health::default().role("fold"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving(health: &Health, role: &str) -> bool {
        health.snapshot().into_iter().find_map(|(name, serving)| (name == role).then_some(serving)) == Some(true)
    }

    #[test]
    fn a_role_serves_while_all_its_conditions_are_met() {
        let health = Health::default();
        let (one, other) = (health.role("one"), health.role("other"));
        let (log, store) = (one.condition(Cause::Log), one.condition(Cause::Store));
        log.set(true);
        assert!(!serving(&health, "one"), "what was never told of is not met");
        assert!(serving(&health, "other"), "another role has no part in it");
        store.set(true);
        assert!(serving(&health, "one"));
        log.set(false);
        log.set(false);
        assert_eq!(health.causes("one"), BTreeSet::from([Cause::Log]));
        drop(log);
        assert!(serving(&health, "one"), "what is not needed any more does not count");
        assert!(health.role("one").health.causes("one").is_empty() && !serving(&health, "none"));
        drop(other);
    }

    #[test]
    fn nobody_stops_serving_for_the_registry() {
        let health = Health::default();
        let _registry = health.role("one").condition(Cause::Registry);
        assert!(serving(&health, "one"));
        assert_eq!(health.causes("one"), BTreeSet::from([Cause::Registry]));
    }

    #[test]
    fn a_fold_is_well_when_it_follows_and_no_partition_waits() {
        let health = Health::default();
        let fold = FoldHealth::of(&health.role("one"));
        assert_eq!(health.causes("one"), BTreeSet::from([Cause::Log]));
        fold.following(true);
        assert!(serving(&health, "one"));
        let failure = Failure::NotApplied(wardline_domain::Cause::unavailable("away"));
        for partition in [3, 5, 3] {
            fold.paused(partition, &failure);
        }
        fold.resumed(3);
        assert_eq!(health.causes("one"), BTreeSet::from([Cause::Fold]));
        fold.resumed(5);
        assert!(serving(&health, "one"));
        fold.following(false);
        assert!(!serving(&health, "one"));
    }

    #[test]
    fn a_role_serves_from_its_beginning_to_its_drain() {
        let health = Health::default();
        health.starting(["one", "other"]);
        let log = health.role("one").condition(Cause::Log);
        health.started("one");
        assert_eq!(health.causes("one"), BTreeSet::from([Cause::Log]));
        log.set(true);
        assert!(serving(&health, "one") && !serving(&health, "other"));
        health.draining("one");
        drop(log);
        assert_eq!(health.causes("one"), BTreeSet::from([Cause::Drain]));
    }

    #[tokio::test]
    async fn a_listeners_health_service_says_what_the_role_is() {
        use tonic_health::pb::health_server::Health as _;
        use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
        let health = Health::default();
        let condition = health.role("one").condition(Cause::Store);
        let (reporter, _) = tonic_health::server::health_reporter();
        let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        tokio::spawn(health.mirror("one", &["wardline.v1.One"], reporter));
        let says = async |name: &str, status: ServingStatus| {
            let request = HealthCheckRequest { service: name.to_owned() };
            let response = service.check(tonic::Request::new(request)).await;
            response.is_ok_and(|response| *response.get_ref() == HealthCheckResponse { status: status.into() })
        };
        for status in [ServingStatus::NotServing, ServingStatus::Serving] {
            for name in ["", "wardline.v1.One"] {
                while !says(name, status).await {
                    tokio::task::yield_now().await;
                }
            }
            condition.set(true);
        }
    }

    #[tokio::test]
    async fn who_waits_hears_of_it() {
        let health = Health::default();
        let condition = health.role("one").condition(Cause::Log);
        health.until("one", false).await;
        let told = tokio::spawn({
            let health = health.clone();
            async move { health.until("one", true).await }
        });
        condition.set(true);
        assert!(told.await.is_ok());
    }
}
