//! What types cannot say about a configuration: whether its values can be, and whether it suffices for the roles.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::{Config, Engines, Feeds, Issuer, Mechanism, Roles, Scope};
use crate::cli::Overrides;
use crate::keys;
use crate::node::Role;

/// Batches of records are up to about 1 MiB and one more record. What is larger than the budget is never taken.
const MIN_LOG_BUDGET_BYTES: u32 = 4 << 20;

/// Keys whose values cannot be, and why.
pub(super) fn possible(config: &Config) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut refuse = |key: &str, why: &str| problems.push((key.to_owned(), why.to_owned()));
    for (key, value) in at_least_one(config) {
        if value == 0 {
            refuse(key, "must be at least 1");
        }
    }
    for (key, bytes) in [
        ("embedded.log_budget_bytes", config.embedded.log_budget_bytes),
        ("kafka.budget_bytes", config.kafka.budget_bytes),
    ] {
        if bytes < MIN_LOG_BUDGET_BYTES {
            refuse(key, "must be at least 4194304 (4 MiB): the largest batches must fit it");
        }
    }
    if !(0.0..=1.0).contains(&config.telemetry.sample_ratio) {
        refuse("telemetry.sample_ratio", "is a ratio: from 0 to 1");
    }
    if let Some(why) = config.telemetry.otlp_endpoint.as_deref().and_then(not_an_origin) {
        refuse("telemetry.otlp_endpoint", why);
    }
    if config.tls.cert_file.is_some() != config.tls.key_file.is_some() {
        let key = if config.tls.cert_file.is_some() { "tls.cert_file" } else { "tls.key_file" };
        refuse(key, "tls.cert_file and tls.key_file are given together or not at all");
    }
    if config.tls.client_ca_file.is_some() && config.tls.cert_file.is_none() {
        refuse("tls.client_ca_file", "needs tls.cert_file and tls.key_file");
    }
    if config.link.ca_file.is_some() && config.tls.cert_file.is_none() {
        refuse("link.ca_file", "needs tls.cert_file and tls.key_file");
    }
    if config.engines == Engines::Cluster {
        if config.listen.presence_link.ip().is_unspecified() && config.link.advertise.is_none() {
            refuse(
                "link.advertise",
                "must be given: nobody reaches an instance at the address that stands for all of its own",
            );
        }
        if config.feeds != Feeds::default() {
            refuse(
                "feeds.retention_days",
                "is 30 on a cluster: rows of feeds expire by themselves, as the tables are made",
            );
        }
    }
    if config.link.server_name.is_some() && config.link.ca_file.is_none() {
        refuse("link.server_name", "needs link.ca_file");
    }
    if let Some(why) = config.link.advertise.as_deref().and_then(not_an_origin) {
        refuse("link.advertise", why);
    }
    for why in config.link.peers.iter().filter_map(|peer| not_an_origin(peer)) {
        refuse("link.peers", why);
    }
    if tracing_subscriber::EnvFilter::try_new(&config.diagnostics.filter).is_err() {
        refuse("diagnostics.filter", "is not a list of directives such as `info,wardline_fanout=debug`");
    }
    let secured = config.telemetry.otlp_endpoint.as_ref().is_some_and(|url| url.starts_with("https://"));
    if secured != config.telemetry.ca_file.is_some() {
        refuse("telemetry.ca_file", "is for an https endpoint, which cannot do without");
    }
    problems.extend(cluster(config));
    problems.extend(listeners(config));
    problems.extend(issuers(&config.issuers));
    problems
}

