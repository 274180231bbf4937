//! What the directory measures.
//!
//! Deliberately absent: what calls cost by method and code; every server measures that.

use metrics::counter;
use wardline_proto::reason::Reason;

wardline_domain::metrics! {
    DECISIONS Counter "wardline_directory_decisions_total" ["action", "outcome"] "Decisions by what they came to: OK, or the reason of the refusal. A session refused with USE_DPOP_NONCE is the first half of a handshake.";
    SPREAD_SECONDS Histogram "wardline_directory_spread_seconds" [] "Age of a change of a device or user, since its record was appended, when all its conversations and its own feed had been told.";
    CONTROLS Counter "wardline_directory_controls_total" [] "Control records appended to conversations of the revoked and deactivated.";
}

/// Counts a decision. Actions are constants of this crate.
pub(crate) fn decided(action: &'static str, outcome: Result<(), Reason>) {
    let outcome = outcome.map_or_else(Reason::as_str, |()| "OK");
    counter!(DECISIONS, "action" => action, "outcome" => outcome).increment(1);
}
