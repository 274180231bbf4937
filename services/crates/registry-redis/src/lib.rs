//! The registry on Redis.
//!
//! Every call is one round trip under a short deadline. While Redis is away calls fail at once ([`Failure::NotApplied`]), and
//! after it comes back, emptied or not, they succeed again without anybody's doing.
//!
//! Token buckets are filled by Redis' own clock: one clock for all instances, however theirs differ. Every key has a time to
//! live, so an abandoned deployment leaves nothing behind, and none is ever looked for: there is no KEYS and no SCAN.
//!
//! Deliberately absent: authority. Redis may forget everything at any time; who relies on more than a hint relies on the
//! wrong thing. Also Redis Cluster and Sentinel: one address, behind which a provider may swap servers.

use std::time::Duration;

use async_trait::async_trait;
use redis::{Client, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout_at};
use wardline_domain::{Cause, Failure, UserId};
use wardline_registry::{Allowance, Owner, Presence, Rate, Registry, Result};

mod keys;
mod link;

use keys::Keys;
use link::{Lent, Link};

/// No key lives longer than asked for, and no bucket longer than this: one that nobody used for a day is full.
const LONGEST_BUCKET: Duration = Duration::from_secs(24 * 60 * 60);

/// How each certificate in PEM begins (RFC 7468).
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Whether to speak TLS, and whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// No TLS.
    Off,
    /// The system's authorities.
    System,
    /// These authorities only: certificates in PEM.
    Authorities(Vec<u8>),
}

/// How to reach Redis.
#[derive(Debug, Clone)]
pub struct Options {
    /// `host:port`.
    pub address: String,
    /// What all keys begin with, so that deployments can share a server.
    pub prefix: String,
    /// The user of an access control list; `None` for the default user.
    pub username: Option<String>,
    /// That user's password.
    pub password: Option<SecretString>,
    /// Whether to speak TLS, and whom to trust.
    pub tls: Tls,
    /// How long a call may take.
    pub deadline: Duration,
}

impl Options {
    /// Without TLS and password, calls of at most 250 ms.
    pub fn new(address: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            prefix: prefix.into(),
            username: None,
            password: None,
            tls: Tls::Off,
            deadline: Duration::from_millis(250),
        }
    }
}

/// Options that can never work. That Redis is away is none: it may come.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is not `host:port`.
    #[error("the address of Redis must be host:port")]
    Address,
    /// The CA certificates cannot be read.
    #[error("the CA certificates for Redis are not PEM certificates")]
    Certificates,
}

/// The registry on Redis.
pub struct RedisRegistry {
    link: Link,
    keys: Keys,
    scripts: Scripts,
    deadline: Duration,
}

impl std::fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisRegistry")
    }
}

struct Scripts {
    announce_owner: Script,
    take: Script,
    end_session: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            announce_owner: Script::new(include_str!("scripts/announce_owner.lua")),
            take: Script::new(include_str!("scripts/take.lua")),
            end_session: Script::new(include_str!("scripts/end_session.lua")),
        }
    }
}

/// Begins to connect in the background, and goes on trying for as long as the registry lives.
///
/// # Panics
/// Outside a tokio runtime.
pub fn open(options: &Options) -> std::result::Result<RedisRegistry, OpenError> {
    let client = client(options)?;
    Ok(RedisRegistry {
        link: Link::open(client, options.deadline),
        keys: Keys::under(&options.prefix),
        scripts: Scripts::new(),
        deadline: options.deadline,
    })
}

