//! What a revocation sets off: control records for the conversations whose roster has the device or user, and an event for
//! the user's own feed. A fold over the `directory` topic, so that a crash resumes it.
//!
//! Deliberately absent: what the conversations make of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use metrics::{counter, histogram};
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use wardline_domain::record::{Body, Control};
use wardline_domain::roster::Roster;
use wardline_domain::{Cause, ConversationId, DeviceId, Failure, Position, Timestamp, UserId};
use wardline_log::fold::{self, Fold, Folds, Watch};
use wardline_log::{EventLog, FetchLimits, Headers, LogRecord, NewRecord, Partition, Started, Topic};
use wardline_proto::convert::{Violation, ids, record};
use wardline_proto::internal::v1 as wire;
use wardline_runtime::Clock;
use wardline_runtime::consumer::{Deps, trace_context};
use wardline_runtime::health::FoldHealth;
use wardline_store::Conversations;
use wardline_store::checkpoints::Checkpoint;

use crate::measures as names;

const PAGE: usize = 256;

pub(crate) async fn run(on: Deps, clock: Clock, stop: CancellationToken) -> fold::Ended {
    let Deps { log, stores, health } = on;
    let options = fold::Options {
        limits: FetchLimits { records: 64, bytes: 1 << 20 },
        trim_every: Duration::from_secs(60),
        ..fold::Options::named(Topic::Directory, "directory")
    };
    let spreads = Arc::new(Spreads { log: Arc::clone(&log), conversations: stores.conversations, clock, health });
    fold::run(log, stores.checkpoints, spreads, options, stop).await
}

struct Spreads {
    log: Arc<dyn EventLog>,
    conversations: Arc<dyn Conversations>,
    clock: Clock,
    health: FoldHealth,
}

/// One partition's consumer. It has no state: every record stands for itself.
struct Spread {
    spreads: Arc<Spreads>,
    partition: u32,
}

/// A device or user that changed, and the record that says so.
struct Change {
    position: Position,
    appended_at: Timestamp,
    /// The trace context of the record.
    headers: Headers,
    what: What,
}

enum What {
    Device { user: UserId, device: DeviceId, revoked: bool, version: u64 },
    UserEnded(UserId),
}

#[async_trait]
impl Folds for Spreads {
    type Fold = Spread;

    async fn assigned(
        &self,
        partition: u32,
        _checkpoint: Option<&Checkpoint>,
        _started: Started,
    ) -> Result<Spread, Failure> {
        let spreads = Self {
            log: Arc::clone(&self.log),
            conversations: Arc::clone(&self.conversations),
            clock: self.clock.clone(),
            health: self.health.clone(),
        };
        Ok(Spread { spreads: Arc::new(spreads), partition })
    }

    fn watch(&self) -> &dyn Watch {
        &self.health
    }
}

#[async_trait]
impl Fold for Spread {
    type Effects = Vec<Change>;

    async fn apply(&mut self, batch: &[LogRecord]) -> Result<Vec<Change>, Failure> {
        Ok(batch.iter().filter_map(change_of).collect())
    }

    /// In the order of the records: the feeds keep one mark for this partition.
    async fn effects(&mut self, changes: &Vec<Change>) -> Result<(), Failure> {
        for change in changes {
            match change.what {
                What::Device { user, device, revoked, version } => {
                    if revoked {
                        let control = Control::DeviceRevoked { user, device };
                        let has = |roster: &Roster| {
                            roster.leaf_of(user, device).is_some_and(|(_, leaf)| !leaf.removal_pending)
                        };
                        self.spreads.control(user, &control, &change.headers, has).await?;
                    }
                    let event =
                        wire::FeedDeviceChanged { version, device_id: ids::bytes16(device.as_bytes()), revoked };
                    self.tell(user, change, event).await?;
                }
                What::UserEnded(user) => {
                    let control = Control::UserLeft { user };
                    self.spreads.control(user, &control, &change.headers, |roster| roster.has_user(user)).await?;
                }
            }
            histogram!(names::SPREAD_SECONDS).record(self.spreads.clock.now().since(change.appended_at));
        }
        Ok(())
    }
}

impl Spread {
    async fn tell(&self, user: UserId, change: &Change, event: wire::FeedDeviceChanged) -> Result<(), Failure> {
        let event = wire::FeedEventRecord {
            source: Partition { topic: Topic::Directory, index: self.partition }.source(),
            source_position: change.position.as_u64(),
            part: 0,
            recipients: vec![wire::RecipientRecord { user_id: ids::bytes16(user.as_bytes()), device_ids: Vec::new() }],
            event: Some(wire::feed_event_record::Event::DeviceChanged(event)),
        };
        let record = wire::FeedRecord { body: Some(wire::feed_record::Body::Event(event)) };
        let headers = change.headers.clone();
        self.spreads.append(Topic::Feeds, user.as_bytes(), record.encode_to_vec().into(), headers).await
    }
}

impl Spreads {
    /// Appends `control` to each conversation of the user whose roster it concerns.
    async fn control(
        &self,
        user: UserId,
        control: &Control,
        headers: &Headers,
        concerns: impl Fn(&Roster) -> bool + Send + Sync,
    ) -> Result<(), Failure> {
        let mut after: Option<ConversationId> = None;
        loop {
            let page = self.conversations.memberships(user, after, PAGE).await?;
            for row in page.iter().filter(|row| row.member) {
                let roster = self.conversations.roster(row.conversation, u64::MAX).await?;
                if concerns(&roster) {
                    let body = Body::Control(control.clone());
                    let payload = record::encode(row.conversation, self.clock.now(), &body);
                    let headers = headers.clone();
                    self.append(Topic::Conversations, row.conversation.as_bytes(), payload, headers).await?;
                    counter!(names::CONTROLS).increment(1);
                }
            }
            match page.last() {
                Some(last) => after = Some(last.conversation),
                None => return Ok(()),
            }
        }
    }

    async fn append(&self, topic: Topic, key: &[u8; 16], payload: Bytes, headers: Headers) -> Result<(), Failure> {
        let bytes = u32::try_from(key.len() + payload.len()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        let permit = self.log.reserve(bytes).map_err(|refused| Failure::NotApplied(Cause::unavailable(refused)))?;
        let to = Partition { topic, index: self.log.partitions(topic).partition_of(key) };
        let new = NewRecord { key: Bytes::copy_from_slice(key), payload, headers };
        self.log.append(permit, to, vec![new]).await.map(|_| ())
    }
}

fn change_of(record: &LogRecord) -> Option<Change> {
    match parse(record) {
        Ok(what) => what.map(|what| {
            let (position, appended_at) = (record.position, record.appended_at);
            Change { position, appended_at, headers: trace_context(record), what }
        }),
        Err(_) => {
            tracing::error!(position = %record.position, "a directory record does not decode");
            None
        }
    }
}

fn parse(record: &LogRecord) -> Result<Option<What>, Violation> {
    let wire = wire::DirectoryRecord::decode(record.payload.clone())
        .map_err(|_| Violation::new("record", "must be a DirectoryRecord"))?;
    Ok(match wire.body {
        Some(wire::directory_record::Body::Device(device)) => Some(What::Device {
            user: ids::user_bytes(&device.user_id, "device.user_id")?,
            device: ids::device_bytes(&device.device_id, "device.device_id")?,
            revoked: device.revoked,
            version: device.version,
        }),
        Some(wire::directory_record::Body::User(user)) if user.deactivated => {
            Some(What::UserEnded(ids::user_bytes(&user.user_id, "user.user_id")?))
        }
        _ => None,
    })
}
