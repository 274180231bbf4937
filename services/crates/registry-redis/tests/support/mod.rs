//! Redis servers of a test's own, and waiting for what they say.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use wardline_registry::Registry;
use wardline_registry_redis::RedisRegistry;

/// How long anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An engine's address from the environment. Without one the test is skipped, but not in continuous integration.
pub(crate) fn configured(variable: &str) -> Option<String> {
    let found = std::env::var(variable).ok().filter(|address| !address.is_empty());
    found.or_else(|| skip(&format!("{variable} is not set")))
}

/// A prefix nobody else uses.
pub(crate) fn unique() -> String {
    format!("test-{}", uuid::Uuid::new_v4().simple())
}

fn skip<T>(reason: &str) -> Option<T> {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}, and this is continuous integration");
    println!("skipped: {reason}");
    None
}

/// Waits until the registry answers.
pub(crate) async fn answers(registry: &RedisRegistry) {
    until("Redis to answer", || async { registry.session_ended([0; 16]).await.is_ok() }).await;
}

/// Waits until it does not.
pub(crate) async fn fails(registry: &RedisRegistry) {
    until("Redis to fail", || async { registry.session_ended([0; 16]).await.is_err() }).await;
}

/// Waits for a condition.
pub(crate) async fn until<Told: Future<Output = bool>>(what: &str, told: impl Fn() -> Told) {
    let end = Instant::now() + PATIENCE;
    while !told().await {
        assert!(Instant::now() < end, "waited too long for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A `redis-server` process of this test's own.
pub(crate) struct Redis {
    binary: PathBuf,
    port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Redis {
    /// One that is not running yet. `None` when there is no `redis-server` on this machine.
    pub(crate) fn new(arguments: &[&str]) -> Option<Self> {
        let named = std::env::var_os("WARDLINE_TEST_REDIS_SERVER").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = || std::env::split_paths(&path).map(|dir| dir.join("redis-server")).find(|file| file.is_file());
        let found = named.or_else(on_path);
        let binary =
            found.or_else(|| skip("WARDLINE_TEST_REDIS_SERVER names none, and there is no redis-server on PATH"))?;
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Some(Self { binary, port: free_port(), arguments, process: None })
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it, empty, and waits until it listens.
    pub(crate) async fn start(&mut self, port_argument: &str) {
        let mut command = Command::new(&self.binary);
        if port_argument != "--port" {
            command.args(["--port", "0"]);
        }
        command
            .arg(port_argument)
            .arg(self.port.to_string())
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(std::env::temp_dir())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let address = self.address();
        until("redis-server to listen", || async { tokio::net::TcpStream::connect(&address).await.is_ok() }).await;
    }

    /// SIGKILL: everything in it is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops or continues it.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that was free a moment ago. A server cannot be restarted at port 0 and be found again.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Writes a certificate authority and a server's certificate for 127.0.0.1; answers with the files.
pub(crate) fn certificates(dir: &Path) -> [PathBuf; 3] {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let files = ["ca.pem", "server.pem", "server.key"].map(|name| dir.join(name));
    std::fs::write(&files[0], made.pem()).unwrap();
    std::fs::write(&files[1], made.pem()).unwrap();
    std::fs::write(&files[2], key.serialize_pem()).unwrap();
    files
}
