//! What every role runs on: who calls (sessions, revocations), how errors become statuses, how work is bounded, how a server
//! starts, reports its health and drains.
//!
//! Deliberately absent: engines, and anything only one role needs.

pub mod audit;
pub mod auth;
pub mod caller;
pub mod clock;
pub mod consumer;
mod guard;
pub mod health;
pub mod members;
pub mod revocations;
pub mod serve;
pub mod session;
pub mod status;
pub mod telemetry;

pub use caller::Caller;
pub use clock::Clock;
pub use status::Refusal;
