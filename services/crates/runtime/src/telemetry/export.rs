//! From ended spans to the collector: a bounded queue and one task.
//!
//! Deliberately absent: keeping what the collector did not take. Diagnostics about the past are worth less than memory.

use std::time::Duration;

use metrics::{Counter, counter};
use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::measures as names;

/// Spans that may wait.
const QUEUED: usize = 4096;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_millis(500);

/// Takes ended spans in; what finds no room is dropped and counted.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Counter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = self.spans.try_send(span) {
            self.dropped.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
#[derive(Debug)]
pub(super) struct Exporting {
    finish: CancellationToken,
    task: JoinHandle<()>,
}

/// Begins to send to an exporter.
pub(super) fn begin<E: SpanExporter + 'static>(exporter: E) -> (Queue, Exporting) {
    let outcome = |outcome: &'static str| counter!(names::SPANS, "outcome" => outcome);
    let (spans, waiting) = mpsc::channel(QUEUED);
    let finish = CancellationToken::new();
    let sending = Sending { exporter, waiting, exported: outcome("exported"), failed: outcome("failed"), failures: 0 };
    let task = tokio::spawn(sending.run(finish.clone()));
    (Queue { spans, dropped: outcome("dropped") }, Exporting { finish, task })
}

impl Exporting {
    /// Sends what waits, at most for `within`.
    pub(super) async fn finish(mut self, within: Duration) {
        self.finish.cancel();
        if tokio::time::timeout(within, &mut self.task).await.is_err() {
            tracing::warn!("spans were left unsent at the end");
            self.task.abort();
        }
    }
}

struct Sending<E> {
    exporter: E,
    waiting: mpsc::Receiver<SpanData>,
    exported: Counter,
    failed: Counter,
    failures: u64,
}

impl<E: SpanExporter> Sending<E> {
    async fn run(mut self, finish: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        while finish.run_until_cancelled(self.gather(&mut batch)).await == Some(true) {
            self.send(std::mem::take(&mut batch)).await;
        }
        self.waiting.close();
        // What was gathered when the end came is in the batch still.
        loop {
            let room = BATCH.saturating_sub(batch.len());
            if room > 0 && self.waiting.recv_many(&mut batch, room).await == 0 && batch.is_empty() {
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    /// Fills the batch, for a moment at most. False when nobody can send any more.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) -> bool {
        if batch.is_empty() && self.waiting.recv_many(batch, BATCH).await == 0 {
            return false;
        }
        let more = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                if self.waiting.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        // A full batch goes at once.
        let _ = tokio::time::timeout(DELAY, more).await;
        true
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        if self.exporter.export(batch).await.is_ok() {
            self.exported.increment(spans);
            self.failures = 0;
            return;
        }
        self.failed.increment(spans);
        self.failures += 1;
        // At every power of two, so that a collector that is away does not fill the diagnostics.
        if self.failures.is_power_of_two() {
            tracing::warn!(failures = self.failures, "the collector takes no spans");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tokio::sync::Semaphore;

    use super::*;

    /// Takes a batch for each permit; fails when it is closed.
    #[derive(Debug, Clone)]
    struct Gated {
        gate: Arc<Semaphore>,
        names: Arc<Mutex<Vec<String>>>,
    }

    impl SpanExporter for Gated {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let Ok(permit) = self.gate.acquire().await else {
                return Err(OTelSdkError::InternalFailure("away".to_owned()));
            };
            permit.forget();
            self.names.lock().unwrap().extend(batch.iter().map(|span| span.name.to_string()));
            Ok(())
        }
    }

    fn gated(permits: usize) -> (Gated, SdkTracerProvider, Exporting) {
        let gated = Gated { gate: Arc::new(Semaphore::new(permits)), names: Arc::default() };
        let (queue, exporting) = begin(gated.clone());
        (gated, SdkTracerProvider::builder().with_span_processor(queue).build(), exporting)
    }

    fn make(provider: &SdkTracerProvider, count: usize) {
        let tracer = provider.tracer("test");
        for number in 0..count {
            tracer.start(number.to_string()).end();
        }
    }

    #[tokio::test]
    async fn the_end_sends_what_waits_in_order() {
        let (gated, provider, exporting) = gated(Semaphore::MAX_PERMITS);
        make(&provider, 3 * BATCH + 7);
        exporting.finish(Duration::from_secs(60)).await;
        let names = gated.names.lock().unwrap().clone();
        assert_eq!(names, (0..3 * BATCH + 7).map(|number| number.to_string()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_collector_that_hangs_costs_spans_and_holds_up_nobody() {
        let (gated, provider, exporting) = gated(0);
        // Nothing below waits: the loop ends although nothing is taken.
        make(&provider, QUEUED + 3 * BATCH);
        exporting.finish(Duration::from_millis(10)).await;
        assert!(gated.names.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_collector_that_refuses_does_not_end_the_task() {
        let (gated, provider, exporting) = gated(0);
        gated.gate.close();
        make(&provider, 2 * BATCH);
        exporting.finish(Duration::from_secs(60)).await;
        assert!(gated.names.lock().unwrap().is_empty());
    }
}
