//! What may be set. Every limit and every time is here, with its unit.

use std::time::Duration;

use tonic::transport::ClientTlsConfig;

/// How a presence instance runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where other instances reach this one's link listener: `http(s)://host:port`. It is appended to the log with claims.
    pub link_address: String,
    /// Link addresses of some instances, to ask for owners when the registry is silent.
    pub peers: Vec<String>,
    /// For `https` links.
    pub link_tls: Option<ClientTlsConfig>,
    /// Times.
    pub timings: Timings,
    /// Limits.
    pub limits: Limits,
}

impl Options {
    /// The defaults, reachable at `link_address`.
    pub fn new(link_address: impl Into<String>) -> Self {
        Self {
            link_address: link_address.into(),
            peers: Vec::new(),
            link_tls: None,
            timings: Timings::default(),
            limits: Limits::default(),
        }
    }
}

/// Times.
#[derive(Debug, Clone)]
pub struct Timings {
    /// Between claims of an owned partition.
    pub claim_every: Duration,
    /// Without having read its own claim for this long, an owner ends its attachments.
    pub claim_patience: Duration,
    /// Between announcements of owners to the registry.
    pub announce_every: Duration,
    /// How long such an announcement counts.
    pub announce_ttl: Duration,
    /// How long receipts are gathered before they are appended.
    pub flush_delay: Duration,
    /// How long changes of presence are gathered.
    pub presence_delay: Duration,
    /// Between repeats of a standing presence.
    pub presence_every: Duration,
    /// How long a presence counts.
    pub presence_ttl: Duration,
    /// How long after its last sign of use a device is still called active.
    pub active_for: Duration,
    /// How long before its end a session's stream is warned.
    pub session_notice: Duration,
    /// The first pause before a repeat of what failed; doubles.
    pub retry_first: Duration,
    /// The longest such pause.
    pub retry_most: Duration,
    /// How long an owner may take to open an attachment.
    pub open_timeout: Duration,
    /// How long a device that has not been told Started waits for an owner.
    pub locate_patience: Duration,
    /// Between runs of the feeds' retention.
    pub expire_every: Duration,
    /// How long feed rows are kept.
    pub feed_kept: Duration,
    /// What devices are told to wait when the server goes away.
    pub drain_retry_after: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            claim_every: Duration::from_secs(2),
            claim_patience: Duration::from_secs(4),
            announce_every: Duration::from_secs(1),
            announce_ttl: Duration::from_secs(3),
            flush_delay: Duration::from_millis(50),
            presence_delay: Duration::from_millis(250),
            presence_every: Duration::from_secs(10),
            presence_ttl: Duration::from_secs(30),
            active_for: Duration::from_secs(120),
            session_notice: Duration::from_secs(60),
            retry_first: Duration::from_millis(50),
            retry_most: Duration::from_secs(2),
            open_timeout: Duration::from_secs(5),
            locate_patience: Duration::from_secs(15),
            expire_every: Duration::from_secs(3600),
            feed_kept: Duration::from_secs(30 * 24 * 3600),
            drain_retry_after: Duration::from_secs(1),
        }
    }
}

/// Limits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most unacknowledged events of a device.
    pub window_events: u32,
    /// The most unacknowledged bytes of a device.
    pub window_bytes: u32,
    /// Events in a partition's live ring.
    pub ring_events: usize,
    /// Bytes in a partition's live ring.
    pub ring_bytes: usize,
    /// Feed rows read at once.
    pub page_rows: usize,
    /// Bytes of events in one frame (at least one event).
    pub frame_bytes: usize,
    /// Frames waiting on one link, each way.
    pub link_frames: usize,
    /// Receipts in one flush before its time.
    pub flush_entries: usize,
    /// Receipts waiting for the log; above it attachments are put off.
    pub pending_entries: usize,
    /// Watermarks told at Attach, the most recent.
    pub receipts_at_attach: usize,
    /// Feed heads cached per partition.
    pub heads_cached: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_events: 256,
            window_bytes: 4 << 20,
            ring_events: 4096,
            ring_bytes: 16 << 20,
            page_rows: 256,
            frame_bytes: 1 << 20,
            link_frames: 4096,
            flush_entries: 512,
            pending_entries: 100_000,
            receipts_at_attach: 4096,
            heads_cached: 200_000,
        }
    }
}