fn client(options: &Options) -> std::result::Result<Client, OpenError> {
    let (host, port) = options.address.rsplit_once(':').ok_or(OpenError::Address)?;
    let port: u16 = port.parse().map_err(|_| OpenError::Address)?;
    // An IPv6 address stands in brackets before its port.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
    if host.is_empty() {
        return Err(OpenError::Address);
    }
    let address = match options.tls {
        Tls::Off => redis::ConnectionAddr::Tcp(host, port),
        _ => redis::ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
    };
    let mut settings = redis::RedisConnectionInfo::default();
    if let Some(username) = &options.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &options.password {
        settings = settings.set_password(password.expose_secret());
    }
    let info = redis::IntoConnectionInfo::into_connection_info(address).map_err(|_| OpenError::Address)?;
    let info = info.set_redis_settings(settings);
    let root_cert = match &options.tls {
        Tls::Off => return Client::open(info).map_err(|_| OpenError::Address),
        Tls::System => None,
        // Text of another kind would hold no certificate at all, and every server would be a stranger.
        Tls::Authorities(pem) if !pem.windows(CERTIFICATE.len()).any(|part| part == CERTIFICATE) => {
            return Err(OpenError::Certificates);
        }
        Tls::Authorities(pem) => Some(pem.clone()),
    };
    choose_cryptography();
    let certificates = redis::TlsCertificates { client_tls: None, root_cert };
    Client::build_with_tls(info, certificates).map_err(|_| OpenError::Certificates)
}

/// The client takes the process' cryptography, and panics where none was chosen.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that somebody chose just now.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

/// What a call is called in the metrics, and whether a failed one may have changed something.
#[derive(Clone, Copy)]
struct Operation {
    name: &'static str,
    changes: bool,
}

impl Operation {
    const fn reads(name: &'static str) -> Self {
        Self { name, changes: false }
    }

    const fn changes(name: &'static str) -> Self {
        Self { name, changes: true }
    }

    /// The failure of a call that was sent and not answered.
    const fn unanswered(self, cause: Cause) -> Failure {
        if self.changes { Failure::Unknown(cause) } else { Failure::NotApplied(cause) }
    }

    fn failed(self, reason: &'static str) {
        metrics::counter!("wardline_registry_failures_total", "operation" => self.name, "reason" => reason)
            .increment(1);
    }
}

/// A call under way. A caller that loses patience before the deadline drops it: that is as good a sign of a server that does
/// not answer, and costs no more than a new connection when it is none.
struct UnderWay {
    lent: Lent,
    since: Instant,
    done: bool,
}

/// A server that has not answered for so long when its caller gives up is not trusted to.
const SUSPICIOUS: Duration = Duration::from_millis(50);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.done && self.since.elapsed() >= SUSPICIOUS {
            self.lent.give_up();
        }
    }
}

impl RedisRegistry {
    /// Makes one call within the deadline.
    async fn call<T, Calling>(
        &self,
        operation: Operation,
        calling: impl FnOnce(redis::aio::MultiplexedConnection) -> Calling + Send,
    ) -> Result<T>
    where
        Calling: Future<Output = RedisResult<T>> + Send,
    {
        let since = Instant::now();
        let answer = self.within(operation, since + self.deadline, calling).await;
        let outcome = if answer.is_ok() { "ok" } else { "failed" };
        metrics::histogram!("wardline_registry_call_seconds", "operation" => operation.name, "outcome" => outcome)
            .record(since.elapsed().as_secs_f64());
        answer
    }

    async fn within<T, Calling>(
        &self,
        operation: Operation,
        deadline: Instant,
        calling: impl FnOnce(redis::aio::MultiplexedConnection) -> Calling + Send,
    ) -> Result<T>
    where
        Calling: Future<Output = RedisResult<T>> + Send,
    {
        let Some(lent) = self.link.lend(deadline).await else {
            operation.failed("away");
            return Err(Failure::NotApplied(Cause::unavailable("no connection to Redis")));
        };
        let running = calling(lent.connection.clone());
        let mut call = UnderWay { lent, since: Instant::now(), done: false };
        let answer = timeout_at(deadline, running).await;
        call.done = true;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if breaks(&error) {
                    call.lent.give_up();
                }
                operation.failed("error");
                Err(failure(operation, &error))
            }
            Err(_) => {
                call.lent.give_up();
                operation.failed("timeout");
                Err(operation.unanswered(Cause::timeout("Redis did not answer in time")))
            }
        }
    }

    async fn script<T: FromRedisValue + Send>(
        &self,
        operation: Operation,
        script: redis::ScriptInvocation<'_>,
    ) -> Result<T> {
        self.call(operation, |mut connection| async move { script.invoke_async(&mut connection).await }).await
    }
}

