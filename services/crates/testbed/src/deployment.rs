//! A whole deployment as processes: some instances of each role over a cluster's engines, one address for each public service,
//! an issuer, and people.
//!
//! It stands in for what runs containers: it starts again what ended by itself, and says so.
//!
//! Deliberately absent: what the engines do meanwhile, and what is sent.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio_util::sync::{CancellationToken, DropGuard};
use wardline::config::{self, Config, Scope};
use wardline::dev;
use wardline::issuer::{self, Issuer};
use wardline::node::Role;
use wardline_client::Endpoints;
use wardline_runtime::Clock;

use crate::balancer::Balancer;
use crate::engines::Fresh;
use crate::instance::{self, Instance, Start};
use crate::people::{People, Tokens};
use crate::process::Process;

/// How many presence instances may run besides those planned: while one replaces another, and when some are added.
const SPARE_LINKS: usize = 3;
/// Ports for the links: below those that the kernel gives to outgoing connections, so that one which is free for a moment
/// stays so.
const LINK_PORTS: std::ops::Range<u16> = 11_000..32_000;

/// The roles that are called, in the order of the balancers.
const CALLED: [Role; 4] = [Role::Directory, Role::Ingest, Role::Presence, Role::Receipt];

/// How many instances of each role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the role of its name")]
pub struct Plan {
    pub ingest: usize,
    pub fanout: usize,
    pub presence: usize,
    pub receipt: usize,
    pub directory: usize,
}

impl Plan {
    /// As many of each.
    pub const fn of_each(count: usize) -> Self {
        Self { ingest: count, fanout: count, presence: count, receipt: count, directory: count }
    }

    /// Of one role.
    pub const fn of(&self, role: Role) -> usize {
        match role {
            Role::Ingest => self.ingest,
            Role::Fanout => self.fanout,
            Role::Presence => self.presence,
            Role::Receipt => self.receipt,
            Role::Directory => self.directory,
        }
    }
}

/// The processes. All are killed when it is dropped.
#[derive(Debug)]
pub struct Deployment {
    binary: PathBuf,
    config: PathBuf,
    dir: PathBuf,
    engines: Fresh,
    tenant: Issuer,
    issuer: SocketAddr,
    _issuing: DropGuard,
    balancers: [Arc<Balancer>; 4],
    links: Vec<SocketAddr>,
    instances: Vec<Instance>,
    started: usize,
}

impl Deployment {
    /// Makes topics and tables in `engines`, starts what `plan` says, and waits until all is ready. Files go under `dir`.
    pub async fn start(binary: &Path, dir: &Path, engines: Fresh, plan: &Plan) -> io::Result<Self> {
        let clock = Clock::system();
        let made = |url| Issuer::load_or_make(&dir.join("issuer"), url, clock.clone()).map_err(io::Error::other);
        let (tenant, operator) = (made(dev::ISSUER)?, made(dev::OPERATOR)?);
        let links = free_addresses(plan.presence + SPARE_LINKS)?;
        let config = written(dir, &engines, &links, &tenant)?;
        migrate(binary, &config).await?;

        let stop = CancellationToken::new();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let issuer = listener.local_addr()?;
        tokio::spawn(tenant.clone().serve(listener, stop.clone()));
        let balancers = futures::future::try_join_all(CALLED.map(|_| Balancer::start())).await?;
        let balancers: [Balancer; 4] = balancers.try_into().expect("as many balancers as roles that are called");
        let mut deployment = Self {
            binary: binary.to_owned(),
            config,
            dir: dir.to_owned(),
            engines,
            tenant,
            issuer,
            _issuing: stop.drop_guard(),
            balancers: balancers.map(Arc::new),
            links,
            instances: Vec::new(),
            started: 0,
        };
        for role in Role::ALL {
            for _ in 0..plan.of(role) {
                deployment.spawn(role)?;
            }
        }
        deployment.ready().await?;
        dev::make_tenant(&deployment.endpoints(), &operator).await.map_err(io::Error::other)?;
        Ok(deployment)
    }

