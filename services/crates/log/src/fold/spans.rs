//! A span for each record that comes from a sampled one, from the beginning of its batch to the checkpoint.
//!
//! What a record causes names this span as its parent: the records that a fold sees carry it in place of what they came with.
//!
//! Deliberately absent: spans of records without a sampled context. Their headers are looked at, and that is all.

use std::time::SystemTime;

use opentelemetry::global::{self, BoxedSpan, BoxedTracer};
use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};

use crate::seam::{Group, LogRecord};
use crate::topic::Topic;
use crate::trace::{MOST, TRACEPARENT, TraceParent, state};

/// Makes the spans of one partition's fold.
pub(super) struct Tracer {
    tracer: BoxedTracer,
    name: String,
    attributes: Vec<KeyValue>,
}

/// The spans of a batch. They end when this is dropped.
pub(super) struct Spans {
    _spans: Vec<BoxedSpan>,
}

impl Tracer {
    /// Attributes are those of OpenTelemetry's semantic conventions for messaging.
    pub(super) fn new(topic: Topic, group: Group, partition: u32) -> Self {
        let mut attributes = vec![
            KeyValue::new("messaging.system", "wardline"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", topic.name()),
            KeyValue::new("messaging.destination.partition.id", partition.to_string()),
        ];
        if let Group::Named(group) = group {
            attributes.push(KeyValue::new("messaging.consumer.group.name", group));
        }
        Self { tracer: global::tracer("wardline"), name: format!("process {}", topic.name()), attributes }
    }

    /// Begins the spans of a batch.
    pub(super) fn begin(&self, batch: &mut [LogRecord]) -> Spans {
        let mut spans = Vec::new();
        let mut now = None;
        for record in batch.iter_mut().filter(|record| !record.headers.is_empty()) {
            let state = state(&record.headers);
            let values = record.headers.iter_mut().filter(|(name, _)| name == TRACEPARENT).map(|(_, value)| value);
            for value in values.take(MOST) {
                let Some(parent) = TraceParent::parse(value) else { continue };
                let builder = self.tracer.span_builder(self.name.clone()).with_kind(SpanKind::Consumer);
                let builder = builder.with_start_time(*now.get_or_insert_with(SystemTime::now));
                let builder = builder.with_attributes(self.attributes.iter().cloned());
                let parent = Context::new().with_remote_span_context(parent.context(state.clone()));
                let span = self.tracer.build_with_context(builder, &parent);
                if let Some(own) = TraceParent::of(span.span_context()) {
                    *value = own.value();
                }
                spans.push(span);
            }
        }
        Spans { _spans: spans }
    }
}