fn at_least_one(config: &Config) -> [(&'static str, u32); 13] {
    let limits = &config.limits;
    [
        ("kafka.replication", config.kafka.replication.into()),
        ("kafka.min_insync_replicas", config.kafka.min_insync_replicas.into()),
        ("kafka.session_timeout_ms", config.kafka.session_timeout_ms),
        ("cql.replication", config.cql.replication.into()),
        ("limits.send_burst", limits.send_burst),
        ("limits.send_per_second", limits.send_per_second),
        ("limits.publish_in_flight", limits.publish_in_flight),
        ("limits.publish_bytes", limits.publish_bytes),
        ("limits.append_deadline_seconds", limits.append_deadline_seconds),
        ("limits.window_events", limits.window_events),
        ("limits.window_bytes", limits.window_bytes),
        ("feeds.retention_days", config.feeds.retention_days),
        ("shutdown.drain_seconds", config.shutdown.drain_seconds),
    ]
}

/// The largest incarnation that a position holds.
const MAX_INCARNATION: u32 = (1 << 23) - 1;

fn cluster(config: &Config) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut refuse = |key: &str, why: &str| problems.push((key.to_owned(), why.to_owned()));
    let (kafka, cql, redis) = (&config.kafka, &config.cql, &config.redis);
    for (key, address) in kafka.brokers.iter().map(|address| ("kafka.brokers", address)).chain(
        cql.nodes
            .iter()
            .map(|address| ("cql.nodes", address))
            .chain((!redis.address.is_empty()).then_some(("redis.address", &redis.address))),
    ) {
        if !is_host_and_port(address) {
            refuse(key, "an address is written host:port");
        }
    }
    if kafka.min_insync_replicas > kafka.replication {
        refuse("kafka.min_insync_replicas", "is more than kafka.replication, so nothing could be acknowledged");
    }
    for (key, incarnation) in kafka.incarnation.each() {
        if !(1..=MAX_INCARNATION).contains(&incarnation) {
            refuse(key, "an incarnation is from 1 to 8388607");
        }
    }
    for (key, name) in
        [("kafka.prefix", &kafka.prefix), ("cql.keyspace", &cql.keyspace), ("redis.prefix", &redis.prefix)]
    {
        if !is_name(name) {
            refuse(key, "is made of 1 to 40 of a-z, 0-9 and _, and begins with a letter");
        }
    }
    for (key, user, password) in [
        ("kafka.password_file", &kafka.username, &kafka.password_file),
        ("cql.password_file", &cql.username, &cql.password_file),
    ] {
        if user.is_some() != password.is_some() {
            refuse(key, "user name and password are given together or not at all");
        }
    }
    if redis.username.is_some() && redis.password_file.is_none() {
        refuse("redis.password_file", "a user name needs a password");
    }
    for (key, ca, tls) in [
        ("kafka.ca_file", &kafka.ca_file, kafka.tls),
        ("cql.ca_file", &cql.ca_file, cql.tls),
        ("redis.ca_file", &redis.ca_file, redis.tls),
    ] {
        if ca.is_some() && !tls {
            refuse(key, "is for TLS: set tls = true beside it");
        }
    }
    if cql.tls && cql.ca_file.is_none() {
        refuse("cql.ca_file", "cql.tls needs the authority of the nodes' certificates");
    }
    if kafka.mechanism == Mechanism::Plain && !kafka.tls {
        refuse("kafka.mechanism", "PLAIN sends the password itself: only with kafka.tls = true");
    }
    problems
}

/// What topics, keyspaces and keys may all be called.
fn is_name(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_lowercase())
        && name.len() <= 40
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_host_and_port(address: &str) -> bool {
    let authority = address.parse::<http::uri::Authority>();
    authority.is_ok_and(|authority| authority.port_u16().is_some() && !address.contains('@'))
}

/// Two listeners cannot have one address.
fn listeners(config: &Config) -> Vec<(String, String)> {
    let mut seen = HashMap::<SocketAddr, String>::new();
    let mut problems = Vec::new();
    let listeners = config.listen.each().map(|(name, address)| (format!("listen.{name}"), address));
    for (key, address) in listeners.into_iter().chain([("admin.listen".to_owned(), config.admin.listen)]) {
        if address.port() == 0 {
            continue;
        }
        if let Some(other) = seen.insert(address, key.clone()) {
            problems.push((key, format!("{other} has this address")));
        }
    }
    problems
}