    /// The public services' addresses. They stay.
    pub fn endpoints(&self) -> Endpoints {
        let [directory, ingest, presence, receipt] =
            self.balancers.each_ref().map(|balancer| format!("http://{}", balancer.address()));
        Endpoints { directory, ingest, presence, receipt, tls: None }
    }

    /// The same with the issuer's, for the demonstration of `wardline dev`.
    pub fn addresses(&self) -> dev::Addresses {
        dev::Addresses { endpoints: self.endpoints(), issuer: self.issuer }
    }

    /// People of its tenant; their devices' files go under `dir`.
    pub fn people(&self, dir: &Path) -> People {
        let issuer = self.tenant.clone();
        let tokens: Tokens = Arc::new(move |subject, scope| {
            issuer.mint(subject, scope, None).unwrap_or_else(|error| panic!("no token: {error}"))
        });
        People::new(self.endpoints(), tokens, dir)
    }

    /// What it runs on.
    pub const fn engines(&self) -> &Fresh {
        &self.engines
    }

    /// How many instances of a role there are.
    pub fn count(&self, role: Role) -> usize {
        self.instances.iter().filter(|instance| instance.role() == role).count()
    }

    /// Waits until all are ready.
    pub async fn ready(&mut self) -> io::Result<()> {
        futures::future::try_join_all(self.instances.iter_mut().map(Instance::ready)).await.map(drop)
    }

    /// Those that are not ready now.
    pub fn unready(&self) -> Vec<&str> {
        self.instances.iter().filter(|instance| !instance.is_ready()).map(Instance::name).collect()
    }

    /// One instance more, ready.
    pub async fn add(&mut self, role: Role) -> io::Result<()> {
        self.spawn(role)?.ready().await
    }

    /// One instance more. Waits for nothing.
    pub fn spawn(&mut self, role: Role) -> io::Result<&mut Instance> {
        self.started += 1;
        let used: Vec<_> = self.instances.iter().filter_map(|instance| instance.start().link).collect();
        let link = match role {
            Role::Presence => {
                let free = self.links.iter().find(|link| !used.contains(link));
                Some(*free.ok_or_else(|| io::Error::other("more presence instances than links were planned"))?)
            }
            _ => None,
        };
        let called = CALLED.iter().position(|called| *called == role);
        let instance = Instance::spawn(Start {
            binary: self.binary.clone(),
            config: self.config.clone(),
            role,
            name: format!("{}-{}", role.name(), self.started),
            link,
            balancer: called.map(|at| Arc::clone(&self.balancers[at])),
            dir: self.dir.clone(),
        })?;
        self.instances.push(instance);
        self.instances.last_mut().ok_or_else(|| io::Error::other("no instances"))
    }

    fn nth(&self, role: Role, number: usize) -> io::Result<usize> {
        let mut of_role = self.instances.iter().enumerate().filter(|(_, instance)| instance.role() == role);
        let found = of_role.nth(number).map(|(at, _)| at);
        found.ok_or_else(|| io::Error::other(format!("there are not so many instances of {}", role.name())))
    }

    /// SIGKILL for the `number`th instance of a role, the oldest first, from 0.
    pub async fn kill(&mut self, role: Role, number: usize) -> io::Result<()> {
        let at = self.nth(role, number)?;
        self.instances.remove(at).kill().await
    }

    /// SIGTERM, and waits for its end.
    pub async fn drain(&mut self, role: Role, number: usize) -> io::Result<Duration> {
        let at = self.nth(role, number)?;
        self.instances.remove(at).drain().await
    }

    /// SIGSTOP: it does nothing and does not know it.
    pub async fn pause(&mut self, role: Role, number: usize) -> io::Result<()> {
        self.instances[self.nth(role, number)?].signal("STOP").await
    }

