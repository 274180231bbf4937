//! The `wardline` binary as a process behind addresses that stay: killed, started again, and found by the same devices.
//!
//! Deliberately absent: what is sent to it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use wardline_client::Endpoints;

use crate::engines::Fresh;
use crate::forgetful::Forgetful;
use crate::forwarder::Forwarder;
use crate::people::{People, Tokens};
use crate::process;

/// How often a starting server is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How long it may take to start.
const START: Duration = Duration::from_secs(60);

/// What is told when nobody asks for more or less.
const FILTER: &str = "info,wardline=debug";

/// A `wardline dev` process without demonstration.
pub struct Server {
    binary: PathBuf,
    data: PathBuf,
    diagnostics: PathBuf,
    filter: &'static str,
    engines: Option<Fresh>,
    fronts: [Forwarder; 4],
    disk: Option<Forgetful>,
    child: Option<Child>,
    issuer: Option<SocketAddr>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("running", &self.child.is_some()).finish_non_exhaustive()
    }
}

/// The names of the services as `running.json` has them, in the order of the fronts.
const SERVICES: [&str; 4] = ["directory", "ingest", "presence", "receipt"];

impl Server {
    /// Runs `binary` over `data`. Diagnostics of all its runs go to one file beside it.
    pub async fn start(binary: &Path, data: &Path, disk: Option<Forgetful>) -> io::Result<Self> {
        Self::start_telling(binary, data, disk, FILTER).await
    }

    /// Runs `binary` over `engines`, and over `data` for what they do not hold.
    pub async fn start_over(binary: &Path, data: &Path, engines: Fresh) -> io::Result<Self> {
        let mut server = Self::stopped(binary, data, FILTER).await?;
        server.engines = Some(engines);
        server.restart().await?;
        Ok(server)
    }

    /// As [`Server::start`], with diagnostics that pass `filter`.
    pub async fn start_telling(
        binary: &Path,
        data: &Path,
        disk: Option<Forgetful>,
        filter: &'static str,
    ) -> io::Result<Self> {
        let mut server = Self::stopped(binary, data, filter).await?;
        server.disk = disk;
        server.restart().await?;
        Ok(server)
    }

    async fn stopped(binary: &Path, data: &Path, filter: &'static str) -> io::Result<Self> {
        let fronts = [
            Forwarder::start().await?,
            Forwarder::start().await?,
            Forwarder::start().await?,
            Forwarder::start().await?,
        ];
        Ok(Self {
            binary: binary.to_owned(),
            data: data.to_owned(),
            diagnostics: data.with_extension("diagnostics"),
            filter,
            engines: None,
            fronts,
            disk: None,
            child: None,
            issuer: None,
        })
    }

    /// Starts it again over the same data, and leads the fronts to it.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts the process and waits for nothing: for those who want to kill it before it is up.
    pub fn spawn(&mut self) -> io::Result<()> {
        // What the run before said of itself. There is none when it did not get that far.
        let _ = std::fs::remove_file(self.running());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.diagnostics)?;
        let mut command = Command::new(&self.binary);
        command
            .args(["dev", "--no-demo", "--port-base", "0", "--log", self.filter, "--data-dir"])
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        process::without_configuration(|name| {
            command.env_remove(name);
        });
        if let Some(engines) = &self.engines {
            command.envs(engines.variables(&self.data)?);
        }
        if let Some(disk) = &self.disk {
            disk.command_env(&mut command);
        }
        self.child = Some(command.spawn()?);
        Ok(())
    }

    fn running(&self) -> PathBuf {
        self.data.join("dev").join("running.json")
    }

    /// Waits until it serves, and leads the fronts to it.
    async fn ready(&mut self) -> io::Result<()> {
        let running = self.running();
        let until = Instant::now() + START;
        loop {
            if let Some(addresses) = read(&running) {
                return self.lead(&addresses);
            }
            let exited = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if exited.is_some() || Instant::now() > until {
                return Err(io::Error::other(format!("the server did not start: {}", self.last_words())));
            }
            sleep(POLL).await;
        }
    }

    fn lead(&mut self, addresses: &serde_json::Value) -> io::Result<()> {
        let parse = |name: &str| {
            let text = addresses[name].as_str().unwrap_or_default().trim_start_matches("http://").to_owned();
            text.parse::<SocketAddr>().map_err(|_| io::Error::other("running.json names no address"))
        };
        for (front, name) in self.fronts.iter().zip(SERVICES) {
            front.lead_to(Some(parse(name)?));
        }
        self.issuer = Some(parse("issuer")?);
        Ok(())
    }

    /// SIGKILL. With a forgetful disk, what was not synced is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        for front in &self.fronts {
            front.lead_to(None);
        }
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        if let Some(disk) = &self.disk {
            disk.forget().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The process's id, for other signals.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it ended by itself, and how.
    pub fn exited(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.child.as_mut().map(Child::try_wait).transpose().map(Option::flatten)
    }

    /// Waits until it ends by itself. Cancel-safe.
    pub async fn ended(&mut self) -> io::Result<std::process::ExitStatus> {
        loop {
            match self.exited()? {
                Some(status) => return Ok(status),
                None => sleep(POLL).await,
            }
        }
    }

    /// The addresses that stay.
    pub fn endpoints(&self) -> Endpoints {
        let [directory, ingest, presence, receipt] =
            self.fronts.each_ref().map(|front| format!("http://{}", front.address()));
        Endpoints { directory, ingest, presence, receipt, tls: None }
    }

    /// People of its tenant; their devices' files go under `dir`. Its issuer's key is read from its data directory, so that
    /// they can log in while it is down.
    pub fn people(&self, dir: &Path) -> io::Result<People> {
        let clock = wardline_runtime::Clock::system();
        let keys = self.data.join("dev");
        let issuer = wardline::issuer::Issuer::load_or_make(&keys, wardline::dev::ISSUER, clock);
        let issuer = issuer.map_err(io::Error::other)?;
        let tokens: Tokens = Arc::new(move |subject, scope| {
            issuer.mint(subject, scope, None).unwrap_or_else(|error| panic!("no token: {error}"))
        });
        Ok(People::new(self.endpoints(), tokens, dir))
    }

    /// Where the diagnostics of all runs are.
    pub fn diagnostics(&self) -> &Path {
        &self.diagnostics
    }

    /// The development issuer of the present run.
    pub const fn issuer(&self) -> Option<SocketAddr> {
        self.issuer
    }

    /// The last warnings and errors of all runs, for failure messages.
    pub fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.diagnostics).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let grave =
            |line: &&str| ["WARN", "ERROR", "rror:", "panicked", "cannot"].iter().any(|word| line.contains(word));
        let lines: Vec<&str> = text.lines().filter(grave).collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Nothing may outlive the test; a process that is gone already is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read(running: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(running).ok()?).ok()
}
