//! Whole deployments for tests: in one process over shared engines ([`cluster`]), or as real processes ([`server`],
//! [`process`]); people and devices for them ([`people`]); calls that no client would make ([`raw`]); what goes wrong between
//! them ([`forwarder`], [`proxy`], [`forgetful`]); and what devices can prove afterwards ([`ledger`]).
//!
//! Deliberately absent: expectations. What should have happened is for the tests to say.

pub mod cluster;
pub mod forgetful;
pub mod forwarder;
pub mod ledger;
pub mod people;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod server;
