//! The engines of a cluster: where they are, how they are spoken to, what they are called.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Partitions;

/// The log. Partition counts, replication and incarnations are fixed when `wardline migrate` creates the topics, and verified at
/// every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Some of the brokers, `host:port`.
    pub brokers: Vec<String>,
    /// Topics are called `<prefix>.<name>.v1`, consumer groups `<prefix>.<name>`.
    pub prefix: String,
    /// Partitions of the topic `conversations`, a power of two.
    pub conversations_partitions: Partitions,
    /// Partitions of the topic `feeds`, a power of two.
    pub feeds_partitions: Partitions,
    /// Partitions of the topic `receipts`, a power of two.
    pub receipts_partitions: Partitions,
    /// How many brokers hold each record.
    pub replication: u16,
    /// How many must hold it before it is acknowledged.
    pub min_insync_replicas: u16,
    /// Bytes that may wait for the brokers; above it senders are refused.
    pub budget_bytes: u32,
    /// After this long without a heartbeat a consumer's partitions go to others. The brokers' `group.min.session.timeout.ms`
    /// is the least.
    pub session_timeout_ms: u32,
    /// Whether brokers are spoken to over TLS.
    pub tls: bool,
    /// The authority of their certificates, PEM; absent, the system's.
    pub ca_file: Option<PathBuf>,
    /// Who this is, by SASL.
    pub username: Option<String>,
    /// The file of the password.
    pub password_file: Option<PathBuf>,
    /// How the password is proven.
    pub mechanism: Mechanism,
    /// Which making of each topic this is.
    pub incarnation: Incarnations,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            prefix: "wardline".to_owned(),
            conversations_partitions: Partitions::of(256),
            feeds_partitions: Partitions::of(128),
            receipts_partitions: Partitions::of(64),
            replication: 3,
            min_insync_replicas: 2,
            budget_bytes: 64 << 20,
            session_timeout_ms: 6_000,
            tls: false,
            ca_file: None,
            username: None,
            password_file: None,
            mechanism: Mechanism::ScramSha512,
            incarnation: Incarnations::default(),
        }
    }
}

/// How a password is proven to a broker (RFC 5802, RFC 4616).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mechanism {
    /// SCRAM with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// The password itself; only over TLS.
    #[serde(rename = "PLAIN")]
    Plain,
}

/// Which making of each topic this is, from 1. Raised when a topic was created again, so that positions only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the topic of its name")]
pub struct Incarnations {
    pub conversations: u32,
    pub feeds: u32,
    pub receipts: u32,
    pub directory: u32,
    pub audit: u32,
    pub deadletters: u32,
}

impl Default for Incarnations {
    fn default() -> Self {
        Self { conversations: 1, feeds: 1, receipts: 1, directory: 1, audit: 1, deadletters: 1 }
    }
}

impl Incarnations {
    /// Each by its key.
    pub(super) fn each(self) -> [(&'static str, u32); 6] {
        [
            ("kafka.incarnation.conversations", self.conversations),
            ("kafka.incarnation.feeds", self.feeds),
            ("kafka.incarnation.receipts", self.receipts),
            ("kafka.incarnation.directory", self.directory),
            ("kafka.incarnation.audit", self.audit),
            ("kafka.incarnation.deadletters", self.deadletters),
        ]
    }
}

/// The stores: ScyllaDB or Cassandra.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cql {
    /// Some of the nodes, `host:port`.
    pub nodes: Vec<String>,
    /// The keyspace.
    pub keyspace: String,
    /// The datacenter whose nodes answer, and where a new keyspace is replicated. Absent: the only one there is.
    pub datacenter: Option<String>,
    /// How many nodes hold each row of a keyspace that `wardline migrate` creates.
    pub replication: u16,
    /// Whether nodes are spoken to over TLS.
    pub tls: bool,
    /// The authority of their certificates, PEM. TLS needs it.
    pub ca_file: Option<PathBuf>,
    /// Who this is.
    pub username: Option<String>,
    /// The file of the password.
    pub password_file: Option<PathBuf>,
}

impl Default for Cql {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            keyspace: "wardline".to_owned(),
            datacenter: None,
            replication: 3,
            tls: false,
            ca_file: None,
            username: None,
            password_file: None,
        }
    }
}

/// The registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// The server, `host:port`. Empty for none.
    pub address: String,
    /// Keys begin with `<prefix>:`.
    pub prefix: String,
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// The authority of its certificate, PEM; absent, the system's.
    pub ca_file: Option<PathBuf>,
    /// Who this is; absent, the default user.
    pub username: Option<String>,
    /// The file of the password.
    pub password_file: Option<PathBuf>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            address: String::new(),
            prefix: "wardline".to_owned(),
            tls: false,
            ca_file: None,
            username: None,
            password_file: None,
        }
    }
}
