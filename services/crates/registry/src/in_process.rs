//! The in-process engine: maps with ends of life, for one process and for tests.
//!
//! Every map is bounded: when it is full, what has outlived its time goes, and if nothing has, what would end first. A hint
//! that went early is an empty answer. Deliberately absent: a clock of its own and background work; time is asked of the
//! clock given, and each call sweeps a little.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use wardline_domain::{Timestamp, UserId};

use crate::{Allowance, Owner, Presence, Rate, Registry, Result};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How many entries each map holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Owners of partitions.
    pub owners: usize,
    /// Users with presence.
    pub presence: usize,
    /// Token buckets.
    pub buckets: usize,
    /// Ended sessions.
    pub sessions: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { owners: 4096, presence: 1 << 18, buckets: 1 << 18, sessions: 1 << 18 }
    }
}

/// The registry of one process.
pub struct InProcess {
    clock: Clock,
    maps: Mutex<Maps>,
}

struct Maps {
    owners: Expiring<u32, Owner>,
    presence: Expiring<UserId, Presence>,
    buckets: Expiring<[u8; 16], Bucket>,
    sessions: Expiring<[u8; 16], ()>,
}

impl InProcess {
    /// An empty registry that asks `clock` for the time.
    pub fn new(clock: Clock) -> Self {
        Self::with_bounds(clock, Bounds::default())
    }

    /// [`InProcess::new`] with other bounds.
    pub fn with_bounds(clock: Clock, bounds: Bounds) -> Self {
        let maps = Maps {
            owners: Expiring::new(bounds.owners),
            presence: Expiring::new(bounds.presence),
            buckets: Expiring::new(bounds.buckets),
            sessions: Expiring::new(bounds.sessions),
        };
        Self { clock, maps: Mutex::new(maps) }
    }

    /// The maps and the time.
    fn now(&self) -> (MutexGuard<'_, Maps>, Timestamp) {
        // No call leaves a map half changed, so a panic elsewhere did not either.
        (self.maps.lock().unwrap_or_else(PoisonError::into_inner), (self.clock)())
    }
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InProcess")
    }
}

/// A map whose entries end, and that holds at most `bound` of them.
struct Expiring<K, V> {
    bound: usize,
    entries: HashMap<K, (Timestamp, V)>,
    ends: BTreeSet<(Timestamp, K)>,
}

/// How many ended entries a call sweeps away: more than it can add, so that the map shrinks.
const SWEEP: usize = 4;

impl<K: Copy + Ord + Hash, V> Expiring<K, V> {
    fn new(bound: usize) -> Self {
        Self { bound: bound.max(1), entries: HashMap::new(), ends: BTreeSet::new() }
    }

    /// The value that has not ended. It lives until its end, not at it.
    fn get(&self, key: &K, now: Timestamp) -> Option<&V> {
        self.entries.get(key).filter(|(end, _)| *end > now).map(|(_, value)| value)
    }

    fn put(&mut self, key: K, value: V, end: Timestamp, now: Timestamp) {
        match self.entries.entry(key) {
            Entry::Occupied(mut entry) => {
                let (old, _) = entry.insert((end, value));
                self.ends.remove(&(old, key));
            }
            Entry::Vacant(entry) => {
                entry.insert((end, value));
            }
        }
        self.ends.insert((end, key));
        self.sweep(now);
    }

    fn sweep(&mut self, now: Timestamp) {
        for _ in 0..SWEEP {
            let Some((end, key)) = self.ends.first().copied() else { return };
            if end > now && self.entries.len() <= self.bound {
                return;
            }
            self.ends.remove(&(end, key));
            self.entries.remove(&key);
        }
    }
}

/// A token in millionths, so that slow rates lose nothing between two calls.
const WHOLE: u128 = 1_000_000;

/// A token bucket: full at first.
struct Bucket {
    /// Millionths of a token.
    tokens: u128,
    at: Timestamp,
}

impl Bucket {
    /// The bucket at `now`: a token a second is a millionth a microsecond.
    fn refilled(&self, rate: Rate, now: Timestamp) -> u128 {
        let back = now.since(self.at).as_micros() * u128::from(rate.per_second);
        (self.tokens + back).min(u128::from(rate.burst) * WHOLE)
    }
}