/// Whether the connection is of no use any more: broken, or to a server that is not the one to ask.
fn breaks(error: &RedisError) -> bool {
    use ServerErrorKind as Server;
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::Client | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(kind) => {
            matches!(
                kind,
                Server::ReadOnly | Server::BusyLoading | Server::MasterDown | Server::ClusterDown | Server::TryAgain
            )
        }
        _ => false,
    }
}

fn failure(operation: Operation, error: &RedisError) -> Failure {
    let cause = Cause::unavailable(link::describe(error));
    // What the server refused did not happen.
    if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) {
        Failure::NotApplied(cause)
    } else {
        operation.unanswered(cause)
    }
}

/// Whole milliseconds, at least one: Redis refuses to let anything live for none.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX).clamp(1, 1 << 53)
}

#[async_trait]
impl Registry for RedisRegistry {
    async fn announce_owner(&self, partition: u32, owner: &Owner, ttl: Duration) -> Result<()> {
        let mut script = self.scripts.announce_owner.key(self.keys.owner(partition));
        script.arg(keys::owner_value(owner)).arg(millis(ttl));
        self.script(Operation::changes("announce_owner"), script).await
    }

    async fn owner(&self, partition: u32) -> Result<Option<Owner>> {
        let key = self.keys.owner(partition);
        let get = |mut connection| async move { redis::cmd("GET").arg(key).query_async(&mut connection).await };
        let value: Option<Vec<u8>> = self.call(Operation::reads("owner"), get).await?;
        Ok(value.and_then(|value| keys::owner_of(&value)))
    }

    async fn announce_presence(&self, users: &[(UserId, Presence)], ttl: Duration) -> Result<()> {
        if users.is_empty() {
            return Ok(());
        }
        let ttl = millis(ttl);
        let mut pipe = redis::pipe();
        for (user, presence) in users {
            let (key, value) = (self.keys.presence(*user), keys::presence_value(presence));
            pipe.cmd("SET").arg(key).arg(value).arg("PX").arg(ttl).ignore();
        }
        let run = |mut connection| async move { pipe.query_async(&mut connection).await };
        self.call(Operation::changes("announce_presence"), run).await
    }

    async fn presence(&self, users: &[UserId]) -> Result<Vec<Option<Presence>>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let mut get = redis::cmd("MGET");
        for user in users {
            get.arg(self.keys.presence(*user));
        }
        let run = |mut connection| async move { get.query_async(&mut connection).await };
        let values: Vec<Option<Vec<u8>>> = self.call(Operation::reads("presence"), run).await?;
        if values.len() != users.len() {
            return Err(Failure::NotApplied(Cause::unavailable("Redis answered for another number of users")));
        }
        Ok(values.into_iter().map(|value| keys::presence_of(&value?)).collect())
    }

    async fn take(&self, key: [u8; 16], rate: Rate, cost: u32) -> Result<Allowance> {
        let mut script = self.scripts.take.key(self.keys.bucket(&key));
        script.arg(rate.burst).arg(rate.per_second).arg(cost).arg(millis(LONGEST_BUCKET));
        let after: u64 = self.script(Operation::changes("take"), script).await?;
        Ok(if after == 0 { Allowance::Granted } else { Allowance::Exhausted(Duration::from_micros(after)) })
    }

    async fn end_session(&self, session: [u8; 16], ttl: Duration) -> Result<()> {
        let mut script = self.scripts.end_session.key(self.keys.session(&session));
        script.arg(millis(ttl));
        self.script(Operation::changes("end_session"), script).await
    }

    async fn session_ended(&self, session: [u8; 16]) -> Result<bool> {
        let key = self.keys.session(&session);
        let exists = |mut connection| async move { redis::cmd("EXISTS").arg(key).query_async(&mut connection).await };
        self.call(Operation::reads("session_ended"), exists).await
    }
}