    /// SIGCONT.
    pub async fn resume(&mut self, role: Role, number: usize) -> io::Result<()> {
        self.instances[self.nth(role, number)?].signal("CONT").await
    }

    /// Starts a new instance for each that ended by itself. Answers what ended, how, and with which last words.
    pub fn supervise(&mut self) -> io::Result<Vec<String>> {
        let mut ended = Vec::new();
        for at in (0..self.instances.len()).rev() {
            if let Some(status) = self.instances[at].exited()? {
                let instance = self.instances.remove(at);
                ended.push(instance.failed(&format!("ended by itself: {status}")).to_string());
                self.spawn(instance.role())?;
            }
        }
        Ok(ended)
    }

    /// Panics that any instance has told of, by file and line.
    pub fn panics(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for file in std::fs::read_dir(&self.dir)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
                let told = text.lines().filter(|line| line.contains("panicked"));
                found.extend(told.map(|line| format!("{}: {line}", path.display())));
            }
        }
        Ok(found)
    }

    /// The last warnings of all instances, for failure messages.
    pub fn last_words(&self) -> String {
        let each = self.instances.iter().map(|instance| {
            let words = instance::last_words(&self.dir.join(format!("{}.jsonl", instance.name())));
            if words.is_empty() { String::new() } else { format!("{}:\n{words}\n", instance.name()) }
        });
        each.collect()
    }
}

async fn migrate(binary: &Path, config: &Path) -> io::Result<()> {
    let arguments = [Path::new("migrate"), Path::new("--allow-plaintext"), Path::new("--config"), config];
    let migrated = Process::start(binary, arguments, &[])?.ended().await?;
    if migrated.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("wardline migrate: {}\n{}", migrated.status, migrated.stderr)))
}

/// The configuration of all instances and the files that it names.
fn written(dir: &Path, engines: &Fresh, links: &[SocketAddr], tenant: &Issuer) -> io::Result<PathBuf> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::default();
    engines.configure(&mut config, &dir.join("data"));
    config.listen = config::Listen {
        ingest: anywhere,
        presence: anywhere,
        receipt: anywhere,
        directory: anywhere,
        presence_link: anywhere,
    };
    config.admin.listen = anywhere;
    config.session.keys_file = Some(secret(dir, "session.keys")?);
    config.authority.key_file = Some(secret(dir, "authority.key")?);
    config.link.key_file = Some(secret(dir, "link.key")?);
    config.link.peers = links.iter().map(|link| format!("http://{link}")).collect();
    let jwks = dir.join("issuer.jwks");
    std::fs::write(&jwks, tenant.jwks())?;
    let issuer = |url: &str, tenant, scopes| config::Issuer {
        url: url.to_owned(),
        tenant,
        jwks_file: jwks.clone(),
        audience: issuer::AUDIENCE.to_owned(),
        scopes,
    };
    config.issuers = vec![
        issuer(dev::ISSUER, Some(dev::TENANT), vec![Scope::TenantAdmin, Scope::DirectoryWrite]),
        issuer(dev::OPERATOR, None, vec![Scope::Operator]),
    ];
    let file = dir.join("wardline.toml");
    std::fs::write(&file, toml::to_string(&config).map_err(io::Error::other)?)?;
    Ok(file)
}

/// A file with a random key that only its owner reads.
fn secret(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let file = dir.join(name);
    let mut random = rand::rng();
    let key: String = (0..32).map(|_| format!("{:02x}", random.random::<u8>())).collect();
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create_new(true).mode(0o600).open(&file)?.write_all(key.as_bytes())?;
    Ok(file)
}

/// Different ones that nobody listens on.
fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let mut random = rand::rng();
    let mut held = Vec::new();
    for _ in 0..1000 {
        if held.len() == count {
            return held.iter().map(TcpListener::local_addr).collect();
        }
        // One that is taken is passed over.
        held.extend(TcpListener::bind(("127.0.0.1", random.random_range(LINK_PORTS))).ok());
    }
    Err(io::Error::other("no free ports for the links"))
}
