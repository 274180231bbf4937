//! `wardline dev`: everything in one process, on this machine only, with keys and an issuer of its own.
//!
//! Deliberately absent: anything that a real deployment has too. That is [`crate::node`].

mod demo;
mod transcript;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wardline_client::{AccessTokens, Admin, Device, Endpoints};
use wardline_domain::TenantId;
use wardline_runtime::Clock;
use wardline_runtime::caller::Scopes;

pub use self::demo::{Addresses, DemoError, play};
use crate::cli::{DevArgs, SessionArgs};
use crate::config::{self, Config};
use crate::engines::{self, Engines, OpenError};
use crate::issuer::{self, Issuer};
use crate::keys::{KeyError, Keys};
use crate::node::{Fault, Listen, Node, NodeOptions, StartError};
use crate::signals;

/// The tenant of every development deployment.
pub const TENANT: TenantId = TenantId::from_bytes(*b"wardline-dev-org");
/// What the issuer calls itself. It names no place, so that it stays the same when ports change.
pub const ISSUER: &str = "https://issuer.wardline-dev.invalid";
/// The issuer of whoever runs the deployment.
pub const OPERATOR: &str = "https://operator.wardline-dev.invalid";
/// Cipher suites: MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519 and MLS_128_DHKEMP256_AES128GCM_SHA256_P256.
const SUITES: [u16; 2] = [1, 2];
/// How long a step of the demonstration may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the development deployment ended.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The engines.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The roles.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The issuer's port.
    #[error("the issuer cannot listen on {address}: {source}")]
    Issuer {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the development deployment.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tenant could not be made.
    #[error("the development tenant: {0}")]
    Tenant(wardline_client::Error),
    /// The demonstration.
    #[error("the demonstration failed: {0}")]
    Demo(#[from] DemoError),
    /// A role.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The engines did not close.
    #[error("closing: {0}")]
    Close(wardline_domain::Failure),
    /// There is no such device, or no deployment.
    #[error("{0}")]
    Session(String),
}

/// What `wardline session` needs to know of a running deployment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    directory: String,
    ingest: String,
    presence: String,
    receipt: String,
    issuer: SocketAddr,
    /// The folder of the latest demonstration's devices.
    devices: Option<PathBuf>,
}

impl Running {
    fn addresses(&self) -> Addresses {
        let endpoints = Endpoints {
            directory: self.directory.clone(),
            ingest: self.ingest.clone(),
            presence: self.presence.clone(),
            receipt: self.receipt.clone(),
            tls: None,
        };
        Addresses { endpoints, issuer: self.issuer }
    }

    fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("dev").join("running.json")
    }

    fn write(&self, data_dir: &Path) -> Result<(), DevError> {
        let file = Self::file(data_dir);
        let text = serde_json::to_string_pretty(self).expect("strings and paths are JSON");
        std::fs::write(&file, text).map_err(|source| DevError::File { file, source })
    }

    fn read(data_dir: &Path) -> Result<Self, DevError> {
        let file = Self::file(data_dir);
        let text = std::fs::read_to_string(&file).map_err(|source| DevError::File { file, source })?;
        serde_json::from_str(&text).map_err(|error| DevError::Session(format!("running.json: {error}")))
    }
}

/// Runs the development deployment until a signal, or until the demonstration has ended. Of `config`, only the engines count.
pub async fn run(args: DevArgs, config: Config) -> Result<(), DevError> {
    // From the first moment on: a signal while it starts ends it as well as any other.
    let drain = signals::drain();
    let clock = Clock::system();
    let engines = open(&args.data_dir, &config, clock.clone()).await?;
    let keys = Keys::load_or_make(&args.data_dir.join("dev"))?;
    let issuer = Issuer::load_or_make(&args.data_dir.join("dev"), ISSUER, clock.clone())?;
    let operator = Issuer::load_or_make(&args.data_dir.join("dev"), OPERATOR, clock.clone())?;
    let stop = CancellationToken::new();
    let issuer_address = serve_issuer(&issuer, args.port_base, stop.clone()).await?;

    let over = engines.over();
    let mut options = NodeOptions::new(keys, issuers(&issuer, &operator));
    options.listen = Listen::consecutive(args.port_base);
    let mut node = Node::start(over, options).await?;
    let mut running = running(&node, issuer_address);
    table(&args.data_dir, &running);
    make_tenant(&running.addresses().endpoints, &operator).await.map_err(DevError::Tenant)?;
    running.write(&args.data_dir)?;

    let outcome = tokio::select! {
        outcome = demonstrate(&args, &mut running) => outcome,
        fault = node.fault() => Err(fault.into()),
        () = drain.cancelled() => Ok(()),
    };
    if outcome.is_ok() && !args.exit_after_demo && !drain.is_cancelled() {
        tokio::select! {
            fault = node.fault() => tracing::error!(%fault, "a role cannot go on"),
            () = drain.cancelled() => {}
        }
    }
    stop.cancel();
    node.drain().await;
    let closed = engines.close(Instant::now() + DRAIN).await.map_err(DevError::Close);
    outcome.and(closed)
}

