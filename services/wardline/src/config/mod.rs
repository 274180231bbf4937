//! What a deployment may set: one TOML file, then `WARDLINE_SECTION__KEY` from the environment, over the defaults here.
//!
//! Units are in the names. `deploy/config/serve.toml` documents every key; a test holds the two together.
//!
//! Deliberately absent: secrets (only the files that hold them are named), and the overrides that weaken a deployment, which
//! are only on the command line.

mod check;
mod cluster;
mod load;
mod problem;
mod roles;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wardline_domain::TenantId;
use wardline_domain::partition::PartitionCount;
use wardline_runtime::telemetry;

pub use self::check::{Lacking, Refused};
pub use self::cluster::{Cql, Incarnations, Kafka, Mechanism, Redis};
pub use self::load::PREFIX;
pub use self::problem::{ConfigError, Origin, Problem, What};
pub use self::roles::Roles;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What log, stores and registry are.
    pub engines: Engines,
    /// Where the embedded engines keep their files.
    pub data_dir: PathBuf,
    /// The embedded engines.
    pub embedded: Embedded,
    /// The log of a cluster.
    pub kafka: Kafka,
    /// The stores of a cluster.
    pub cql: Cql,
    /// The registry of a cluster.
    pub redis: Redis,
    /// Where each role listens.
    pub listen: Listen,
    /// The link between presence instances.
    pub link: Link,
    /// The certificate of every listener.
    pub tls: Tls,
    /// Session tokens.
    pub session: Session,
    /// The authority over device logs and MLS groups.
    pub authority: Authority,
    /// Whose access tokens open sessions.
    pub issuers: Vec<Issuer>,
    /// What callers may use.
    pub limits: Limits,
    /// Users' feeds.
    pub feeds: Feeds,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// What the process prints.
    pub diagnostics: Diagnostics,
    /// Where operators look in.
    pub admin: Admin,
    /// Traces.
    pub telemetry: Telemetry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engines: Engines::Embedded,
            data_dir: PathBuf::from("wardline-data"),
            embedded: Embedded::default(),
            kafka: Kafka::default(),
            cql: Cql::default(),
            redis: Redis::default(),
            listen: Listen::default(),
            link: Link::default(),
            tls: Tls::default(),
            session: Session::default(),
            authority: Authority::default(),
            issuers: Vec::new(),
            limits: Limits::default(),
            feeds: Feeds::default(),
            shutdown: Shutdown::default(),
            diagnostics: Diagnostics::default(),
            admin: Admin::default(),
            telemetry: Telemetry::default(),
        }
    }
}

/// What log, stores and registry are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engines {
    /// Files under `data_dir`, for one process that runs all roles.
    Embedded,
    /// Kafka, ScyllaDB or Cassandra, and Redis, shared by any number of processes.
    Cluster,
}

/// The embedded log and stores. The partition counts are fixed when the data directory is first used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Embedded {
    /// Partitions of the topic `conversations`, a power of two.
    pub conversations_partitions: Partitions,
    /// Partitions of the topic `feeds`, a power of two.
    pub feeds_partitions: Partitions,
    /// Partitions of the topic `receipts`, a power of two.
    pub receipts_partitions: Partitions,
    /// Bytes that may wait for the log's disk; above it senders are refused.
    pub log_budget_bytes: u32,
    /// Bytes of the stores' block cache.
    pub store_cache_bytes: u64,
}

impl Default for Embedded {
    fn default() -> Self {
        Self {
            conversations_partitions: Partitions::of(4),
            feeds_partitions: Partitions::of(4),
            receipts_partitions: Partitions::of(2),
            log_budget_bytes: 64 << 20,
            store_cache_bytes: 64 << 20,
        }
    }
}

/// A number of partitions, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Partitions(PartitionCount);

impl Partitions {
    const fn of(count: u32) -> Self {
        Self(PartitionCount::new(count).expect("the defaults are powers of two"))
    }

    /// The number.
    pub const fn count(self) -> PartitionCount {
        self.0
    }
}

impl TryFrom<u32> for Partitions {
    type Error = &'static str;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        PartitionCount::new(count).map(Self).ok_or("a number of partitions is a power of two, at most 16777216")
    }
}

impl From<Partitions> for u32 {
    fn from(partitions: Partitions) -> Self {
        partitions.0.get()
    }
}

/// One address a role; fanout has none, nobody calls it. Port 0 takes any that is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// ConversationService.
    pub ingest: SocketAddr,
    /// DeliveryService.
    pub presence: SocketAddr,
    /// ReceiptService.
    pub receipt: SocketAddr,
    /// SessionService and DirectoryService.
    pub directory: SocketAddr,
    /// The link between presence instances; never for devices.
    pub presence_link: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { ingest: at(7401), presence: at(7402), receipt: at(7403), directory: at(7404), presence_link: at(7405) }
    }
}

impl Listen {
    /// Every listener by its key.
    pub fn each(&self) -> [(&'static str, SocketAddr); 5] {
        [
            ("ingest", self.ingest),
            ("presence", self.presence),
            ("receipt", self.receipt),
            ("directory", self.directory),
            ("presence_link", self.presence_link),
        ]
    }
}

/// The link between presence instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// Where other instances reach this one: `http(s)://host:port`. Absent: the address listened on.
    pub advertise: Option<String>,
    /// Where some instances are reached, asked for a partition's owner when the registry is silent: `http(s)://host:port`. A
    /// name that has several addresses stands for all of them.
    pub peers: Vec<String>,
    /// The file of the key that instances prove themselves with: 64 hexadecimal digits, the same for all.
    pub key_file: Option<PathBuf>,
    /// The authority that signed the other instances' certificates, PEM. With it, links speak TLS.
    pub ca_file: Option<PathBuf>,
    /// The name in the other instances' certificates, when it is not the host of their address.
    pub server_name: Option<String>,
}

