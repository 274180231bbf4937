//! The spans of a message's way through a process, and how they hang together over processes.
//!
//! A call's span continues the caller's trace (W3C Trace Context in the metadata). What is appended for it has a span of its
//! own, whose name travels in the record's headers; who folds the record goes on from there (`wardline_log::fold`). All of it
//! follows OpenTelemetry's semantic conventions for RPC and messaging. What is not sampled costs a look at a thread's context.
//!
//! Deliberately absent: any id of a user, device, conversation or session among the attributes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{FutureExt as _, Link, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use wardline_log::trace::{self, TRACEPARENT, TraceParent};
use wardline_log::{Headers, Topic};

pub use opentelemetry::trace::SpanContext;

/// Whether spans are collected here.
static COLLECTED: AtomicBool = AtomicBool::new(false);

/// Spans are collected from now on.
pub(crate) fn collect() {
    COLLECTED.store(true, Ordering::Relaxed);
}

/// The scope of every span.
const SCOPE: &str = "wardline";

/// A span that goes on until this is dropped. Not sampled, it is nothing.
#[derive(Debug, Clone, Default)]
pub struct Ongoing(Option<Context>);

impl Ongoing {
    fn start(builder: SpanBuilder, parent: &Context) -> Self {
        let span = global::tracer(SCOPE).build_with_context(builder, parent);
        let context = Context::new().with_span(span);
        Self(context.span().span_context().is_sampled().then_some(context))
    }

    /// The context to work in, if it is sampled.
    pub(crate) const fn context(&self) -> Option<&Context> {
        self.0.as_ref()
    }

    /// Does work under it.
    pub async fn around<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            Some(context) => work.with_context(context.clone()).await,
            None => work.await,
        }
    }

    /// What records that come of it carry; none when it is not sampled.
    pub fn headers(&self) -> Headers {
        self.0.as_ref().map_or_else(Headers::new, |context| trace::headers(context.span().span_context()))
    }

    /// Ends the span of a call with its code.
    pub(crate) fn answered(&self, code: Code) {
        let Some(context) = &self.0 else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        if is_servers_fault(code) {
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// The trace's id in hex, for the diagnostics.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.0.as_ref().map(|context| context.span().span_context().trace_id().to_string())
    }
}

/// What the conventions call a server's error.
const fn is_servers_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

struct Metadata<'a>(&'a HeaderMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Begins the span of a call: the next of the caller's trace, or the first of a new one. `method` is a full path.
pub(crate) fn call(method: &str, metadata: &HeaderMap) -> Ongoing {
    let parent = if metadata.contains_key(TRACEPARENT) {
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Metadata(metadata))
    } else if COLLECTED.load(Ordering::Relaxed) {
        Context::new()
    } else {
        return Ongoing::default();
    };
    let name = method.trim_start_matches('/');
    let call = Ongoing::start(SpanBuilder::from_name(name.to_owned()).with_kind(SpanKind::Server), &parent);
    if let Some(context) = &call.0 {
        let span = context.span();
        span.set_attribute(KeyValue::new("rpc.system", "grpc"));
        if let Some((service, method)) = name.split_once('/') {
            span.set_attribute(KeyValue::new("rpc.service", service.to_owned()));
            span.set_attribute(KeyValue::new("rpc.method", method.to_owned()));
        }
    }
    call
}

/// Begins a trace for one message of a stream: a stream's own span would hold thousands of messages in one trace. It is
/// linked to the stream's, if that is sampled.
pub fn streamed(name: &'static str, stream: Option<&SpanContext>) -> Ongoing {
    if !COLLECTED.load(Ordering::Relaxed) {
        return Ongoing::default();
    }
    let links = stream.map(|stream| Link::new(stream.clone(), Vec::new(), 0)).into_iter().collect();
    let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server).with_links(links);
    Ongoing::start(builder, &Context::new())
}

/// The span that is worked in now, if it is sampled.
pub fn current() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        Some(span.span_context()).filter(|context| context.is_sampled()).cloned()
    })
}

/// Begins the span of an append to a topic, under the span that is worked in now; nothing unless that is sampled.
pub fn append(topic: Topic) -> Ongoing {
    if current().is_none() {
        return Ongoing::default();
    }
    let builder =
        SpanBuilder::from_name(format!("publish {}", topic.name())).with_kind(SpanKind::Producer).with_attributes([
            KeyValue::new("messaging.system", "wardline"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.destination.name", topic.name()),
        ]);
    Ongoing::start(builder, &Context::current())
}

/// What happened from `since` until now under `parent`, as a span of its own. Answers with its name for what follows from it;
/// `None` when nobody collects spans here.
pub fn passed(name: &'static str, parent: TraceParent, since: SystemTime) -> Option<TraceParent> {
    let parent = Context::new().with_remote_span_context(parent.context(Default::default()));
    let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_start_time(since);
    let span = Ongoing::start(builder, &parent);
    TraceParent::of(span.context()?.span().span_context())
}
