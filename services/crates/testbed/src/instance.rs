//! One process of a deployment: a role that is started, found ready, disturbed and ended.
//!
//! Whether it gets new connections follows from its readiness, as a Kubernetes Service's endpoints do.
//!
//! Deliberately absent: which instances there are, and starting one again that ended by itself.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use wardline::config::PREFIX;
use wardline::node::Role;

use crate::balancer::Balancer;
use crate::between;
use crate::process;

/// How often a starting process is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often a running one is asked, and how long its answer may take.
const PROBE: Duration = Duration::from_secs(1);
/// Answers missed in a row before it gets no new connections.
const MISSES: u32 = 2;
/// How long it may take to become ready.
const START: Duration = Duration::from_secs(90);
/// How long it may take to end after SIGTERM: more than `shutdown.drain_seconds`.
const END: Duration = Duration::from_secs(40);

/// What an instance runs, and where.
#[derive(Debug, Clone)]
pub struct Start {
    /// The `wardline` binary.
    pub binary: PathBuf,
    /// The configuration that all share.
    pub config: PathBuf,
    /// Its role.
    pub role: Role,
    /// What it is called in transcripts and files.
    pub name: String,
    /// Where other presence instances reach it; fixed, because all of them know it.
    pub link: Option<SocketAddr>,
    /// Who sends it connections. Nobody calls fanout.
    pub balancer: Option<Arc<Balancer>>,
    /// Where its diagnostics go.
    pub dir: PathBuf,
}

/// A process. Killed when it is dropped.
#[derive(Debug)]
pub struct Instance {
    start: Start,
    child: Child,
    ready: watch::Receiver<bool>,
    _attending: DropGuard,
}

