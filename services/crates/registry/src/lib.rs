//! What instances tell each other quickly: who owns a feeds partition, who is attached, how much a caller has used, which
//! sessions were ended. A hint everywhere, an authority nowhere: an empty or absent registry costs presence and fairness,
//! never a message and never a revocation.

use std::time::Duration;

use async_trait::async_trait;
use wardline_domain::{Failure, Position, Timestamp, UserId};

pub mod in_process;
pub mod laws;

/// What every call answers.
pub type Result<T> = std::result::Result<T, Failure>;

/// The owner of a feeds partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its term: the position of its claim.
    pub term: Position,
    /// Where its link listens.
    pub address: String,
}

/// Whether a user can be reached at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// How many devices are attached.
    pub devices: u32,
    /// When a device was last in use; `None` for never.
    pub active_at: Option<Timestamp>,
    /// When this was known.
    pub at: Timestamp,
}

/// A caller's allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Go on.
    Granted,
    /// Used up: try again after this long.
    Exhausted(Duration),
}

/// A token bucket's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many at once at most.
    pub burst: u32,
    /// How many come back per second.
    pub per_second: u32,
}

/// The registry.
///
/// Promise: a lower term never replaces a higher one; what has outlived its time is not answered; every map is bounded.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Announces an owner for `ttl`. A lower term than the one known changes nothing.
    async fn announce_owner(&self, partition: u32, owner: &Owner, ttl: Duration) -> Result<()>;

    /// The last announced owner.
    async fn owner(&self, partition: u32) -> Result<Option<Owner>>;

    /// Announces users' presence for `ttl`.
    async fn announce_presence(&self, users: &[(UserId, Presence)], ttl: Duration) -> Result<()>;

    /// Users' presence, in the order asked.
    async fn presence(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>>;

    /// Takes `cost` from the bucket of `key`. Keys are opaque digests.
    async fn take(&self, key: [u8; 16], rate: Rate, cost: u32) -> Result<Allowance>;

    /// Ends a session before its time.
    async fn end_session(&self, session: [u8; 16], ttl: Duration) -> Result<()>;

    /// Whether a session was ended.
    async fn session_ended(&self, session: [u8; 16]) -> Result<bool>;
}
