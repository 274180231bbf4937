//! Whole deployments for tests: in one process over shared engines ([`cluster`]), as one real process ([`server`],
//! [`process`]), or as processes of each role over a cluster's engines ([`deployment`], [`engines`], [`command`]); people and
//! devices for them ([`people`], [`team`], [`load`]); calls that no client would make ([`raw`]); what goes wrong between them
//! ([`forwarder`], [`proxy`], [`cable`], [`balancer`], [`forgetful`], [`faults`]); and what devices can prove afterwards
//! ([`ledger`]).
//!
//! Deliberately absent: expectations. What should have happened is for the tests to say.

pub mod balancer;
mod between;
pub mod cable;
pub mod cluster;
pub mod command;
pub mod deployment;
pub mod engines;
pub mod faults;
pub mod forgetful;
pub mod forwarder;
pub mod instance;
pub mod ledger;
pub mod load;
pub mod people;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod server;
pub mod team;
