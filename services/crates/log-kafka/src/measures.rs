//! What the engine measures of itself.
//!
//! Deliberately absent: what is measured of every log, such as how long an append takes.

wardline_domain::metrics! {
    IN_FLIGHT Gauge "wardline_log_in_flight_bytes" [] "Kafka: bytes that wait for durability.";
    LAG Gauge "wardline_log_lag_records" ["topic", "group", "partition"] "Kafka: records of a partition that are appended and not done, as the brokers tell.";
    REBUILDS Counter "wardline_log_producer_rebuilds_total" [] "Kafka: producers given up after a delivery failed.";
    FETCH_ERRORS Counter "wardline_log_fetch_errors_total" ["topic", "reason"] "Kafka: errors of following a topic, by librdkafka's name.";
}