impl Instance {
    /// Starts the process and waits for nothing.
    pub fn spawn(start: Start) -> io::Result<Self> {
        let diagnostics = start.dir.join(format!("{}.jsonl", start.name));
        let log = std::fs::File::create(&diagnostics)?;
        let mut command = Command::new(&start.binary);
        process::without_configuration(|name| {
            command.env_remove(name);
        });
        command.arg("serve").arg(start.role.name()).arg("--allow-plaintext").arg("--config").arg(&start.config);
        if let Some(link) = start.link {
            command.env(format!("{PREFIX}LISTEN__PRESENCE_LINK"), link.to_string());
            command.env(format!("{PREFIX}LINK__ADVERTISE"), format!("http://{link}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        // What interrupts a test at its terminal is not for its processes: they are ended in order.
        command.process_group(0);
        let child = command.spawn()?;
        let (told, ready) = watch::channel(false);
        let stop = CancellationToken::new();
        between::spawn(attend(start.clone(), diagnostics, told, stop.clone()))?;
        Ok(Self { start, child, ready, _attending: stop.drop_guard() })
    }

    /// What it is.
    pub const fn start(&self) -> &Start {
        &self.start
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.start.name
    }

    /// Its role.
    pub const fn role(&self) -> Role {
        self.start.role
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> io::Result<()> {
        let began = tokio::time::Instant::now();
        while began.elapsed() < START {
            if let Some(status) = self.exited()? {
                return Err(self.failed(&format!("ended while it started: {status}")));
            }
            if let Ok(Ok(_)) = timeout(LOOK, self.ready.wait_for(|ready| *ready)).await {
                return Ok(());
            }
        }
        Err(self.failed("did not become ready"))
    }

    /// Whether it was ready when it was last asked.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Whether it has ended by itself, and how.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends a signal, such as `STOP`.
    pub async fn signal(&self, name: &str) -> io::Result<()> {
        let id = self.child.id().ok_or_else(|| self.failed("has ended"))?;
        process::signal(id, name).await
    }

    /// SIGKILL, and waits for its end.
    pub async fn kill(mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// SIGTERM, and waits for its end. It gets no new connections from here on.
    ///
    /// # Errors
    /// It did not end in time, or not well.
    pub async fn drain(mut self) -> io::Result<Duration> {
        let began = tokio::time::Instant::now();
        let (stop, child) = (self._attending, &mut self.child);
        drop(stop);
        let failed = |what: &str| failed(&self.start, what);
        let id = child.id().ok_or_else(|| failed("had ended before its drain"))?;
        process::signal(id, "TERM").await?;
        let status = timeout(END, child.wait()).await.map_err(|_| failed("did not end after SIGTERM"))??;
        if status.success() { Ok(began.elapsed()) } else { Err(failed(&format!("did not drain well: {status}"))) }
    }

    /// An error about it, with its last warnings.
    pub fn failed(&self, what: &str) -> io::Error {
        failed(&self.start, what)
    }
}

fn failed(start: &Start, what: &str) -> io::Error {
    let words = last_words(&start.dir.join(format!("{}.jsonl", start.name)));
    io::Error::other(format!("{} {what}\n{words}", start.name))
}

/// The last warnings and errors in a file of diagnostics.
pub fn last_words(diagnostics: &Path) -> String {
    let bytes = std::fs::read(diagnostics).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let grave = |line: &&str| !line.contains("\"level\":\"INFO\"");
    let lines: Vec<&str> = text.lines().filter(grave).collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Asks the process whether it is ready, and tells its balancer, until it is told to stop.
async fn attend(start: Start, diagnostics: PathBuf, told: watch::Sender<bool>, stop: CancellationToken) {
    let Some(serving) = stop.run_until_cancelled(serving(&diagnostics)).await else { return };
    let address = serving.addresses.get(start.role.name()).copied();
    let balanced = address.zip(start.balancer);
    let probing = async {
        let mut missed = MISSES;
        loop {
            let ready = timeout(PROBE, is_ready(serving.admin)).await.is_ok_and(|ready| ready.unwrap_or(false));
            missed = if ready { 0 } else { missed.saturating_add(1) };
            if let Some((address, balancer)) = &balanced {
                match missed {
                    0 => balancer.add(*address),
                    MISSES.. => balancer.remove(*address),
                    _ => {}
                }
            }
            told.send_replace(missed < MISSES);
            sleep(if missed == 0 { PROBE } else { LOOK }).await;
        }
    };
    let _: Option<()> = stop.run_until_cancelled(probing).await;
    if let Some((address, balancer)) = &balanced {
        balancer.remove(*address);
    }
}

/// Where a process serves, by its own diagnostics.
struct Serving {
    addresses: BTreeMap<String, SocketAddr>,
    admin: SocketAddr,
}

async fn serving(diagnostics: &Path) -> Serving {
    loop {
        let text = tokio::fs::read_to_string(diagnostics).await.unwrap_or_default();
        if let Some(serving) = text.lines().rev().find_map(parse) {
            return serving;
        }
        sleep(LOOK).await;
    }
}

/// `{…, "message": "serving", "addresses": "{\"ingest\": 127.0.0.1:1234}", "admin": "127.0.0.1:1235"}`.
fn parse(line: &str) -> Option<Serving> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let addresses = line["addresses"].as_str()?.trim_start_matches('{').trim_end_matches('}');
    let pairs = addresses.split(", ").filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, address) = pair.split_once(": ")?;
        Some((name.trim_matches('"').to_owned(), address.parse().ok()?))
    });
    Some(Serving { addresses: pairs.collect::<Option<_>>()?, admin: line["admin"].as_str()?.parse().ok()? })
}

async fn is_ready(admin: SocketAddr) -> io::Result<bool> {
    let mut connection = TcpStream::connect(admin).await?;
    connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: instance\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_are_read_from_diagnostics() {
        let line = r#"{"message":"serving","addresses":"{\"presence\": 127.0.0.1:1, \"presence_link\": 127.0.0.1:2}","admin":"127.0.0.1:3"}"#;
        let serving = parse(line).unwrap();
        assert_eq!(serving.addresses["presence"].port(), 1);
        assert_eq!(serving.addresses["presence_link"].port(), 2);
        assert_eq!(serving.admin.port(), 3);
        let fanout = parse(r#"{"addresses":"{}","admin":"127.0.0.1:3"}"#).unwrap();
        assert!(fanout.addresses.is_empty());
        assert!(parse(r#"{"message":"serving","role":"ingest"}"#).is_none());
    }
}
