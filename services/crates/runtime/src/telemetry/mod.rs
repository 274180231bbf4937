//! Diagnostics on stderr, and traces to a collector.
//!
//! Spans are made by OpenTelemetry's interface alone ([`crate::trace`], `wardline_log::fold`), never from `tracing`: what a
//! library writes into a diagnostic does not become an attribute of a span.
//!
//! Deliberately absent: metrics ([`crate::exposition`]), and any id of a user, device, conversation or session in what is
//! printed or exported.

mod export;

use std::time::Duration;

use opentelemetry::{Array, KeyValue, StringValue, Value, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanExporter as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tracing_subscriber::EnvFilter;

use self::export::Exporting;
use crate::trace;

/// How long one batch may take to the collector.
const EXPORT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection to the collector may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How diagnostics look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Human,
}

/// What is told, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// How diagnostics look.
    pub format: Format,
    /// Which diagnostics: directives such as `info,wardline=debug`.
    pub filter: String,
    /// Where traces go; without, no span is made.
    pub traces: Option<Traces>,
}

/// Where traces go.
#[derive(Debug, Clone)]
pub struct Traces {
    /// An OTLP/gRPC collector: `http://host:4317`, or `https://` with `ca_pem`.
    pub endpoint: String,
    /// The authority of the collector's certificate.
    pub ca_pem: Option<Vec<u8>>,
    /// How many of the traces that begin here are sampled, from 0 to 1. A caller's sampled trace is always continued.
    pub sample_ratio: f64,
    /// `service.instance.id`: tells the instances apart. Not an address.
    pub instance: String,
    /// The roles that run here.
    pub roles: Vec<&'static str>,
}

/// Why diagnostics or traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not one of tracing-subscriber's directives.
    #[error("the filter is not valid: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process has a subscriber already.
    #[error("diagnostics are set up already")]
    Twice,
    /// The endpoint is no `http://` or `https://` URL.
    #[error("the collector's endpoint must be http(s)://host:port")]
    Endpoint,
    /// There is no authority for an `https://` endpoint, or it is not valid.
    #[error("the collector's endpoint is https, which takes a valid certificate authority")]
    Authority,
    /// The ratio is not between 0 and 1.
    #[error("the sample ratio must be between 0 and 1")]
    Ratio,
    /// The exporter cannot be made.
    #[error("traces cannot be set up: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Ends what [`start`] began.
#[derive(Debug)]
#[must_use = "what is waiting for the collector is sent by `finish`"]
pub struct Guard {
    traces: Option<(SdkTracerProvider, Exporting)>,
}

/// Prints diagnostics on stderr, and sends traces if they are asked for. Once a process, before anything else starts.
///
/// A collector that is away costs spans, which are counted, and nothing else: at most 4,096 wait.
///
/// # Panics
/// With traces, outside of a Tokio runtime.
pub fn start(options: Options) -> Result<Guard, InitError> {
    let traces = options.traces.map(export_to).transpose()?;
    init(options.format, &options.filter)?;
    Ok(Guard { traces })
}

/// Prints diagnostics that pass `filter` (such as `info,wardline=debug`) on stderr. Once a process.
pub fn init(format: Format, filter: &str) -> Result<(), InitError> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Json => builder.json().flatten_event(true).try_init(),
        Format::Human => builder.try_init(),
    }
    .map_err(|_| InitError::Twice)
}

/// Sends traces to a collector, without diagnostics: for tests, and for whoever has a subscriber already.
///
/// # Panics
/// Outside of a Tokio runtime.
pub fn start_traces(traces: Traces) -> Result<Guard, InitError> {
    Ok(Guard { traces: Some(export_to(traces)?) })
}

fn export_to(traces: Traces) -> Result<(SdkTracerProvider, Exporting), InitError> {
    if !(0.0..=1.0).contains(&traces.sample_ratio) {
        return Err(InitError::Ratio);
    }
    let mut exporter =
        SpanExporter::builder().with_tonic().with_channel(channel(&traces)?).with_timeout(EXPORT_PATIENCE).build()?;
    let resource = resource(&traces);
    exporter.set_resource(&resource);
    let (queue, exporting) = export::begin(exporter);
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(traces.sample_ratio))))
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    global::set_tracer_provider(provider.clone());
    trace::collect();
    Ok((provider, exporting))
}

fn channel(traces: &Traces) -> Result<Channel, InitError> {
    let endpoint = Endpoint::from_shared(traces.endpoint.clone()).map_err(|_| InitError::Endpoint)?;
    let endpoint = endpoint.connect_timeout(CONNECT_PATIENCE).timeout(EXPORT_PATIENCE);
    let endpoint = match (endpoint.uri().scheme_str(), &traces.ca_pem) {
        (Some("http"), _) => endpoint,
        (Some("https"), Some(authority)) => {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
            endpoint.tls_config(tls).map_err(|_| InitError::Authority)?
        }
        (Some("https"), None) => return Err(InitError::Authority),
        _ => return Err(InitError::Endpoint),
    };
    Ok(endpoint.connect_lazy())
}

fn resource(traces: &Traces) -> Resource {
    let roles = traces.roles.iter().map(|role| StringValue::from(*role)).collect();
    Resource::builder()
        .with_service_name("wardline")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", traces.instance.clone()),
            KeyValue::new("wardline.roles", Value::Array(Array::String(roles))),
        ])
        .build()
}

impl Guard {
    /// Sends what waits for the collector, at most for `within`. Spans that end later are dropped.
    pub async fn finish(self, within: Duration) {
        let Some((provider, exporting)) = self.traces else { return };
        exporting.finish(within).await;
        if let Err(error) = provider.shutdown() {
            tracing::debug!(%error, "traces did not end in order");
        }
    }
}