fn issuers(issuers: &[Issuer]) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut urls = HashSet::new();
    let mut tenants = HashSet::new();
    for (index, issuer) in issuers.iter().enumerate() {
        let mut refuse = |key: &str, why: &str| problems.push((format!("issuers[{index}].{key}"), why.to_owned()));
        if let Some(why) = not_an_issuer(&issuer.url) {
            refuse("url", why);
        }
        if !urls.insert(issuer.url.as_str()) {
            refuse("url", "another issuer has this URL");
        }
        // A user is known by tenant and `sub`: a second issuer could name the first one's users.
        if issuer.tenant.is_some_and(|tenant| !tenants.insert(tenant)) {
            refuse("tenant", "another issuer has this tenant, and a tenant has one issuer");
        }
        if issuer.audience.is_empty() {
            refuse("audience", "must not be empty");
        }
        if issuer.tenant.is_some() && issuer.scopes.contains(&Scope::Operator) {
            refuse("scopes", "the issuer of a tenant cannot make operators");
        }
        if issuer.tenant.is_none() && issuer.scopes != [Scope::Operator] {
            refuse("scopes", "an issuer without a tenant speaks for operators: scopes = [\"operator\"]");
        }
    }
    problems
}

/// OpenID Connect Discovery 1.0 section 3: https, no query, no fragment. Plain http only on this host.
fn not_an_issuer(url: &str) -> Option<&'static str> {
    let Ok(uri) = url.parse::<http::Uri>() else { return Some("is not a URL") };
    let host = uri.host().unwrap_or_default();
    let local = host == "localhost" || host == "[::1]" || host.starts_with("127.");
    match uri.scheme_str() {
        _ if url.contains(['?', '#']) => Some("an issuer has no query and no fragment"),
        Some("https") => None,
        Some("http") if local => None,
        _ => Some("an issuer's URL begins with https://"),
    }
}

fn not_an_origin(url: &str) -> Option<&'static str> {
    let Ok(uri) = url.parse::<http::Uri>() else { return Some("is not a URL") };
    let complete = matches!(uri.scheme_str(), Some("http" | "https")) && uri.port_u16().is_some();
    (!complete || uri.path() != "/" || uri.query().is_some() || url.ends_with('/'))
        .then_some("is written http(s)://host:port, without a path")
}

/// What a configuration lacks before roles may serve from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// A part of the roles on engines that live inside one process.
    #[error(
        "the embedded engines live inside one process, so `{}` would never see what the others write: run `wardline serve \
         all`, or set engines = \"cluster\"",
        .missing.iter().map(|role| role.name()).collect::<Vec<_>>().join("`, `")
    )]
    AllRoles {
        /// Those that are not run.
        missing: Vec<Role>,
    },
    /// No address of an engine.
    #[error("`{key}` is missing: engines = \"cluster\" needs {what}")]
    Engine {
        /// Which.
        key: &'static str,
        /// What it names.
        what: &'static str,
    },
    /// Engines that need no migration.
    #[error("`engines` is not \"cluster\": embedded engines make their files by themselves")]
    Cluster,
    /// An engine spoken to in clear.
    #[error("`{key}` is not true: who talks to whom would cross the network readably; --allow-plaintext permits it")]
    EngineInClear {
        /// Which.
        key: &'static str,
    },
    /// No certificate.
    #[error("`tls.cert_file` and `tls.key_file` are missing; --allow-plaintext serves without TLS")]
    Certificate,
    /// No issuer.
    #[error("no `[[issuers]]` is given, so nobody could open a session; --allow-no-issuer starts all the same")]
    Issuer,
    /// No key.
    #[error(
        "`{key}` is missing: name a file with {what}, such as `openssl rand -hex 32` makes, readable by its owner only"
    )]
    Key {
        /// Which.
        key: &'static str,
        /// What the file holds.
        what: &'static str,
    },
}

