//! What stands before every handler of a server: a span that names the method, a count, room, a deadline, and a net under
//! panics.
//!
//! Methods that need no session have little room of their own and a short deadline: whoever sends them slowly keeps nobody
//! with a session out.
//!
//! Deliberately absent: per-caller quotas (roles know what costs), and anything of the request in the span but the method.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::Empty;
use wardline_proto::reason::Reason;

use crate::Refusal;
use crate::auth::{REFLECTION, refuse};
use crate::calls::{Calls, Counting};
use crate::serve::Options;
use crate::status::RETRY_AFTER;
use crate::trace;

/// Answered however busy the server is, or it would be taken for dead.
const ALWAYS: &str = crate::auth::HEALTH;

/// The layer.
#[derive(Debug, Clone)]
pub(crate) struct GuardLayer {
    rest: Room,
    open: Room,
    /// The methods that need no session; reflection beside them.
    open_methods: &'static [&'static str],
    methods: Arc<HashMap<String, Arc<Calls>>>,
    others: Arc<Others>,
}

/// Calls of what is not a method of ours.
#[derive(Debug)]
struct Others {
    health: Arc<Calls>,
    reflection: Arc<Calls>,
    unknown: Arc<Calls>,
}

/// Room for handlers at work at a time, and how long each may take until its response begins.
#[derive(Debug, Clone)]
struct Room {
    permits: Arc<Semaphore>,
    timeout: Option<Duration>,
}

impl Room {
    fn new(requests: usize, timeout: Option<Duration>) -> Self {
        Self { permits: Arc::new(Semaphore::new(requests.min(Semaphore::MAX_PERMITS))), timeout }
    }
}

impl GuardLayer {
    /// With the room of `options`; `open_methods` need no session.
    pub(crate) fn new(options: &Options, open_methods: &'static [&'static str]) -> Self {
        Self {
            rest: Room::new(options.max_concurrent_requests, options.timeout),
            open: Room::new(options.max_concurrent_open_requests, options.open_timeout),
            open_methods,
            methods: Arc::new(methods().into_iter().map(|path| (path.clone(), Calls::of(path))).collect()),
            others: Arc::new(Others {
                health: Calls::of("/grpc.health".to_owned()),
                reflection: Calls::of("/grpc.reflection".to_owned()),
                unknown: Calls::of("unknown".to_owned()),
            }),
        }
    }

    fn room_of(&self, path: &str) -> &Room {
        if self.open_methods.contains(&path) || path.starts_with(REFLECTION) { &self.open } else { &self.rest }
    }

    /// The method for the span and the metrics; what a client invented is not repeated.
    fn calls_of(&self, path: &str) -> &Arc<Calls> {
        if let Some(calls) = self.methods.get(path) {
            calls
        } else if path.starts_with(ALWAYS) {
            &self.others.health
        } else if path.starts_with(REFLECTION) {
            &self.others.reflection
        } else {
            &self.others.unknown
        }
    }
}

/// The paths of all methods of the protocol.
fn methods() -> Vec<String> {
    let Ok(files) = prost_types::FileDescriptorSet::decode(wardline_proto::ALL_DESCRIPTORS) else {
        unreachable!("the descriptors were encoded by the build");
    };
    let mut methods = Vec::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, layer: self.clone() }
    }
}

/// What [`GuardLayer`] makes of a service.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    layer: GuardLayer,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let calls = self.layer.calls_of(path);
        let trace = trace::call(calls.method(), request.headers());
        let span = tracing::info_span!("request", method = calls.method(), trace_id = Empty);
        if let Some(id) = trace.trace_id() {
            span.record("trace_id", id);
        }
        let counting = Counting::begin(calls, trace.clone());
        let room = self.layer.room_of(path);
        let timeout = room.timeout;
        let permit = Arc::clone(&room.permits).try_acquire_owned();
        if permit.is_err() && !path.starts_with(ALWAYS) {
            tracing::debug!(parent: &span, "no room");
            let refusal = Refusal::new(Reason::Overloaded).retry_after(RETRY_AFTER);
            return futures::future::ready(Ok(counting.answered(refuse(refusal)))).boxed();
        }
        // Held until the response begins: a stream's later work is bounded by its role.
        let handler = span.in_scope(|| self.inner.call(request));
        async move {
            let _permit = permit;
            let answer = within(timeout, trace.around(AssertUnwindSafe(handler).catch_unwind())).await;
            Ok(counting.answered(match answer {
                Some(Ok(Ok(response))) => reasoned(response),
                Some(Err(_)) => {
                    tracing::error!("a handler panicked");
                    refuse(Refusal::new(Reason::Internal))
                }
                None => refuse(Refusal::new(Reason::DeadlineExceeded).retry_after(RETRY_AFTER)),
            }))
        }
        .instrument(span)
        .boxed()
    }
}

/// What the gRPC library refuses before a handler sees it gets a reason from the table like any other refusal: bytes that are
/// not the method's message, which gRPC calls INTERNAL, and messages above the service's bound.
fn reasoned(response: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    match status.code() {
        _ if !status.details().is_empty() => response,
        Code::Internal => refuse(Refusal::field("request", "must be a serialized message of the method")),
        Code::OutOfRange => refuse(Refusal::new(Reason::TooLarge)),
        _ => response,
    }
}

async fn within<F: Future>(timeout: Option<Duration>, work: F) -> Option<F::Output> {
    match timeout {
        Some(timeout) => tokio::time::timeout(timeout, work).await.ok(),
        None => Some(work.await),
    }
}
