//! Records that tell other roles: the `directory` topic, and events for users' own feeds.

use std::num::NonZeroU32;

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::{DeviceId, TenantId, Timestamp, UserId};
use wardline_log::{EventLog, NewRecord, Partition, Topic};
use wardline_proto::convert::ids::bytes16;
use wardline_proto::internal::v1 as wire;
use wardline_runtime::{Refusal, trace};

/// Appends one record and waits until it is durable.
pub(crate) async fn append(
    log: &dyn EventLog,
    topic: Topic,
    partition_by: &[u8; 16],
    key: Bytes,
    payload: Bytes,
) -> Result<(), Refusal> {
    let bytes = u32::try_from(key.len() + payload.len()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
    let permit = log.reserve(bytes)?;
    let to = Partition { topic, index: log.partitions(topic).partition_of(partition_by) };
    let trace = trace::append(topic);
    log.append(permit, to, vec![NewRecord { key, payload, headers: trace.headers() }]).await?;
    Ok(())
}

/// A device's state, for every role.
pub(crate) struct DeviceState {
    pub(crate) tenant: TenantId,
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    pub(crate) revoked: bool,
    /// The device log's version of the change.
    pub(crate) version: u64,
}

pub(crate) async fn device(log: &dyn EventLog, state: &DeviceState, at: Timestamp) -> Result<(), Refusal> {
    let body = wire::directory_record::Body::Device(wire::DirectoryDevice {
        tenant_id: bytes16(state.tenant.as_bytes()),
        user_id: bytes16(state.user.as_bytes()),
        device_id: bytes16(state.device.as_bytes()),
        revoked: state.revoked,
        version: state.version,
        at_us: at.as_micros(),
    });
    let key = [&state.user.as_bytes()[..], state.device.as_bytes()].concat().into();
    let record = wire::DirectoryRecord { body: Some(body) };
    append(log, Topic::Directory, state.user.as_bytes(), key, record.encode_to_vec().into()).await
}

/// A user's end, for every role.
pub(crate) async fn user_ended(
    log: &dyn EventLog,
    tenant: TenantId,
    user: UserId,
    at: Timestamp,
) -> Result<(), Refusal> {
    let body = wire::directory_record::Body::User(wire::DirectoryUser {
        tenant_id: bytes16(tenant.as_bytes()),
        user_id: bytes16(user.as_bytes()),
        deactivated: true,
        at_us: at.as_micros(),
    });
    let record = wire::DirectoryRecord { body: Some(body) };
    append(log, Topic::Directory, user.as_bytes(), bytes16(user.as_bytes()), record.encode_to_vec().into()).await
}

/// An event for a user's own feed.
pub(crate) async fn feed_event(log: &dyn EventLog, user: UserId, event: wire::FeedEventRecord) -> Result<(), Refusal> {
    let record = wire::FeedRecord { body: Some(wire::feed_record::Body::Event(event)) };
    append(log, Topic::Feeds, user.as_bytes(), bytes16(user.as_bytes()), record.encode_to_vec().into()).await
}
