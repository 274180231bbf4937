//! What types cannot say about a configuration: whether its values can be, and whether it suffices for the roles.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::{Config, Issuer, Roles, Scope};
use crate::cli::Overrides;
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
    if config.embedded.log_budget_bytes < MIN_LOG_BUDGET_BYTES {
        refuse("embedded.log_budget_bytes", "must be at least 4194304 (4 MiB): the largest batches must fit it");
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
    if config.link.server_name.is_some() && config.link.ca_file.is_none() {
        refuse("link.server_name", "needs link.ca_file");
    }
    if let Some(why) = config.link.advertise.as_deref().and_then(not_an_origin) {
        refuse("link.advertise", why);
    }
    if tracing_subscriber::EnvFilter::try_new(&config.diagnostics.filter).is_err() {
        refuse("diagnostics.filter", "is not a list of directives such as `info,wardline_fanout=debug`");
    }
    problems.extend(listeners(config));
    problems.extend(issuers(&config.issuers));
    problems
}

fn at_least_one(config: &Config) -> [(&'static str, u32); 9] {
    let limits = &config.limits;
    [
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

/// Two listeners cannot have one address.
fn listeners(config: &Config) -> Vec<(String, String)> {
    let mut seen = HashMap::<SocketAddr, &str>::new();
    let mut problems = Vec::new();
    for (name, address) in config.listen.each() {
        if address.port() == 0 {
            continue;
        }
        if let Some(other) = seen.insert(address, name) {
            problems.push((format!("listen.{name}"), format!("listen.{other} has this address")));
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
         all`",
        .missing.iter().map(|role| role.name()).collect::<Vec<_>>().join("`, `")
    )]
    AllRoles {
        /// Those that are not run.
        missing: Vec<Role>,
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
        let missing = roles.missing();
        if !missing.is_empty() {
            lacking.push(Lacking::AllRoles { missing });
        }
        if self.tls.cert_file.is_none() && !overrides.allow_plaintext {
            lacking.push(Lacking::Certificate);
        }
        if self.issuers.is_empty() && roles.contains(Role::Directory) && !overrides.allow_no_issuer {
            lacking.push(Lacking::Issuer);
        }
        let keys = [
            ("session.keys_file", &self.session.keys_file, "the session keys"),
            ("authority.key_file", &self.authority.key_file, "the authority's seed"),
            ("link.key_file", &self.link.key_file, "the key of the link"),
        ];
        let absent = keys.into_iter().filter(|(_, file, _)| file.is_none());
        lacking.extend(absent.map(|(key, _, what)| Lacking::Key { key, what }));
        if lacking.is_empty() { Ok(()) } else { Err(Refused(lacking)) }
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
