//! The engines of a cluster, from the configuration: Kafka, ScyllaDB or Cassandra, Redis.
//!
//! Deliberately absent: TLS, credentials or retries of our own. Each engine's crate has them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use wardline_domain::Failure;
use wardline_domain::failure::CauseKind;
use wardline_runtime::Clock;
use {wardline_log_kafka as kafka, wardline_registry_redis as redis, wardline_store_scylla as scylla};

use super::Engines;
use crate::config::{self, Config};
use crate::keys::{self, KeyError};

/// Between two attempts to reach an engine at the start.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the engines of a cluster were not opened.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A password or certificate.
    #[error(transparent)]
    Secret(#[from] KeyError),
    /// The log.
    #[error("kafka: {0}")]
    Kafka(#[source] Failure),
    /// The stores.
    #[error("cql: {0}")]
    Cql(#[source] Failure),
    /// The registry.
    #[error("redis: {0}")]
    Redis(#[from] redis::OpenError),
}

/// What `wardline migrate` did.
#[derive(Debug, Clone)]
pub struct Migrated {
    log: kafka::Migrated,
    stores: scylla::Migrated,
}

impl std::fmt::Display for Migrated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "topics: {} created, {} as configured", self.log.created.len(), self.log.verified.len())?;
        self.log.created.iter().try_for_each(|topic| writeln!(f, "  {topic}"))?;
        let applied: Vec<String> = self.stores.applied.iter().map(ToString::to_string).collect();
        match applied.as_slice() {
            [] => write!(f, "tables: at version {} already", self.stores.version),
            _ => write!(f, "tables: migrated to version {} ({})", self.stores.version, applied.join(", ")),
        }
    }
}

/// Makes topics and tables, or brings them to what this version needs. Safe to repeat, and with two at once.
pub async fn migrate(config: &Config) -> Result<Migrated, ClusterError> {
    let stores = scylla::migrate(&cql(&config.cql)?).await.map_err(ClusterError::Cql)?;
    let log = kafka::migrate(&kafka(&config.kafka)?).await.map_err(ClusterError::Kafka)?;
    Ok(Migrated { log, stores })
}

pub(super) async fn open(config: &Config, clock: Clock) -> Result<Engines, ClusterError> {
    let (kafka, cql) = (kafka(&config.kafka)?, cql(&config.cql)?);
    let registry = redis::open(&redis(&config.redis)?)?;
    let stores = answered("cql", || scylla::open(cql.clone())).await.map_err(ClusterError::Cql)?;
    let log = answered("kafka", || kafka::open(kafka.clone())).await.map_err(ClusterError::Kafka)?;
    Ok(Engines { log: wardline_log::measured(log), stores, registry: Arc::new(registry), clock, _lock: None })
}

/// Waits for an engine that is away. One that refuses will refuse again.
async fn answered<T, F: Future<Output = Result<T, Failure>>>(
    engine: &'static str,
    open: impl Fn() -> F,
) -> Result<T, Failure> {
    loop {
        match open().await {
            Err(failure) if failure.cause().kind != CauseKind::Corrupt => {
                tracing::warn!(engine, %failure, "waiting for an engine");
                tokio::time::sleep(PAUSE).await;
            }
            answered => return answered,
        }
    }
}

fn kafka(settings: &config::Kafka) -> Result<kafka::Options, KeyError> {
    let incarnation = settings.incarnation;
    let password = password(settings.password_file.as_deref())?;
    Ok(kafka::Options {
        conversations: settings.conversations_partitions.count(),
        feeds: settings.feeds_partitions.count(),
        receipts: settings.receipts_partitions.count(),
        replication: settings.replication,
        min_insync_replicas: settings.min_insync_replicas,
        incarnations: kafka::Incarnations {
            conversations: incarnation.conversations,
            feeds: incarnation.feeds,
            receipts: incarnation.receipts,
            directory: incarnation.directory,
            audit: incarnation.audit,
            dead_letters: incarnation.deadletters,
        },
        budget_bytes: settings.budget_bytes,
        session_timeout: Duration::from_millis(settings.session_timeout_ms.into()),
        tls: settings.tls.then(|| kafka::Tls { ca_file: settings.ca_file.clone() }),
        sasl: settings.username.clone().zip(password).map(|(username, password)| kafka::Sasl {
            mechanism: match settings.mechanism {
                config::Mechanism::ScramSha512 => kafka::Mechanism::ScramSha512,
                config::Mechanism::Plain => kafka::Mechanism::Plain,
            },
            username,
            password,
        }),
        ..kafka::Options::new(settings.brokers.clone(), settings.prefix.clone())
    })
}

fn cql(settings: &config::Cql) -> Result<scylla::Options, KeyError> {
    Ok(scylla::Options {
        datacenter: settings.datacenter.clone(),
        replication: settings.replication.into(),
        username: settings.username.clone(),
        password: password(settings.password_file.as_deref())?,
        ca_pem: authorities(settings.ca_file.as_ref())?,
        ..scylla::Options::new(settings.nodes.clone(), settings.keyspace.clone())
    })
}

fn redis(settings: &config::Redis) -> Result<redis::Options, KeyError> {
    Ok(redis::Options {
        username: settings.username.clone(),
        password: password(settings.password_file.as_deref())?,
        tls: match authorities(settings.ca_file.as_ref())? {
            _ if !settings.tls => redis::Tls::Off,
            None => redis::Tls::System,
            Some(pem) => redis::Tls::Authorities(pem),
        },
        ..redis::Options::new(settings.address.clone(), settings.prefix.clone())
    })
}

fn password(file: Option<&Path>) -> Result<Option<SecretString>, KeyError> {
    file.map(keys::read_password).transpose()
}

fn authorities(file: Option<&PathBuf>) -> Result<Option<Vec<u8>>, KeyError> {
    file.map(|file| keys::read_public(file)).transpose()
}
