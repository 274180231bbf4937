//! Diagnostics on stderr.
//!
//! Deliberately absent: exporters, and any id of a user, device, conversation or session in what is printed.

use tracing_subscriber::EnvFilter;

/// How diagnostics look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Human,
}

/// Why diagnostics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not one of tracing-subscriber's directives.
    #[error("the filter is not valid: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process has a subscriber already.
    #[error("diagnostics are set up already")]
    Twice,
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
