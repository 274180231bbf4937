//! The process's metrics in the Prometheus text format (version 0.0.4), and the page that describes them.
//!
//! Deliberately absent: a listener ([`crate::admin`] has it), and any global label; the scraper knows whom it asked.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use wardline_domain::metric::{Kind, Metric};

use crate::measures as names;

/// Bounds of histograms of seconds: from half a millisecond to a minute.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Bounds of histograms of bytes: from 256 B to 4 MiB.
const BYTES: [f64; 8] = [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];
/// Bounds of histograms of how many.
const COUNTS: [f64; 7] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0];

/// How often observations are gathered into their buckets, so that their memory is bounded while nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Why metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Another recorder is there.
    #[error("the process has another recorder of metrics already")]
    Taken,
    /// The bounds are not valid.
    #[error("metrics cannot be set up: {0}")]
    Build(#[from] metrics_exporter_prometheus::BuildError),
}

/// What the process has measured. Cheap to clone.
#[derive(Clone)]
pub struct Exposition(PrometheusHandle);

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exposition")
    }
}

/// Begins to measure. What was measured before is not kept, and whatever holds a handle from before goes on measuring nothing:
/// call it before anything else starts. Called again, it answers with what there is and describes the tables given.
///
/// Without it, a measurement costs a comparison.
pub fn install(tables: &[&[Metric]]) -> Result<Exposition, InstallError> {
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = match &*installed {
        Some(handle) => handle.clone(),
        None => {
            let handle = record()?;
            *installed = Some(handle.clone());
            handle
        }
    };
    drop(installed);
    tables.iter().copied().flatten().for_each(describe);
    gauge!(names::BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Exposition(handle))
}

fn record() -> Result<PrometheusHandle, InstallError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| InstallError::Taken)?;
    let now = crate::Clock::system().now();
    gauge!(names::STARTED).set(now.as_micros() as f64 / 1e6);
    Ok(handle)
}

fn describe(metric: &Metric) {
    match metric.kind {
        Kind::Counter => describe_counter!(metric.name, metric.help),
        Kind::Gauge => describe_gauge!(metric.name, metric.help),
        Kind::Histogram => describe_histogram!(metric.name, metric.help),
    }
}

impl Exposition {
    /// Everything measured, as text.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of the histograms bounded, and the process's own gauges true, until `stop`.
    pub async fn upkeep(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(UPKEEP_EVERY);
        let tasks = gauge!(names::TASKS);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.0.run_upkeep();
            tasks.set(tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64);
        }
    }
}

/// The page that describes the tables, in Markdown, in the order given.
pub fn page(tables: &[&[Metric]]) -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         What an instance answers at `/metrics` of its admin port. This page is made from the tables that the code measures by.\n\n\
         No label holds an id of a user, device, conversation or tenant, a token or an address.\n\n\
         | metric | kind | labels | what it says |\n|---|---|---|---|\n",
    );
    for metric in tables.iter().copied().flatten() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a String cannot fail.
        let _ =
            writeln!(page, "| `{}` | {} | {} | {} |", metric.name, metric.kind.name(), labels.join(", "), metric.help);
    }
    page
}
