//! What an operator sets, and what librdkafka is told of it.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use secrecy::{ExposeSecret as _, SecretString};
use wardline_domain::Failure;
use wardline_domain::partition::PartitionCount;
use wardline_log::Topic;

use crate::failure::corrupt;

/// The largest record batch that a topic must take, in bytes: a message and a Welcome by digest fit twice.
pub(crate) const TOPIC_MESSAGE_BYTES: u64 = 2 << 20;

/// The largest record that is appended, with key and headers, in bytes: what a topic takes less the framing around it.
pub(crate) const RECORD_BYTES: usize = (2 << 20) - (64 << 10);

/// How the log lies on a Kafka cluster, and how to reach it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Brokers to begin with, each `host:port`.
    pub brokers: Vec<String>,
    /// What the names of topics and consumer groups begin with.
    pub prefix: String,
    /// Partitions of `conversations`.
    pub conversations: PartitionCount,
    /// Partitions of `feeds`.
    pub feeds: PartitionCount,
    /// Partitions of `receipts`.
    pub receipts: PartitionCount,
    /// Replicas of every partition, at least.
    pub replication: u16,
    /// In-sync replicas that an append waits for, at least. Two in separate power domains is what makes an acknowledgement
    /// durable.
    pub min_insync_replicas: u16,
    /// Each topic's incarnation.
    pub incarnations: Incarnations,
    /// How long records are kept.
    pub retention: Retention,
    /// Bytes that may wait for durability.
    pub budget_bytes: u32,
    /// A member of a group that is silent for so long has left it. Brokers refuse less than their
    /// `group.min.session.timeout.ms`, 6 s unless changed.
    pub session_timeout: Duration,
    /// How long a record waits for others to share its request.
    pub linger: Duration,
    /// How requests are compressed.
    pub compression: Compression,
    /// Bytes fetched ahead by one subscription, about.
    pub prefetch_bytes: u32,
    /// Encryption towards the brokers. Needs the cargo feature `tls`.
    pub tls: Option<Tls>,
    /// Who this is. Needs the cargo feature `tls`.
    pub sasl: Option<Sasl>,
}

impl Options {
    /// What DESIGN fixes for a cluster: 256, 128 and 64 partitions, three replicas of which two are in sync, 64 MiB may wait.
    pub fn new(brokers: Vec<String>, prefix: impl Into<String>) -> Self {
        let count = |n| PartitionCount::new(n).expect("they are powers of two");
        Self {
            brokers,
            prefix: prefix.into(),
            conversations: count(256),
            feeds: count(128),
            receipts: count(64),
            replication: 3,
            min_insync_replicas: 2,
            incarnations: Incarnations::default(),
            retention: Retention::default(),
            budget_bytes: 64 << 20,
            session_timeout: Duration::from_secs(6),
            linger: Duration::ZERO,
            compression: Compression::None,
            prefetch_bytes: 64 << 20,
            tls: None,
            sasl: None,
        }
    }

    pub(crate) fn count(&self, topic: Topic) -> PartitionCount {
        match topic {
            Topic::Conversations => self.conversations,
            Topic::Feeds => self.feeds,
            Topic::Receipts => self.receipts,
            Topic::Directory | Topic::Audit | Topic::DeadLetters => {
                PartitionCount::new(1).expect("1 is a power of two")
            }
        }
    }

    /// A topic's name on the cluster.
    pub fn topic_name(&self, topic: Topic) -> String {
        format!("{}.{}.v1", self.prefix, topic.name())
    }

    /// Refuses what cannot work, before anything is asked of the cluster.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if self.prefix.is_empty() || self.prefix.len() > 200 || !self.prefix.bytes().all(name) {
            return Err(corrupt("the topic prefix must be 1 to 200 of a-z, A-Z, 0-9, '.', '_' and '-'"));
        }
        if self.brokers.iter().all(String::is_empty) {
            return Err(corrupt("no broker is configured"));
        }
        if self.replication == 0 || self.min_insync_replicas == 0 || self.min_insync_replicas > self.replication {
            return Err(corrupt("min_insync_replicas must lie between 1 and replication"));
        }
        for topic in Topic::ALL {
            let incarnation = self.incarnations.of(topic);
            if incarnation == 0 || incarnation >> 24 != 0 {
                return Err(corrupt(format!("the incarnation of {} must lie between 1 and 2^24 - 1", topic.name())));
            }
        }
        if cfg!(not(feature = "tls")) && (self.tls.is_some() || self.sasl.is_some()) {
            return Err(corrupt("TLS and SASL towards Kafka need a build with the feature `tls`; this one is without"));
        }
        if let Some(Sasl { mechanism: Mechanism::Plain, .. }) = self.sasl
            && self.tls.is_none()
        {
            return Err(corrupt("SASL PLAIN shows the password to the network: configure TLS or SCRAM-SHA-512"));
        }
        Ok(())
    }

    /// What every client is configured with.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", "wardline")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("reconnect.backoff.max.ms", "1000")
            .set("metadata.recovery.rebootstrap.trigger.ms", "30000")
            // An idle connection that the broker closes is no news.
            .set("log.connection.close", "false");
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(Tls { ca_file: Some(ca_file) }) = &self.tls {
            config.set("ssl.ca.location", ca_file.to_string_lossy());
        }
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.name())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", sasl.password.expose_secret());
        }
        config
    }
}

