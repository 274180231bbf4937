//! What presence measures.
//!
//! Deliberately absent: what calls cost by method and code, and how far the fold of `feeds` is; both are measured for every
//! role.

use metrics::{Counter, Histogram, counter, histogram};
use wardline_domain::Timestamp;
use wardline_proto::convert::time;
use wardline_proto::v1::{self, event::Body};

wardline_domain::metrics! {
    STREAMS Gauge "wardline_presence_streams" [] "Devices' Attach streams that end at this instance.";
    STREAMS_ENDED Counter "wardline_presence_streams_ended_total" ["reason"] "Attach streams that ended: the device went, the server drains, or a reason of the table of error reasons.";
    EVENTS Counter "wardline_presence_events_total" ["kind"] "Events handed to devices' streams.";
    LATENCY Histogram "wardline_presence_latency_seconds" ["stage"] "Age of a message since ingest accepted it: when its recipients' rows were stored (filed), when it was handed to the stream of a device that had all before it (delivered) or was catching up (caught_up), and when a device that it was pushed to had it safe (acknowledged).";
    LINKS Gauge "wardline_presence_links" ["side"] "Links between instances that are up: those this instance opened (edge) and those opened to it (owner).";
    LINK_FRAMES Gauge "wardline_presence_link_frames_waiting" ["side"] "Frames that wait on links: from devices on their way up (edge), and for devices on their way down (owner).";
    PARTITIONS Gauge "wardline_presence_partitions" ["state"] "Feeds partitions that are assigned to this instance, and those of them that it owns and serves.";
    ATTACHMENTS Gauge "wardline_presence_attachments" ["phase"] "Devices attached to partitions of this instance: catching up (behind), live, with a full window (full), or told that events are gone (expired).";
    UNACKNOWLEDGED Gauge "wardline_presence_unacknowledged_events" [] "Events sent to attached devices and not acknowledged.";
    RING_EVENTS Gauge "wardline_presence_ring_events" [] "Events in the live rings of all partitions.";
    RING_BYTES Gauge "wardline_presence_ring_bytes" [] "Bytes in the live rings of all partitions, about.";
    EXPIRED Counter "wardline_presence_cursors_expired_total" [] "Devices that were told that events are gone.";
    REPORTS_WAITING Gauge "wardline_presence_reports_waiting" [] "Devices' receipts that wait for the log.";
    READS_WAITING Gauge "wardline_presence_reads_waiting" [] "Read marks that wait to be checked.";
    FLUSH_SECONDS Histogram "wardline_presence_flush_seconds" [] "Time that a flush of receipts took until it was durable.";
}

/// The metrics of every message, made once: they take no lookup.
pub(crate) struct Messages {
    pub(crate) filed: Histogram,
    pub(crate) acknowledged: Histogram,
    delivered: Histogram,
    caught_up: Histogram,
    kinds: [Counter; KINDS.len()],
}

/// The kinds of events, as [`kind`] numbers them.
const KINDS: [&str; 7] =
    ["message", "welcome", "rejected", "conversation_changed", "device_changed", "key_packages_low", "other_devices"];

const fn kind(event: &v1::Event) -> usize {
    match event.body {
        Some(Body::Message(_)) => 0,
        Some(Body::Welcome(_)) => 1,
        Some(Body::Rejected(_)) => 2,
        Some(Body::ConversationChanged(_)) => 3,
        Some(Body::DeviceChanged(_)) => 4,
        Some(Body::KeyPackagesLow(_)) => 5,
        // It only carries the cursor on.
        None => 6,
    }
}

impl Messages {
    pub(crate) fn new() -> Self {
        let stage = |stage: &'static str| histogram!(LATENCY, "stage" => stage);
        Self {
            filed: stage("filed"),
            acknowledged: stage("acknowledged"),
            delivered: stage("delivered"),
            caught_up: stage("caught_up"),
            kinds: KINDS.map(|kind| counter!(EVENTS, "kind" => kind)),
        }
    }

    /// Events were handed to a device's stream. `live`: the device had everything before them.
    pub(crate) fn handed_over(&self, events: &[v1::Event], live: bool, now: Timestamp) {
        let latency = if live { &self.delivered } else { &self.caught_up };
        for event in events {
            if let Some(counted) = self.kinds.get(kind(event)) {
                counted.increment(1);
            }
            if let Some(Body::Message(v1::Message { accept_time: Some(at), .. })) = &event.body
                && let Ok(at) = time::from_wire(at, "accept_time")
            {
                latency.record(now.since(at));
            }
        }
    }
}
