//! Several instances of all roles in one process over shared engines, talking over real sockets.
//!
//! Deliberately absent: process kills. What must survive those runs as [`crate::server`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use secrecy::SecretString;
use tempfile::TempDir;
use wardline::config::Embedded;
use wardline::engines::Engines;
use wardline::issuer::Issuer;
use wardline::keys::Keys;
use wardline::node::{Node, NodeOptions, Over};
use wardline_client::{AccessTokens, Admin, Endpoints, Error};
use wardline_domain::TenantId;
use wardline_runtime::Clock;
use wardline_runtime::caller::Scopes;
use wardline_runtime::health::Health;

use crate::people::{People, Tokens};

/// The tenants that every cluster has: people live in the first, the second is for those who must not see them.
pub const TENANTS: [TenantId; 2] =
    [TenantId::from_bytes(*b"testbed-tenant-1"), TenantId::from_bytes(*b"testbed-tenant-2")];

const ISSUERS: [&str; 2] = ["https://one.issuer.invalid", "https://two.issuer.invalid"];
const OPERATOR: &str = "https://operator.issuer.invalid";

/// Whatever kept a cluster from coming up.
pub type StartError = Box<dyn std::error::Error + Send + Sync>;

/// A running cluster.
pub struct Cluster {
    nodes: Vec<Option<Node>>,
    over: Over,
    options: NodeOptions,
    issuers: [Issuer; 2],
    engines: Option<Engines>,
    dir: TempDir,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({} nodes)", self.nodes.len())
    }
}

struct Operator(Issuer);

#[async_trait]
impl AccessTokens for Operator {
    async fn access_token(&self) -> Result<SecretString, Error> {
        self.0.mint("operator", "operator", None).map_err(|_| Error::Invalid("no operator token"))
    }
}

impl Cluster {
    /// `count` instances of all roles, with the tenants made.
    pub async fn start(count: usize) -> Result<Self, StartError> {
        Self::start_with(count, |_| {}).await
    }

    /// As [`Cluster::start`], with other options for every instance.
    pub async fn start_with(count: usize, adjust: impl FnOnce(&mut NodeOptions)) -> Result<Self, StartError> {
        let dir = tempfile::tempdir()?;
        let clock = Clock::system();
        let engines = Engines::open(&dir.path().join("data"), &Embedded::default(), clock.clone()).await?;
        let keys = Keys::load_or_make(&dir.path().join("keys"))?;
        let make = |url: &str| Issuer::load_or_make(&dir.path().join("issuer"), url, clock.clone());
        let issuers = [make(ISSUERS[0])?, make(ISSUERS[1])?];
        let operator = make(OPERATOR)?;
        let accepted = accepted(&issuers, &operator);
        let mut options = NodeOptions::new(keys, accepted);
        options.grace = std::time::Duration::from_millis(500);
        adjust(&mut options);
        let over = Over {
            log: Arc::clone(&engines.log),
            stores: engines.stores.clone(),
            registry: Arc::clone(&engines.registry),
            clock,
        };
        let mut cluster = Self { nodes: Vec::new(), over, options, issuers, engines: Some(engines), dir };
        for _ in 0..count {
            cluster.add_node().await?;
        }
        let admin = Admin::new(&cluster.endpoints(0), Arc::new(Operator(operator)))?;
        for (tenant, issuer) in TENANTS.iter().zip(ISSUERS) {
            admin.create_tenant(*tenant, &[issuer.to_owned()], &[1, 2]).await?;
        }
        Ok(cluster)
    }

    /// One more instance; answers with its number.
    pub async fn add_node(&mut self) -> Result<usize, StartError> {
        // Each instance tells of itself.
        let options = NodeOptions { health: Health::default(), ..self.options.clone() };
        let node = Node::start(self.over.clone(), options).await?;
        self.nodes.push(Some(node));
        Ok(self.nodes.len() - 1)
    }

    /// Takes an instance out at once.
    pub async fn remove_node(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(index).and_then(Option::take) {
            node.abandon().await;
        }
    }

    /// Takes an instance out as an operator would.
    pub async fn drain_node(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(index).and_then(Option::take) {
            node.drain().await;
        }
    }

    /// The services of one instance. One that it does not run is at an address where nobody listens.
    ///
    /// # Panics
    /// When there is no such instance any more: the test is wrong.
    pub fn endpoints(&self, index: usize) -> Endpoints {
        let node = self.nodes.get(index).and_then(Option::as_ref).expect("the test asks for a running instance");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let url = |name| format!("http://{}", node.addresses().get(name).unwrap_or(&nowhere));
        Endpoints {
            directory: url("directory"),
            ingest: url("ingest"),
            presence: url("presence"),
            receipt: url("receipt"),
            tls: None,
        }
    }

    /// The URL of the presence link of one instance, which is for other instances only.
    ///
    /// # Panics
    /// When there is no such instance any more: the test is wrong.
    pub fn link(&self, index: usize) -> String {
        let node = self.nodes.get(index).and_then(Option::as_ref).expect("the test asks for a running instance");
        format!("http://{}", node.addresses()["link"])
    }

    /// People of a tenant, at one instance.
    pub fn people(&self, tenant: usize, index: usize) -> People {
        People::new(self.endpoints(index), self.tokens(tenant), self.dir.path())
    }

    /// Access tokens of a tenant's issuer.
    pub fn tokens(&self, tenant: usize) -> Tokens {
        let issuer = self.issuers[tenant].clone();
        Arc::new(move |subject, scope| {
            issuer.mint(subject, scope, None).unwrap_or_else(|error| panic!("no token: {error}"))
        })
    }

    /// The engines, for what tests look up behind the roles' backs.
    pub const fn over(&self) -> &Over {
        &self.over
    }

    /// The options that instances start with.
    pub const fn options_mut(&mut self) -> &mut NodeOptions {
        &mut self.options
    }

    /// Where the engines' files and the devices' files lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends everything in order.
    pub async fn stop(mut self) {
        for index in 0..self.nodes.len() {
            self.drain_node(index).await;
        }
        if let Some(engines) = self.engines.take() {
            let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
            if let Err(failure) = engines.close(deadline).await {
                tracing::warn!(%failure, "the engines did not close");
            }
        }
    }
}

fn accepted(tenants: &[Issuer; 2], operator: &Issuer) -> Vec<wardline_directory::Issuer> {
    let administrators = Scopes { tenant_admin: true, directory_write: true, operator: false };
    let operators = Scopes { operator: true, ..Scopes::default() };
    let [one, two] = tenants;
    vec![
        one.trusted(Some(TENANTS[0]), administrators),
        two.trusted(Some(TENANTS[1]), administrators),
        operator.trusted(None, operators),
    ]
}
