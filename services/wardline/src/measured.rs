//! What a process measures: the tables of the crates it is made of, in the order of the operators' page.

use wardline_domain::metric::{Kind, Metric};

/// Every table there is.
pub const TABLES: &[&[Metric]] = &[
    wardline_ingest::METRICS,
    wardline_fanout::METRICS,
    wardline_presence::METRICS,
    wardline_receipt::METRICS,
    wardline_directory::METRICS,
    wardline_log::METRICS,
    wardline_runtime::METRICS,
    wardline_log_kafka::METRICS,
    ENGINES,
];

/// What the engines of a cluster measure of themselves, beside what is measured of every log.
const ENGINES: &[Metric] = &[
    histogram("wardline_cql_seconds", &["operation"], "CQL: time that an operation took, its repeats among it."),
    counter(
        "wardline_cql_errors_total",
        &["operation", "kind"],
        "CQL: operations that failed: unavailable, timeout, corrupt.",
    ),
    counter("wardline_cql_retries_total", &[], "CQL: requests that were sent again."),
    gauge("wardline_registry_connected", &[], "Redis: 1 while there is a connection."),
    histogram("wardline_registry_call_seconds", &["operation", "outcome"], "Redis: time that a call took: ok, failed."),
    counter("wardline_registry_failures_total", &["operation", "reason"], "Redis: calls that failed, by reason."),
];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, help }
}
