//! `wardline serve`: configuration, keys, engines, node; then drain under a deadline.
//!
//! Deliberately absent: development keys, the development issuer, and any default for a secret.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wardline_domain::Failure;
use wardline_registry::Rate;
use wardline_runtime::caller::Scopes;
use wardline_runtime::exposition::Exposition;
use wardline_runtime::health::Health;
use wardline_runtime::{Clock, admin, exposition, serve, telemetry};

use crate::cli::ServeArgs;
use crate::config::{self, Config, ConfigError, Refused, Roles, Scope};
use crate::engines::{Engines, OpenError};
use crate::keys::{self, KeyError, Keys};
use crate::measured;
use crate::node::{self, Fault, Node, NodeOptions, Role, StartError};
use crate::signals;

/// How long the engines may take to flush after the roles have drained.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// How much of the drain is left to the folds once calls and streams have ended.
const FOLDS_PATIENCE: Duration = Duration::from_secs(5);

/// How long traces may take to the collector in the end.
const TRACES_PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing is served, or why what was served did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{}: {source}", file.display())]
    Jwks { file: PathBuf, source: io::Error },
    #[error("{}: {source}", file.display())]
    Issuer { file: PathBuf, source: wardline_directory::InvalidIssuer },
    #[error(transparent)]
    Telemetry(#[from] telemetry::InitError),
    #[error(transparent)]
    Metrics(#[from] exposition::InstallError),
    #[error("the admin port {address}: {source}")]
    Admin { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Engines(#[from] OpenError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("an instance could not go on: {0}")]
    Fault(Fault),
    #[error("what was under way did not end within {0} s")]
    Undrained(u32),
    #[error("the log was not flushed: {0}")]
    Close(#[source] Failure),
}

/// The configuration, if the roles asked for may serve from it.
pub(super) fn configure(
    args: &ServeArgs,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, ServeError> {
    let config = Config::load(args.config.as_deref(), environment)?;
    config.fit_to_serve(&Roles::of(&args.roles), args.overrides)?;
    Ok(config)
}

/// Serves `roles` until a signal, or until one of them cannot go on. Operators may look in from the first moment on, also while
/// an engine is waited for.
pub(super) async fn run(config: Config, roles: &Roles) -> Result<(), ServeError> {
    let signalled = signals::drain();
    // First: who takes a handle of a metric before goes on counting nothing.
    let exposition = exposition::install(measured::TABLES)?;
    let told = telemetry::start(telemetry(&config, roles)?)?;
    let options = options(&config, roles)?;
    options.health.starting(roles.each().into_iter().map(Role::name));
    let admin = Admin::start(&config, exposition, &options.health).await?;
    let served = serve_over_engines(&config, options, signalled, admin.address).await;
    admin.stop().await;
    told.finish(TRACES_PATIENCE).await;
    served
}

async fn serve_over_engines(
    config: &Config,
    options: NodeOptions,
    signalled: CancellationToken,
    admin: SocketAddr,
) -> Result<(), ServeError> {
    let engines = tokio::select! {
        opened = open(config) => opened?,
        () = signalled.cancelled() => return Ok(()),
    };
    let started = tokio::select! {
        started = Node::start(engines.over(), options) => Some(started?),
        () = signalled.cancelled() => None,
    };
    let ended = match started {
        Some(node) => attend(config, node, signalled, admin).await,
        None => Ok(()),
    };
    let closed = engines.close(Instant::now() + CLOSE_PATIENCE).await.map_err(ServeError::Close);
    // What ended it says more than what came of it.
    ended.and(closed)
}

/// Waits for a reason to end, and drains.
async fn attend(
    config: &Config,
    mut node: Node,
    signalled: CancellationToken,
    admin: SocketAddr,
) -> Result<(), ServeError> {
    tracing::info!(addresses = ?node.addresses(), %admin, "serving");
    let fault = tokio::select! {
        () = signalled.cancelled() => None,
        fault = node.fault() => Some(fault),
    };
    let drained = tokio::time::timeout(config.shutdown.drain(), node.drain()).await;
    match (fault, drained) {
        (Some(fault), _) => Err(ServeError::Fault(fault)),
        (None, Err(_)) => Err(ServeError::Undrained(config.shutdown.drain_seconds)),
        (None, Ok(())) => {
            tracing::info!("drained");
            Ok(())
        }
    }
}

/// The port where operators look in.
struct Admin {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Admin {
    async fn start(config: &Config, exposition: Exposition, health: &Health) -> Result<Self, ServeError> {
        let address = config.admin.listen;
        let bound = serve::bind(address).await.map_err(|source| ServeError::Admin { address, source })?;
        let (address, stop, health) = (bound.address, CancellationToken::new(), health.clone());
        let answers = admin::Answers { exposition, ready: Arc::new(move || health.snapshot()) };
        Ok(Self { address, serving: tokio::spawn(admin::serve(bound, answers, stop.clone())), stop })
    }

    async fn stop(self) {
        self.stop.cancel();
        // It ends by itself; a panic of it has been told where it happened.
        let _ = self.serving.await;
    }
}

fn telemetry(config: &Config, roles: &Roles) -> Result<telemetry::Options, ServeError> {
    let ca_pem = config.telemetry.ca_file.as_deref().map(keys::read_public).transpose()?;
    let traces = config.telemetry.otlp_endpoint.clone().map(|endpoint| telemetry::Traces {
        endpoint,
        ca_pem,
        sample_ratio: config.telemetry.sample_ratio,
        instance: uuid::Uuid::new_v4().to_string(),
        roles: roles.each().into_iter().map(Role::name).collect(),
    });
    let diagnostics = &config.diagnostics;
    Ok(telemetry::Options { format: diagnostics.format.into(), filter: diagnostics.filter.clone(), traces })
}

async fn open(config: &Config) -> Result<Engines, OpenError> {
    match config.engines {
        config::Engines::Embedded => Engines::open(&config.data_dir, &config.embedded, Clock::system()).await,
        config::Engines::Cluster => Engines::open_cluster(config, Clock::system()).await,
    }
}

fn options(config: &Config, roles: &Roles) -> Result<NodeOptions, ServeError> {
    let asked = roles.contains(Role::Directory);
    let issuers = config.issuers.iter().filter(|_| asked).map(issuer).collect::<Result<_, _>>()?;
    let mut options = NodeOptions::new(Keys::load(config, roles)?, issuers);
    options.roles = roles.each();
    // A quorum of a cluster has every row that it answered for.
    options.replay = config.engines == config::Engines::Embedded;
    options.listen = listen(&config.listen);
    options.tls = keys::load_tls(config)?;
    options.link_advertise = config.link.advertise.clone();
    options.link_peers.clone_from(&config.link.peers);
    options.link_tls = keys::load_link_tls(config)?;
    options.grace = config.shutdown.drain().saturating_sub(FOLDS_PATIENCE);
    options.presence_timings.feed_kept = config.feeds.retention();
    options.presence_limits.window_events = config.limits.window_events;
    options.presence_limits.window_bytes = config.limits.window_bytes;
    options.ingest = wardline_ingest::Options {
        rate: Rate { burst: config.limits.send_burst, per_second: config.limits.send_per_second },
        append_deadline: Duration::from_secs(config.limits.append_deadline_seconds.into()),
        publish_in_flight: config.limits.publish_in_flight,
        publish_bytes: config.limits.publish_bytes,
    };
    Ok(options)
}

fn listen(listen: &config::Listen) -> node::Listen {
    node::Listen {
        ingest: listen.ingest,
        presence: listen.presence,
        receipt: listen.receipt,
        directory: listen.directory,
        link: listen.presence_link,
    }
}

fn issuer(issuer: &config::Issuer) -> Result<wardline_directory::Issuer, ServeError> {
    let file = &issuer.jwks_file;
    let jwks = fs::read_to_string(file).map_err(|source| ServeError::Jwks { file: file.clone(), source })?;
    let (url, audience) = (issuer.url.clone(), issuer.audience.clone());
    wardline_directory::Issuer::new(url, issuer.tenant, audience, scopes(&issuer.scopes), &jwks)
        .map_err(|source| ServeError::Issuer { file: file.clone(), source })
}

fn scopes(scopes: &[Scope]) -> Scopes {
    Scopes {
        operator: scopes.contains(&Scope::Operator),
        tenant_admin: scopes.contains(&Scope::TenantAdmin),
        directory_write: scopes.contains(&Scope::DirectoryWrite),
    }
}