/// The certificate of every listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// When given, only clients with a certificate of this authority may connect. PEM.
    pub client_ca_file: Option<PathBuf>,
}

/// Session tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// The file of the MAC keys: one a line, 64 hexadecimal digits each; the first mints, all verify.
    pub keys_file: Option<PathBuf>,
}

/// The authority over device logs and MLS groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authority {
    /// The file of its Ed25519 key: the seed, 64 hexadecimal digits.
    pub key_file: Option<PathBuf>,
}

/// An OpenID Connect issuer whose access tokens open sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The `iss` claim, compared character by character.
    pub url: String,
    /// The tenant its users belong to; absent, it speaks for operators of the deployment.
    #[serde(default, with = "tenant_text")]
    pub tenant: Option<TenantId>,
    /// Its public keys, a JWK set (RFC 7517).
    pub jwks_file: PathBuf,
    /// What the `aud` claim must contain.
    pub audience: String,
    /// What its tokens may carry beyond their user's own affairs; anything else in them is ignored.
    #[serde(default)]
    pub scopes: Vec<Scope>,
}

mod tenant_text {
    //! Tenants as UUID text.

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use wardline_domain::TenantId;

    #[expect(clippy::ref_option, reason = "serde gives the field by reference")]
    pub(super) fn serialize<S: Serializer>(tenant: &Option<TenantId>, to: S) -> Result<S::Ok, S::Error> {
        tenant.map(|tenant| tenant.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TenantId>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(|_| D::Error::custom("a tenant is a UUID"))).transpose()
    }
}

/// What a token may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Creates tenants.
    #[serde(rename = "operator")]
    Operator,
    /// Administers its tenant.
    #[serde(rename = "tenant.admin")]
    TenantAdmin,
    /// Creates and deactivates its tenant's users.
    #[serde(rename = "directory.write")]
    DirectoryWrite,
}

/// What callers may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Messages a device may send at once.
    pub send_burst: u32,
    /// Messages a device may send per second.
    pub send_per_second: u32,
    /// Unanswered messages of one Publish stream.
    pub publish_in_flight: u32,
    /// Unanswered bytes of one Publish stream.
    pub publish_bytes: u32,
    /// How long an append may take before its outcome is called unknown.
    pub append_deadline_seconds: u32,
    /// Unacknowledged events of an attached device, before it is served from the store.
    pub window_events: u32,
    /// Unacknowledged bytes of an attached device, before it is served from the store.
    pub window_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            send_burst: 2_000,
            send_per_second: 500,
            publish_in_flight: 256,
            publish_bytes: 4 << 20,
            append_deadline_seconds: 10,
            window_events: 256,
            window_bytes: 4 << 20,
        }
    }
}

/// Users' feeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Feeds {
    /// How long a device may be away and still catch up from its cursor.
    pub retention_days: u32,
}

impl Default for Feeds {
    fn default() -> Self {
        Self { retention_days: 30 }
    }
}

impl Feeds {
    /// The same as a duration.
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days) * 24 * 3600)
    }
}

/// How the process ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long what is under way may take after the first signal. Keep it below what the supervisor grants.
    pub drain_seconds: u32,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_seconds: 25 }
    }
}

impl Shutdown {
    /// The same as a duration.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds.into())
    }
}

/// What the process prints on stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Diagnostics {
    /// How it looks.
    pub format: Format,
    /// What is printed: directives such as `info,wardline_fanout=debug`.
    pub filter: String,
}

impl Default for Diagnostics {
    fn default() -> Self {
        Self { format: Format::Json, filter: "info".to_owned() }
    }
}

/// How diagnostics look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Human,
}

impl From<Format> for telemetry::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Human => Self::Human,
        }
    }
}

/// Where operators look in: metrics, liveness, readiness. Not for devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The address. Port 0 takes any that is free.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7406)) }
    }
}

/// Traces of messages through the roles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where traces go: an OTLP receiver over gRPC, `http://host:port`. Absent: nowhere.
    pub otlp_endpoint: Option<String>,
    /// The authority of its certificate, PEM, for `https`.
    pub ca_file: Option<PathBuf>,
    /// How many of the messages are traced whose sender does not say: from 0 to 1.
    pub sample_ratio: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { otlp_endpoint: None, ca_file: None, sample_ratio: 0.01 }
    }
}

impl Config {
    /// Every key there is, as `section.key`; those of a list's elements as `issuers[].key`.
    pub fn keys() -> Vec<String> {
        let issuer = Issuer {
            url: String::new(),
            tenant: None,
            jwks_file: PathBuf::new(),
            audience: String::new(),
            scopes: Vec::new(),
        };
        let sample = Self { issuers: vec![issuer], ..Self::default() };
        let mut keys = Vec::new();
        gather(&serde_json::to_value(sample).expect("the configuration is plain data"), "", &mut keys);
        keys
    }
}

fn gather(value: &serde_json::Value, path: &str, keys: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                gather(value, &path, keys);
            }
        }
        serde_json::Value::Array(elements) if elements.iter().any(serde_json::Value::is_object) => {
            elements.iter().for_each(|element| gather(element, &format!("{path}[]"), keys));
        }
        _ => keys.push(path.to_owned()),
    }
}
