//! What librdkafka tells beside its answers: diagnostics and errors of a client as a whole.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

/// For clients of which nothing but diagnostics is wanted.
pub(crate) struct Diagnostics;

impl ClientContext for Diagnostics {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        trouble(&error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Diagnostics {}

/// librdkafka's diagnostics name brokers, topics and partitions, never what a record holds.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(facility, "librdkafka: {message}");
        }
        // It warns of every connection that it will open again by itself.
        RDKafkaLogLevel::Warning => tracing::info!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(facility, "librdkafka: {message}");
        }
    }
}

pub(crate) fn trouble(error: &KafkaError, reason: &str) {
    tracing::warn!(%error, "Kafka: {reason}");
}
