//! How a serving process ends: real signals to the real binary.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Longer than anything here takes, shorter than the drain's grace.
const PATIENCE: Duration = Duration::from_secs(15);

/// A `wardline serve all` on any free ports.
struct Serving {
    child: Child,
    /// Of the directory role, `host:port`.
    directory: String,
    _dir: tempfile::TempDir,
}

impl Serving {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wardline"));
        command
            .args(["serve", "all", "--allow-plaintext", "--allow-no-issuer", "--log", "info"])
            .env_clear()
            .env("WARDLINE_DATA_DIR", dir.path().join("data"))
            .env("WARDLINE_SESSION__KEYS_FILE", secret(dir.path(), "session"))
            .env("WARDLINE_AUTHORITY__KEY_FILE", secret(dir.path(), "authority"))
            .env("WARDLINE_LINK__KEY_FILE", secret(dir.path(), "link"))
            .stderr(Stdio::piped());
        command.env("WARDLINE_ADMIN__LISTEN", "127.0.0.1:0");
        for listener in ["INGEST", "PRESENCE", "RECEIPT", "DIRECTORY", "PRESENCE_LINK"] {
            command.env(format!("WARDLINE_LISTEN__{listener}"), "127.0.0.1:0");
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let serving = lines.find(|line| line.contains("\"addresses\"")).expect("it tells when it serves");
        let directory = address(&serving);
        // Somebody has to read what it prints, or it waits.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, directory, _dir: dir }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    async fn ended(mut self) -> ExitStatus {
        let waited = tokio::task::spawn_blocking(move || self.child.wait());
        timeout(PATIENCE, waited).await.expect("it ends").unwrap().unwrap()
    }
}

fn secret(dir: &Path, name: &str) -> std::path::PathBuf {
    use std::io::Write as _;
    let file = dir.join(name);
    let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).unwrap();
    writeln!(open, "{}", "5a".repeat(32)).unwrap();
    file
}

/// The directory's address in the line that says so.
fn address(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap();
    let addresses = line["addresses"].as_str().unwrap().to_owned();
    let (_, rest) = addresses.split_once("\"directory\": ").unwrap();
    rest.split([',', '}']).next().unwrap().to_owned()
}

#[tokio::test]
async fn either_signal_drains_and_ends_well() {
    for name in ["TERM", "INT"] {
        let serving = Serving::start();
        serving.signal(name);
        assert_eq!(serving.ended().await.code(), Some(0), "SIG{name}");
    }
}

async fn until(watch: &mut Streaming<HealthCheckResponse>, status: ServingStatus) {
    let told = async { while watch.message().await.unwrap().unwrap().status() != status {} };
    timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("it does not say {status:?}"));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_while_a_stream_holds_the_drain() {
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let serving = Serving::start();
        let endpoint = Endpoint::from_shared(format!("http://{}", serving.directory)).unwrap();
        let mut health = HealthClient::new(endpoint.connect().await.unwrap());
        let request = HealthCheckRequest { service: String::new() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        until(&mut watch, ServingStatus::Serving).await;

        serving.signal(name);
        // The drain has begun, and this stream holds it.
        until(&mut watch, ServingStatus::NotServing).await;
        serving.signal(name);
        assert_eq!(serving.ended().await.code(), Some(code), "SIG{name}");
    }
}
