//! The admin port: what it answers, and that it is bounded.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{counter, histogram};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wardline_domain::metric::{Kind, Metric};
use wardline_runtime::admin::{Answers, serve};
use wardline_runtime::{exposition, serve as listener};

const TABLE: &[Metric] = &[
    Metric { name: "wardline_test_total", kind: Kind::Counter, labels: &["what"], help: "How many." },
    Metric { name: "wardline_test_seconds", kind: Kind::Histogram, labels: &[], help: "How long." },
];

struct Admin {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

async fn admin() -> Admin {
    let bound = listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (address, ready, stop) = (bound.address, Arc::new(AtomicBool::new(true)), CancellationToken::new());
    let told = Arc::clone(&ready);
    let ready_parts = move || vec![("ingest".to_owned(), true), ("fanout".to_owned(), told.load(Ordering::SeqCst))];
    let answers = Answers { exposition: exposition::install(&[TABLE]).unwrap(), ready: Arc::new(ready_parts) };
    let serving = tokio::spawn(serve(bound, answers, stop.clone()));
    Admin { address, ready, stop, serving }
}

impl Admin {
    /// What the port answers to one request, up to the end of the connection.
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn metrics_are_text_with_help_type_and_buckets() {
    let admin = admin().await;
    counter!("wardline_test_total", "what" => "asked").increment(2);
    histogram!("wardline_test_seconds").record(0.03);
    let answer = admin.ask("GET /metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for line in [
        "# HELP wardline_test_total How many.\n",
        "# TYPE wardline_test_total counter\n",
        "wardline_test_total{what=\"asked\"} 2\n",
        "# TYPE wardline_test_seconds histogram\n",
        "wardline_test_seconds_bucket{le=\"0.025\"} 0\n",
        "wardline_test_seconds_bucket{le=\"0.05\"} 1\n",
        "wardline_test_seconds_bucket{le=\"+Inf\"} 1\n",
        "# TYPE wardline_build_info gauge\n",
    ] {
        assert!(answer.contains(line), "{line} is not in {answer}");
    }
}

#[tokio::test]
async fn readiness_is_what_the_parts_say_and_life_goes_on() {
    let admin = admin().await;
    let ready = admin.ask("GET /readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("\r\n\r\ningest ready\nfanout ready\n"), "{ready}");
    admin.ready.store(false, Ordering::SeqCst);
    let waiting = admin.ask("GET /readyz").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("ingest ready\nfanout not ready\n"), "{waiting}");
    assert!(admin.ask("GET /livez").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn nothing_else_is_answered() {
    let admin = admin().await;
    assert!(admin.ask("GET /debug").await.starts_with("HTTP/1.1 404"));
    assert!(admin.ask("POST /metrics").await.starts_with("HTTP/1.1 405"));
    let head = admin.ask("HEAD /livez").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let long = format!("GET /{}", "x".repeat(64 << 10));
    assert!(!admin.ask(&long).await.starts_with("HTTP/1.1 2"));
}

/// Clients that say nothing take no more than the port's places, and give them back.
#[tokio::test]
async fn silent_clients_are_few() {
    let admin = admin().await;
    let mut silent = Vec::new();
    // Connections are accepted in order: the one that is closed at once tells that the others have their places.
    loop {
        let mut stream = TcpStream::connect(admin.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let closed = tokio::time::timeout(std::time::Duration::from_millis(50), stream.read_u8()).await.is_ok();
        if closed {
            break;
        }
        silent.push(stream);
        assert!(silent.len() < 1000, "the connections have no bound");
    }
    assert!(!silent.is_empty());
    silent.clear();
    while !admin.try_ask().await {
        tokio::task::yield_now().await;
    }
}

impl Admin {
    async fn try_ask(&self) -> bool {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        asked.is_ok() && stream.read_to_end(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 200")
    }
}

#[tokio::test]
async fn the_end_waits_for_nobody_who_is_silent() {
    let admin = admin().await;
    let mut silent = TcpStream::connect(admin.address).await.unwrap();
    silent.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    assert!(admin.ask("GET /livez").await.starts_with("HTTP/1.1 200"));
    admin.stop.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(30), admin.serving).await.unwrap().unwrap();
}