/// Takes from a bucket that holds `tokens` millionths: what is left, or how long until there is enough.
fn take(tokens: u128, rate: Rate, cost: u32) -> std::result::Result<u128, Duration> {
    let cost = u128::from(cost) * WHOLE;
    match tokens.checked_sub(cost) {
        Some(left) => Ok(left),
        // What never fits, or never comes back, is worth asking for again when the bucket could be full.
        None => {
            let missing = cost.min(u128::from(rate.burst) * WHOLE).saturating_sub(tokens);
            let micros = missing.div_ceil(u128::from(rate.per_second.max(1))).max(1);
            Err(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
        }
    }
}

#[async_trait]
impl Registry for InProcess {
    async fn announce_owner(&self, partition: u32, owner: &Owner, ttl: Duration) -> Result<()> {
        let (mut maps, now) = self.now();
        if maps.owners.get(&partition, now).is_none_or(|known| known.term <= owner.term) {
            maps.owners.put(partition, owner.clone(), now.plus(ttl), now);
        }
        Ok(())
    }

    async fn owner(&self, partition: u32) -> Result<Option<Owner>> {
        let (maps, now) = self.now();
        Ok(maps.owners.get(&partition, now).cloned())
    }

    async fn announce_presence(&self, users: &[(UserId, Presence)], ttl: Duration) -> Result<()> {
        let (mut maps, now) = self.now();
        for (user, presence) in users {
            maps.presence.put(*user, *presence, now.plus(ttl), now);
        }
        Ok(())
    }

    async fn presence(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>> {
        let (maps, now) = self.now();
        Ok(users.iter().map(|user| maps.presence.get(user, now).copied()).collect())
    }

    async fn take(&self, key: [u8; 16], rate: Rate, cost: u32) -> Result<Allowance> {
        let (mut maps, now) = self.now();
        let full = u128::from(rate.burst) * WHOLE;
        let tokens = maps.buckets.get(&key, now).map_or(full, |bucket| bucket.refilled(rate, now));
        let (left, allowance) = match take(tokens, rate, cost) {
            Ok(left) => (left, Allowance::Granted),
            Err(after) => (tokens, Allowance::Exhausted(after)),
        };
        // When it is full again it need not be remembered.
        let until_full = (full - left).div_ceil(u128::from(rate.per_second.max(1)));
        let end = now.plus(Duration::from_micros(u64::try_from(until_full).unwrap_or(u64::MAX)));
        maps.buckets.put(key, Bucket { tokens: left, at: now }, end, now);
        Ok(allowance)
    }

    async fn end_session(&self, session: [u8; 16], ttl: Duration) -> Result<()> {
        let (mut maps, now) = self.now();
        let end = now.plus(ttl);
        let longer = maps.sessions.entries.get(&session).is_some_and(|(known, ())| *known >= end);
        if !longer {
            maps.sessions.put(session, (), end, now);
        }
        Ok(())
    }

    async fn session_ended(&self, session: [u8; 16]) -> Result<bool> {
        let (maps, now) = self.now();
        Ok(maps.sessions.get(&session, now).is_some())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::laws::Harness;

    struct InProcessHarness {
        registry: InProcess,
        micros: Arc<AtomicU64>,
    }

    #[async_trait]
    impl Harness for InProcessHarness {
        async fn start() -> Option<Self> {
            let micros = Arc::new(AtomicU64::new(1_000_000_000));
            let clock = Arc::clone(&micros);
            let clock: Clock = Arc::new(move || Timestamp::from_micros(clock.load(Ordering::SeqCst)));
            let bounds = Bounds { owners: 8, presence: 8, buckets: 8, sessions: 8 };
            Some(Self { registry: InProcess::with_bounds(clock, bounds), micros })
        }

        fn registry(&self) -> &dyn Registry {
            &self.registry
        }

        async fn pass(&self, time: Duration) {
            self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::SeqCst);
        }
    }

    crate::registry_laws!(InProcessHarness);

    #[tokio::test]
    async fn every_map_is_bounded() {
        let harness = InProcessHarness::start().await.unwrap();
        let ttl = Duration::from_secs(60);
        let rate = Rate { burst: 2, per_second: 1 };
        let presence = Presence { devices: 1, active_at: None, at: Timestamp::from_micros(1) };
        for n in 0..100u8 {
            let owner = Owner { term: wardline_domain::Position::from_u64(1), address: String::new() };
            harness.registry.announce_owner(u32::from(n), &owner, ttl).await.unwrap();
            harness.registry.announce_presence(&[(UserId::from_bytes([n; 16]), presence)], ttl).await.unwrap();
            harness.registry.take([n; 16], rate, 1).await.unwrap();
            harness.registry.end_session([n; 16], ttl).await.unwrap();
        }
        let maps = harness.registry.maps.lock().unwrap();
        assert_eq!((maps.owners.entries.len(), maps.owners.ends.len()), (8, 8));
        assert_eq!((maps.presence.entries.len(), maps.presence.ends.len()), (8, 8));
        assert_eq!((maps.buckets.entries.len(), maps.buckets.ends.len()), (8, 8));
        assert_eq!((maps.sessions.entries.len(), maps.sessions.ends.len()), (8, 8));
    }

    #[tokio::test]
    async fn what_ended_is_swept_away_by_later_calls() {
        let harness = InProcessHarness::start().await.unwrap();
        for n in 0..6 {
            harness.registry.end_session([n; 16], Duration::from_secs(1)).await.unwrap();
        }
        harness.pass(Duration::from_secs(2)).await;
        for n in 10..12 {
            harness.registry.end_session([n; 16], Duration::from_secs(1)).await.unwrap();
        }
        assert_eq!(harness.registry.maps.lock().unwrap().sessions.entries.len(), 2);
    }
}