/// All that is lacking.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the roles cannot be served:{}", super::problem::list(.0))]
pub struct Refused(pub Vec<Lacking>);

impl Config {
    /// Whether `roles` may serve from this configuration. Each override excuses the one thing it names.
    pub fn fit_to_serve(&self, roles: &Roles, overrides: Overrides) -> Result<(), Refused> {
        let mut lacking = Vec::new();
        match self.engines {
            Engines::Embedded if roles.missing().is_empty() => {}
            Engines::Embedded => lacking.push(Lacking::AllRoles { missing: roles.missing() }),
            Engines::Cluster => {
                lacking.extend(self.engines_missing());
                lacking.extend(self.engines_in_clear().into_iter().filter(|_| !overrides.allow_plaintext));
            }
        }
        let listens = roles.each().into_iter().any(|role| role != Role::Fanout);
        if listens && self.tls.cert_file.is_none() && !overrides.allow_plaintext {
            lacking.push(Lacking::Certificate);
        }
        if self.issuers.is_empty() && roles.contains(Role::Directory) && !overrides.allow_no_issuer {
            lacking.push(Lacking::Issuer);
        }
        let files = [
            (keys::SESSION, &self.session.keys_file, "the session keys"),
            (keys::AUTHORITY, &self.authority.key_file, "the authority's seed"),
            (keys::LINK, &self.link.key_file, "the key of the link"),
        ];
        let needed = |key: &str| roles.each().into_iter().any(|role| keys::needed(role).contains(&key));
        let absent = files.into_iter().filter(|(key, file, _)| file.is_none() && needed(key));
        lacking.extend(absent.map(|(key, _, what)| Lacking::Key { key, what }));
        if lacking.is_empty() { Ok(()) } else { Err(Refused(lacking)) }
    }

    /// Whether `wardline migrate` may run from this configuration.
    pub fn fit_to_migrate(&self, allow_plaintext: bool) -> Result<(), Refused> {
        let mut lacking = self.engines_missing();
        if self.engines == Engines::Embedded {
            lacking.push(Lacking::Cluster);
        }
        lacking.extend(self.engines_in_clear().into_iter().filter(|_| !allow_plaintext));
        if lacking.is_empty() { Ok(()) } else { Err(Refused(lacking)) }
    }

    fn engines_missing(&self) -> Vec<Lacking> {
        let named = [
            ("kafka.brokers", !self.kafka.brokers.is_empty(), "some of the brokers"),
            ("cql.nodes", !self.cql.nodes.is_empty(), "some of the nodes"),
            ("redis.address", !self.redis.address.is_empty(), "the server"),
        ];
        named.into_iter().filter(|(_, given, _)| !given).map(|(key, _, what)| Lacking::Engine { key, what }).collect()
    }

    fn engines_in_clear(&self) -> Vec<Lacking> {
        let spoken = [("kafka.tls", self.kafka.tls), ("cql.tls", self.cql.tls), ("redis.tls", self.redis.tls)];
        spoken.into_iter().filter(|(_, tls)| !tls).map(|(key, _)| Lacking::EngineInClear { key }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_one_issuer_and_operators_may_have_several() {
        let issuer = |name: &str, tenant: Option<u8>| Issuer {
            url: format!("https://{name}.example"),
            tenant: tenant.map(|tenant| wardline_domain::TenantId::from_bytes([tenant; 16])),
            jwks_file: "jwks.json".into(),
            audience: "wardline".into(),
            scopes: if tenant.is_some() { Vec::new() } else { vec![Scope::Operator] },
        };
        let apart = [issuer("a", Some(1)), issuer("b", Some(2)), issuer("c", None), issuer("d", None)];
        assert_eq!(issuers(&apart), []);
        let both = [issuer("a", Some(1)), issuer("c", None), issuer("b", Some(1))];
        let problems = issuers(&both);
        let keys: Vec<&str> = problems.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["issuers[2].tenant"]);
    }
}
