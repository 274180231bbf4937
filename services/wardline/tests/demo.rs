//! The demonstration as anybody runs it: what it prints, how it ends, and that it believes nothing but its sockets.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use wardline_testbed::process::{Ended, Process};
use wardline_testbed::proxy::{self, Alter, Proxy};

const BINARY: &str = env!("CARGO_BIN_EXE_wardline");
/// A sequence whose loss the demonstration must notice: the nurse's first reply.
const A_REPLY: u64 = 3;
/// How many steps the demonstration has.
const STEPS: usize = 14;

fn start(data: &Path, more: &[&str]) -> Process {
    let mut arguments = vec!["dev", "--exit-after-demo", "--port-base", "0", "--data-dir", data.to_str().unwrap()];
    arguments.extend(more);
    Process::start(Path::new(BINARY), arguments, &[]).unwrap()
}

/// The numbers of the steps that were done, in the order printed.
fn steps(stdout: &str) -> Vec<usize> {
    let numbered = stdout.lines().filter(|line| line.ends_with(" ms"));
    numbered.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

fn passed(ended: &Ended) {
    assert_eq!(ended.status.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(steps(&ended.stdout), (1..=STEPS).collect::<Vec<_>>(), "{}", ended.stdout);
    let last = ended.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("PASS 5 messages and ") && !ended.stdout.contains("FAIL"), "{}", ended.stdout);
}

#[tokio::test]
async fn it_passes_and_passes_again_over_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for _ in 0..2 {
        let mut process = start(&data, &[]);
        for role in ["directory", "ingest", "presence", "receipt", "issuer"] {
            let url = process.address(role).await.unwrap();
            let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
            assert!(url.starts_with("http://127.0.0.1:") && port != 0, "{role} is at {url}");
        }
        process.printed(|line| line.split_whitespace().next() == Some("data")).await.unwrap();
        passed(&process.ended().await.unwrap());
    }
}

/// Runs the demonstration with a proxy before the presence role.
async fn through(alter: Alter) -> (Ended, u64) {
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(alter).await.unwrap();
    let mut process = start(&dir.path().join("data"), &["--demo-presence", &proxy.url(), "--demo-patience", "5"]);
    proxy.lead_to(&process.address("presence").await.unwrap()).unwrap();
    (process.ended().await.unwrap(), proxy.frames())
}

#[tokio::test]
async fn it_passes_through_a_proxy_that_withholds_nothing() {
    let (ended, frames) = through(proxy::nothing()).await;
    passed(&ended);
    assert!(frames > 0, "the devices did not attach through the proxy");
}

#[tokio::test]
async fn it_fails_when_one_event_never_comes() {
    let (ended, _) = through(proxy::withholding(A_REPLY)).await;
    assert_eq!(ended.status.code(), Some(1), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.lines().any(|line| line.starts_with("FAIL step ")), "{}", ended.stdout);
    assert!(!ended.stdout.contains("PASS"), "{}", ended.stdout);
    assert!(ended.stderr.contains("the demonstration failed"), "{}", ended.stderr);
}
