//! A user's append-only device log: canonical bytes, signatures, the chain, and the pinned head.
//!
//! Deliberately absent: gossip of heads between users. Two users whom the server shows different logs do not notice here.

pub(crate) mod authority;
mod chain;
pub(crate) mod enrollment;
pub(crate) mod follow;
pub(crate) mod leaf;

pub use self::chain::{DeviceLog, Entry, LoggedDevice, canonical_bytes, entry_hash};
pub use self::enrollment::{EnrollmentRequest, Vouch};
