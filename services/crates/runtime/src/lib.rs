//! What every role runs on: who calls (sessions, revocations), how errors become statuses, how work is bounded, how a server
//! starts, reports its health and drains.
//!
//! Deliberately absent: engines, and anything only one role needs.

pub mod admin;
pub mod audit;
pub mod auth;
pub mod caller;
mod calls;
pub mod clock;
pub mod consumer;
mod counted;
pub mod exposition;
mod guard;
pub mod health;
mod measures;
pub mod members;
pub mod patience;
pub mod revocations;
pub mod serve;
pub mod session;
pub mod skew;
pub mod status;
pub mod telemetry;
pub mod trace;

pub use caller::Caller;
pub use clock::Clock;
pub use counted::Counted;
pub use measures::METRICS;
pub use status::Refusal;
