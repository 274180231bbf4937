//! What every process measures, whatever its roles.
//!
//! Deliberately absent: what only one role does.

wardline_domain::metrics! {
    BUILD Gauge "wardline_build_info" ["version"] "1; the label says what runs.";
    STARTED Gauge "wardline_process_start_seconds" [] "When the process began to measure, in seconds since the Unix epoch.";
    TASKS Gauge "wardline_process_tasks" [] "Tasks that are alive.";
    RPC_REQUESTS Counter "wardline_rpc_requests_total" ["method", "code"] "Calls by the gRPC code of the beginning of their answer; a stream counts as OK once it is open, a call that its caller gave up as CANCELLED.";
    RPC_SECONDS Histogram "wardline_rpc_seconds" ["method"] "Time until the answer to a call began.";
    RPC_WAITING Gauge "wardline_rpc_waiting" ["method"] "Calls whose answer has not begun.";
    CONNECTIONS Gauge "wardline_rpc_connections" [] "Connections to the gRPC listeners.";
    CONNECTIONS_REFUSED Counter "wardline_rpc_connections_refused_total" [] "Connections closed at once because there was no place for them.";
    REFUSALS Counter "wardline_rpc_refusals_total" ["reason"] "Calls and streams that ended with an error, by the reason in the table of error reasons.";
    AUDIT_DROPPED Counter "wardline_audit_dropped_total" ["role"] "Audit records that did not reach the log.";
    REVOCATION_AGE Histogram "wardline_revocations_seconds" [] "Age of each revocation or other change in the topic directory when this process knew of it: from its append, by the log's clock, to now, by this machine's.";
    REVOKED Gauge "wardline_revocations_known" ["what"] "Devices revoked and users deactivated that this process knows of.";
    MEMBERS_LOOKUPS Counter "wardline_members_lookups_total" ["from"] "Lookups of a conversation's members: from the cache or from the store.";
    CLOCK_SKEW Gauge "wardline_clock_skew_seconds" [] "How far this machine's clock was from the log's when last compared, at least; 0 when the two may agree.";
    SPANS Counter "wardline_trace_spans_total" ["outcome"] "Sampled spans by what became of them: exported, dropped for want of room, failed at the collector.";
}
