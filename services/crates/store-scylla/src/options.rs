//! How the servers are reached.

use std::time::Duration;

use secrecy::SecretString;

/// How the servers are reached, and how long they may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes to begin with, `host:port`. The others are learned from them; all answer at the same port.
    pub nodes: Vec<String>,
    /// The keyspace: a lower-case letter, then lower-case letters, digits and underscores, at most 48 in all.
    pub keyspace: String,
    /// The datacenter whose nodes are asked and whose quorum answers. May be left out where there is only one.
    pub datacenter: Option<String>,
    /// Replicas of each row in the datacenter, for [`migrate`](crate::migrate) when it creates the keyspace.
    pub replication: u32,
    /// Who connects.
    pub username: Option<String>,
    /// With which password.
    pub password: Option<SecretString>,
    /// Turns TLS on: the certificates that a node's certificate must lead to, in PEM. Each node's certificate must name the
    /// address that it is reached at.
    pub ca_pem: Option<Vec<u8>>,
    /// How long a read may take, all attempts together.
    pub read_timeout: Duration,
    /// How long a write may take, all attempts together.
    pub write_timeout: Duration,
    /// How long one compare-and-set may take. Longer than the servers give it, so that their answer is heard.
    pub lwt_timeout: Duration,
    /// After how long without an answer another node is asked, too.
    pub speculate_after: Duration,
    /// How many requests one call has under way at most, for each table.
    pub concurrency: usize,
}

impl Options {
    /// The defaults for nodes and a keyspace: three replicas, no authentication, no TLS.
    pub fn new(nodes: impl IntoIterator<Item = impl Into<String>>, keyspace: impl Into<String>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            keyspace: keyspace.into(),
            datacenter: None,
            replication: 3,
            username: None,
            password: None,
            ca_pem: None,
            read_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(2),
            lwt_timeout: Duration::from_secs(3),
            speculate_after: Duration::from_millis(150),
            concurrency: 128,
        }
    }
}
