//! What ingest measures.
//!
//! Deliberately absent: what calls cost by method and code; every server measures that.

wardline_domain::metrics! {
    ANSWERS Counter "wardline_ingest_answers_total" ["action", "outcome"] "Calls, and messages of Publish streams, by what they came to: OK, or the reason of the refusal.";
    DURABLE_SECONDS Histogram "wardline_ingest_durable_seconds" [] "Time from a record's acceptance to its durability in the log.";
    UNKNOWN Counter "wardline_ingest_unknown_total" [] "Appends that had no answer within their deadline, or whose outcome the log could not tell.";
    STREAMS Gauge "wardline_ingest_publish_streams" [] "Publish streams that are open.";
}