/// How often each topic was made anew. Raised by one when a topic is re-created or its partition count changes; positions of
/// an older incarnation are then below all of the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnations {
    /// Of `conversations`.
    pub conversations: u32,
    /// Of `feeds`.
    pub feeds: u32,
    /// Of `receipts`.
    pub receipts: u32,
    /// Of `directory`.
    pub directory: u32,
    /// Of `audit`.
    pub audit: u32,
    /// Of `deadletters`.
    pub dead_letters: u32,
}

impl Default for Incarnations {
    fn default() -> Self {
        Self { conversations: 1, feeds: 1, receipts: 1, directory: 1, audit: 1, dead_letters: 1 }
    }
}

impl Incarnations {
    /// A topic's.
    pub const fn of(self, topic: Topic) -> u32 {
        match topic {
            Topic::Conversations => self.conversations,
            Topic::Feeds => self.feeds,
            Topic::Receipts => self.receipts,
            Topic::Directory => self.directory,
            Topic::Audit => self.audit,
            Topic::DeadLetters => self.dead_letters,
        }
    }
}

/// How long records are kept. `directory` is compacted instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// `conversations` and `receipts`: 7 days, the span in which a message may be sent again.
    pub conversations: Duration,
    /// `feeds`: 48 hours; a consumer that lags so far has raised its alarm long before.
    pub feeds: Duration,
    /// `audit`: six years (2,192 days), what 45 CFR 164.316(b)(2)(i) asks of documentation. Whoever must keep more copies it out.
    pub audit: Duration,
    /// `deadletters`: 30 days to look at them.
    pub dead_letters: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |n: u64| Duration::from_secs(n * 24 * 60 * 60);
        Self { conversations: days(7), feeds: days(2), audit: days(2192), dead_letters: days(30) }
    }
}

impl Retention {
    /// `None` for a compacted topic.
    pub(crate) const fn of(self, topic: Topic) -> Option<Duration> {
        match topic {
            Topic::Conversations | Topic::Receipts => Some(self.conversations),
            Topic::Feeds => Some(self.feeds),
            Topic::Audit => Some(self.audit),
            Topic::DeadLetters => Some(self.dead_letters),
            Topic::Directory => None,
        }
    }
}

/// How requests are compressed. Ciphertext does not compress, so the default is not to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not.
    #[default]
    None,
    /// With zstd.
    Zstd,
}

impl Compression {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
        }
    }
}

/// Encryption towards the brokers, whose certificates must name the host that is connected to.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Certificates to trust, as PEM. The system's without.
    pub ca_file: Option<PathBuf>,
}

/// Who this is, towards the brokers.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// How the password is proven.
    pub mechanism: Mechanism,
    /// The name.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

/// How a password is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// SCRAM-SHA-512 (RFC 5802).
    ScramSha512,
    /// PLAIN (RFC 4616); only over TLS.
    Plain,
}

impl Mechanism {
    const fn name(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::Plain => "PLAIN",
        }
    }
}

/// What the engine takes from around it. For tests.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Settings of librdkafka's producer that stand for the engine's own.
    pub producer: Vec<(&'static str, String)>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Options)) -> String {
        let mut options = Options::new(vec!["localhost:9092".to_owned()], "p");
        assert!(options.check().is_ok());
        change(&mut options);
        options.check().unwrap_err().to_string()
    }

    #[test]
    fn refuses_what_cannot_work_and_says_why() {
        assert!(refused(|options| options.prefix = "a/b".to_owned()).contains("prefix"));
        assert!(refused(|options| options.brokers.clear()).contains("no broker"));
        assert!(refused(|options| options.min_insync_replicas = 4).contains("min_insync_replicas"));
        assert!(refused(|options| options.incarnations.feeds = 0).contains("incarnation of feeds"));
        assert!(refused(|options| options.incarnations.audit = 1 << 24).contains("incarnation of audit"));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn refuses_tls_when_built_without() {
        assert!(refused(|options| options.tls = Some(Tls::default())).contains("feature `tls`"));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn refuses_a_password_in_the_clear() {
        let sasl = Sasl { mechanism: Mechanism::Plain, username: "u".to_owned(), password: "p".into() };
        assert!(refused(|options| options.sasl = Some(sasl)).contains("PLAIN"));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn librdkafka_takes_tls_and_scram() {
        let mut options = Options::new(vec!["localhost:9092".to_owned()], "p");
        options.tls = Some(Tls::default());
        let password = "p".into();
        options.sasl = Some(Sasl { mechanism: Mechanism::ScramSha512, username: "u".to_owned(), password });
        options.client().create_native_config().unwrap();
    }
}