/// A cluster's topics and tables are made if need be, as files are.
async fn open(data_dir: &Path, config: &Config, clock: Clock) -> Result<Engines, OpenError> {
    match config.engines {
        config::Engines::Embedded => Engines::open(data_dir, &config.embedded, clock).await,
        config::Engines::Cluster => {
            engines::migrate(config).await?;
            Engines::open_cluster(config, clock).await
        }
    }
}

async fn serve_issuer(issuer: &Issuer, port: u16, stop: CancellationToken) -> Result<SocketAddr, DevError> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let failed = |source| DevError::Issuer { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(issuer.clone().serve(listener, stop));
    Ok(address)
}

fn issuers(tenant: &Issuer, operator: &Issuer) -> Vec<wardline_directory::Issuer> {
    let administrators = Scopes { tenant_admin: true, directory_write: true, operator: false };
    let operators = Scopes { operator: true, ..Scopes::default() };
    vec![tenant.trusted(Some(TENANT), administrators), operator.trusted(None, operators)]
}

fn running(node: &Node, issuer: SocketAddr) -> Running {
    let url = |name: &str| node.addresses().get(name).map(|address| format!("http://{address}")).unwrap_or_default();
    Running {
        directory: url("directory"),
        ingest: url("ingest"),
        presence: url("presence"),
        receipt: url("receipt"),
        issuer,
        devices: None,
    }
}

fn table(data_dir: &Path, running: &Running) {
    let out = transcript::Transcript::new();
    out.heading("Wardline, development deployment. Not for real patient data.");
    out.line("");
    let issuer = format!("http://{}", running.issuer);
    for (role, address, what) in [
        ("directory", &running.directory, "sessions, users, devices, key packages"),
        ("ingest", &running.ingest, "conversations, sending"),
        ("presence", &running.presence, "feeds, history, presence"),
        ("receipt", &running.receipt, "delivered and read"),
        ("issuer", &issuer, "access tokens for anybody on this machine"),
    ] {
        out.line(&format!("  {role:<10} {address:<24} {what}"));
    }
    let data = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    out.line(&format!("  {:<10} {}", "data", data.display()));
}

/// An access token minted in this process: only for what comes before there is anybody to log in.
struct Minted(Issuer);

#[async_trait]
impl AccessTokens for Minted {
    async fn access_token(&self) -> Result<SecretString, wardline_client::Error> {
        let minted = self.0.mint("operator", "operator", None);
        minted.map_err(|_| wardline_client::Error::Invalid("the operator's token cannot be signed"))
    }
}

/// Makes [`TENANT`] with [`ISSUER`], or finds it made.
pub async fn make_tenant(at: &Endpoints, operator: &Issuer) -> Result<(), wardline_client::Error> {
    let admin = Admin::new(at, Arc::new(Minted(operator.clone())))?;
    admin.create_tenant(TENANT, &[ISSUER.to_owned()], &SUITES).await
}

async fn demonstrate(args: &DevArgs, running: &mut Running) -> Result<(), DevError> {
    if args.no_demo {
        return Ok(());
    }
    let folder = args.data_dir.join("devices").join(uuid::Uuid::now_v7().to_string());
    let mut at = running.addresses();
    if let Some(presence) = &args.demo_presence {
        at.endpoints.presence.clone_from(presence);
    }
    let patience = args.demo_patience.map_or(PATIENCE, Duration::from_secs);
    play(&at, &folder, patience).await?;
    running.devices = Some(folder);
    running.write(&args.data_dir)?;
    if !args.exit_after_demo {
        let out = transcript::Transcript::new();
        out.line("\nServing until Ctrl-C. A first call, with a session of Dr. Osei's tablet:\n");
        out.line(&format!(
            "  grpcurl -plaintext -H \"authorization: Bearer $(wardline session --data-dir {})\" \\\n    {} \
             wardline.v1.DeliveryService/ListConversations",
            args.data_dir.display(),
            running.presence.trim_start_matches("http://"),
        ));
    }
    Ok(())
}

/// A login of the development issuer.
struct Login {
    issuer: SocketAddr,
    subject: String,
}

#[async_trait]
impl AccessTokens for Login {
    async fn access_token(&self) -> Result<SecretString, wardline_client::Error> {
        let fetched = issuer::fetch_token(self.issuer, &self.subject, "").await;
        fetched.map_err(|_| wardline_client::Error::Invalid("the issuer gave no token"))
    }
}

/// A session token of a device that the latest demonstration enrolled.
pub async fn session(args: &SessionArgs) -> Result<String, DevError> {
    let running = Running::read(&args.data_dir)?;
    let folder = running
        .devices
        .clone()
        .ok_or_else(|| DevError::Session("the demonstration has not ended yet; wait for its verdict".to_owned()))?;
    let file = folder.join(format!("{}.db", args.who));
    if !file.is_file() {
        return Err(DevError::Session(format!("there is no {}; try physician, nurse or pharmacist", args.who)));
    }
    let subject = demo::subject(&folder, &args.who);
    let login = Arc::new(Login { issuer: running.issuer, subject });
    let at = running.addresses();
    let failed = |error: wardline_client::Error| DevError::Session(error.to_string());
    let device = Device::open(file, &at.endpoints, login, wardline_client::Options::default()).map_err(failed)?;
    let token = device.session_token().await.map_err(failed)?;
    device.close().await;
    Ok(token)
}
