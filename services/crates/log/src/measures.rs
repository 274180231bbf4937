//! What the log's users measure of it.
//!
//! Deliberately absent: what an engine measures of itself.

wardline_domain::metrics! {
    FOLD_RECORDS Counter "wardline_fold_records_total" ["topic"] "Records whose effects are done and checkpointed.";
    FOLD_BATCH Histogram "wardline_fold_batch_records" ["topic"] "Records folded at once.";
    FOLD_SECONDS Histogram "wardline_fold_seconds" ["topic", "step"] "Time that one step (apply, effects, checkpoint) of a batch took, of the attempt that succeeded.";
    FOLD_AGE Histogram "wardline_fold_age_seconds" ["topic"] "Age of the oldest record of each batch when it was done: from its append, by the log's clock, to now, by this machine's.";
    FOLD_PARTITIONS Gauge "wardline_fold_partitions" ["topic"] "Partitions that this process folds.";
    FOLD_PAUSED Gauge "wardline_fold_paused_partitions" ["topic"] "Partitions that wait for an engine before they are tried again.";
    FOLD_PAUSES Counter "wardline_fold_pauses_total" ["topic", "cause"] "Pauses before something that an engine failed at is tried again.";
    FOLD_HALTS Counter "wardline_fold_halts_total" ["topic", "cause"] "Folds that ended because a person must look.";
    FOLD_LAG Gauge "wardline_fold_lag_records" ["topic", "partition"] "Positions between the newest record known to this process and the last one done.";
    FOLD_WAITING Gauge "wardline_fold_waiting_batches" ["topic", "partition"] "Batches that were read and are not done.";
    FOLD_WAITING_AGE Gauge "wardline_fold_waiting_seconds" ["topic", "partition"] "Age of the oldest record that was read and is not done; 0 when there is none.";
    APPENDED_RECORDS Counter "wardline_log_appended_records_total" ["topic"] "Records that the log took and made durable.";
    APPENDED_BYTES Counter "wardline_log_appended_bytes_total" ["topic"] "Bytes of their keys and payloads.";
    APPEND_SECONDS Histogram "wardline_log_append_seconds" ["topic", "outcome"] "Time from an append to its answer: ok, not_applied, unknown.";
    RESERVE_REFUSED Counter "wardline_log_reserve_refused_total" ["reason"] "Refusals of room in the log's byte budget: overloaded, too_large, closed.";
}
