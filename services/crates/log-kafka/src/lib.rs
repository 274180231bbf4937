//! The event log on Kafka: [`wardline_log::EventLog`] over librdkafka.
//!
//! - [`Options`], [`migrate`], [`open`]: what an operator sets, creates and starts.
//! - `producer`: the one idempotent producer of the process, and what happens when a delivery fails.
//! - `subscription`: membership and fetching, two clients a subscription.
//! - `topics`: what the topics must be like.
//!
//! A position is the topic's incarnation (24 bits, configured) and Kafka's offset (40 bits).
//!
//! What one process appends to a partition in one batch is adjacent among what that process appends. A batch that is larger than
//! one produce request (1 MB) may have records of another process between its requests.
//!
//! Deliberately absent: transactions (effects are idempotent), trimming (Kafka keeps records by time), partitions that change
//! their number, and creation of topics by anything but [`migrate`]: brokers should run with `auto.create.topics.enable=false`.

mod budget;
mod context;
mod failure;
mod log;
mod measures;
mod options;
mod producer;
mod subscription;
mod topics;

pub use self::log::{open, open_in};
pub use self::measures::METRICS;
pub use self::options::{Compression, Environment, Incarnations, Mechanism, Options, Retention, Sasl, Tls};
pub use self::topics::{Migrated, migrate};
