//! The one server of Wardline and the only place where roles, engines and configuration meet.
//!
//! Deliberately absent: anything a role does.

pub mod cli;
pub mod commands;
pub mod config;
pub mod dev;
mod disk;
pub mod engines;
pub mod issuer;
pub mod keys;
pub mod measured;
pub mod node;
pub mod signals;
