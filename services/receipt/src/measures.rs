//! What the receipt role measures.
//!
//! Deliberately absent: how far its fold is; every fold measures that.

wardline_domain::metrics! {
    REPORTS Counter "wardline_receipt_reports_total" [] "Devices' reports that were folded.";
    SUMMARIES Counter "wardline_receipt_summaries_total" [] "Summaries that were sent to senders and to readers' other devices.";
    LATENCY Histogram "wardline_receipt_latency_seconds" [] "Age of a flush of receipts, since presence gathered it, when its watermarks were stored and its summaries durable.";
}
