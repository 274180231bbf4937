//! What a crate measures, as one table a crate: the names that its code uses, what the exposition says of them, and the rows of
//! the page for operators are the same lines.
//!
//! Deliberately absent: counting. These are words only.

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from 0 at the start of the process.
    Counter,
    /// As it is now.
    Gauge,
    /// How many observations lie at or below each bound.
    Histogram,
}

impl Kind {
    /// Its name in the exposition format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric. No label ever holds an id of a user, device, conversation or tenant, a token or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// `wardline_<part>_<what>_<unit>`.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// The names of its labels; each has few values.
    pub labels: &'static [&'static str],
    /// What it says, for people.
    pub help: &'static str,
}

/// Declares a crate's table: a constant for each name, and `METRICS` with all of them.
///
/// ```
/// mod metrics {
///     wardline_domain::metrics! {
///         DOORS_OPENED Counter "wardline_house_doors_opened_total" ["floor"] "Doors that were opened.";
///     }
/// #   pub(super) fn used() -> &'static str { DOORS_OPENED }
/// }
/// # assert_eq!(metrics::used(), "wardline_house_doors_opened_total");
/// assert_eq!(metrics::METRICS[0].labels, ["floor"]);
/// ```
#[macro_export]
macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub(crate) const $constant: &str = $name;)*

        /// What this crate measures.
        pub const METRICS: &[$crate::metric::Metric] = &[$($crate::metric::Metric {
            name: $name,
            kind: $crate::metric::Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        },)*];
    };
}
