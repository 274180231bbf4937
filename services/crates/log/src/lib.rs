//! The event log: what makes an acknowledgement durable and everything else derivable.
//!
//! Here are the seam ([`EventLog`], [`Subscription`]), the one fold driver that every consumer runs on ([`fold`]), how it
//! appends what a batch came to ([`append`]), the laws every engine keeps ([`laws`]) and the embedded engine ([`embedded`]).
//!
//! Deliberately absent: what a record means.

pub mod append;
pub mod embedded;
pub mod fold;
pub mod laws;
mod measured;
mod measures;
mod seam;
mod topic;
pub mod trace;

pub use measured::measured;
pub use measures::METRICS;
pub use seam::*;
pub use topic::*;
pub use wardline_domain::{Cause, Failure, Position};
