//! What a process measures: the tables of the crates it is made of, in the order of the operators' page.

use wardline_domain::metric::Metric;

/// Every table there is.
pub const TABLES: &[&[Metric]] =
    &[wardline_ingest::METRICS, wardline_presence::METRICS, wardline_log::METRICS, wardline_runtime::METRICS];
