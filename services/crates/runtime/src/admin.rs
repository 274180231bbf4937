//! The admin port: `/metrics`, `/livez`, `/readyz` over plain HTTP/1.1, for whoever runs the instance.
//!
//! The caller's duty: bind it where only the operator's machines reach it. It asks nobody who they are.
//!
//! Deliberately absent: anything that changes the instance, TLS, and bodies of requests, which are not read.

use std::convert::Infallible;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exposition::Exposition;
use crate::serve::Bound;

/// Connections at a time; more are closed at once.
const CONNECTIONS: usize = 32;
/// How long a client may take to send a request's head, and to begin the next one.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
/// How long one connection may last.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// How long to leave the port alone when it cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether each part of the instance is ready, by name.
pub type Ready = Arc<dyn Fn() -> Vec<(String, bool)> + Send + Sync>;

/// What the port answers with. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    /// `/metrics`.
    pub exposition: Exposition,
    /// `/readyz`: 200 when all are ready, else 503, with a line each. `/livez` is 200 as long as anything answers.
    pub ready: Ready,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answers")
    }
}

/// Answers until `stop`, and keeps the metrics' memory bounded meanwhile. What is being answered then is finished.
pub async fn serve(bound: Bound, answers: Answers, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    tasks.spawn(answers.exposition.clone().upkeep(stop.clone()));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(accepted) = stop.run_until_cancelled(bound.listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (answers, stop) = (answers.clone(), stop.clone());
        tasks.spawn(async move {
            connection(stream, &answers, &stop).await;
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn connection(stream: TcpStream, answers: &Answers, stop: &CancellationToken) {
    let service = service_fn(async |request: Request<Incoming>| Ok::<_, Infallible>(answer(&request, answers)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let life = tokio::time::sleep(CONNECTION_LIFE);
    tokio::select! {
        // How a client's connection ends is the client's affair.
        _ = &mut connection => return,
        () = life => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
}

fn answer<B>(request: &Request<B>, answers: &Answers) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, answers.exposition.render()),
        "/livez" => text(StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => ready(&(answers.ready)()),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n".to_owned()),
    }
}

fn ready(parts: &[(String, bool)]) -> Response<Full<Bytes>> {
    let lines = parts.iter().map(|(part, ready)| format!("{part} {}\n", if *ready { "ready" } else { "not ready" }));
    let all = parts.iter().all(|(_, ready)| *ready);
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, lines.collect())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
