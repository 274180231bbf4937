//! Revocations folded from an embedded log, and audit records in it.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use wardline_domain::{DeviceId, Timestamp, UserId};
use wardline_log::{Event, EventLog, FetchLimits, Group, NewRecord, Partition, Start, Topic};
use wardline_proto::internal::v1 as wire;
use wardline_proto::reason::Reason;
use wardline_runtime::Clock;
use wardline_runtime::audit::{Audit, Counted};
use wardline_runtime::revocations::{Ended, Revocations};

const ANN: UserId = UserId::from_bytes([1; 16]);
const BOB: UserId = UserId::from_bytes([2; 16]);
const PHONE: DeviceId = DeviceId::from_bytes([3; 16]);
const DESK: DeviceId = DeviceId::from_bytes([4; 16]);

async fn open(dir: &tempfile::TempDir) -> Arc<dyn EventLog> {
    wardline_log::embedded::open(wardline_log::embedded::Options::small(dir.path())).await.unwrap()
}

async fn append(log: &Arc<dyn EventLog>, user: UserId, device: Option<(DeviceId, bool)>) {
    let user_id = Bytes::copy_from_slice(user.as_bytes());
    let body = match device {
        Some((device, revoked)) => wire::directory_record::Body::Device(wire::DirectoryDevice {
            user_id,
            device_id: Bytes::copy_from_slice(device.as_bytes()),
            revoked,
            ..wire::DirectoryDevice::default()
        }),
        None => wire::directory_record::Body::User(wire::DirectoryUser {
            user_id,
            deactivated: true,
            ..wire::DirectoryUser::default()
        }),
    };
    let payload: Bytes = wire::DirectoryRecord { body: Some(body) }.encode_to_vec().into();
    let device = device.map_or([0; 16], |(device, _)| *device.as_bytes());
    let key: Bytes = [&user.as_bytes()[..], &device].concat().into();
    let permit = log.reserve(NonZeroU32::new(1024).unwrap()).unwrap();
    let to =
        Partition { topic: Topic::Directory, index: log.partitions(Topic::Directory).partition_of(user.as_bytes()) };
    log.append(permit, to, vec![NewRecord { key, payload, headers: Vec::new() }]).await.unwrap();
}

#[tokio::test]
async fn what_ended_before_the_start_is_known_at_once_and_what_ends_later_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (log, stop) = (open(&dir).await, CancellationToken::new());
    let nothing = Revocations::follow(Arc::clone(&log), stop.clone()).await.unwrap();
    assert_eq!((nothing.check(ANN, PHONE), nothing.as_of(), nothing.changes()), (Ok(()), None, 0));

    append(&log, ANN, Some((PHONE, true))).await;
    append(&log, ANN, Some((DESK, false))).await;
    let later = Revocations::follow(Arc::clone(&log), stop.clone()).await.unwrap();
    assert_eq!(later.check(ANN, PHONE), Err(Reason::DeviceRevoked));
    assert_eq!((later.check(ANN, DESK), later.check_user(ANN)), (Ok(()), Ok(())));
    assert_eq!(later.check(BOB, PHONE), Ok(()), "an end is its user's");
    assert!(later.as_of().is_some());
    assert_eq!(later.changes(), 1, "an enrolment is no end");

    let mut ends = later.subscribe();
    append(&log, BOB, None).await;
    append(&log, BOB, None).await;
    append(&log, ANN, Some((DESK, true))).await;
    assert_eq!(ends.recv().await.unwrap(), Ended::User(BOB));
    assert_eq!(ends.recv().await.unwrap(), Ended::Device(ANN, DESK), "a repeat is not told again");
    assert_eq!(later.changes(), 3, "nor is it a change");
    assert_eq!(later.check(BOB, PHONE), Err(Reason::UserDeactivated));
    stop.cancel();
}

#[tokio::test]
async fn a_decision_is_in_the_audit_topic() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).await;
    let clock = Clock::from_fn(|| Timestamp::from_micros(7));
    let audit = Audit { log: Arc::clone(&log), role: "directory", clock };
    audit.record("revoke_device", None, Some(PHONE.as_bytes()), Err(Reason::ScopeRequired));
    let payload = audited(&log, 1).await.remove(0);
    let record = wire::AuditRecord::decode(payload).unwrap();
    assert_eq!((record.at_us, record.role.as_str(), record.action.as_str()), (7, "directory", "revoke_device"));
    assert_eq!((record.allowed, record.reason.as_str(), record.count), (false, "SCOPE_REQUIRED", 0));
    assert_eq!(record.subject_id, PHONE.as_bytes()[..]);
}

/// The first records of the audit topic, as many as asked; waits for them.
async fn audited(log: &Arc<dyn EventLog>, count: usize) -> Vec<Bytes> {
    let mut subscription = log.subscribe(Group::Everyone, Topic::Audit, FetchLimits::default()).await.unwrap();
    let mut payloads = Vec::new();
    while payloads.len() < count {
        match subscription.next().await.unwrap() {
            Event::Assigned(partition) => drop(subscription.start(partition, Start::Oldest).await.unwrap()),
            Event::Revoked(_) => {}
            Event::Records { records, .. } => payloads.extend(records.into_iter().map(|record| record.payload)),
        }
    }
    payloads
}

#[tokio::test]
async fn a_flood_of_refusals_is_one_record_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).await;
    let audit = Audit { log: Arc::clone(&log), role: "directory", clock: Clock::from_fn(|| Timestamp::from_micros(7)) };
    let counted = Counted::new(audit.clone(), Duration::from_millis(1));
    // All in one turn of the test's only thread: no interval ends before the last of them.
    for _ in 0..10_000 {
        counted.refused("create_session", Reason::AccessTokenInvalid);
    }
    counted.refused("create_session", Reason::DpopInvalid);
    let sum = |payload: Bytes| {
        let record = wire::AuditRecord::decode(payload).unwrap();
        (record.action, record.reason, record.count)
    };
    let mut sums: Vec<_> = audited(&log, 2).await.into_iter().map(sum).collect();
    sums.sort();
    let of = |reason: &str, count| ("create_session".to_owned(), reason.to_owned(), count);
    assert_eq!(sums, [of("ACCESS_TOKEN_INVALID", 10_000), of("DPOP_INVALID", 1)]);
    // The next one begins another interval.
    counted.refused("create_session", Reason::DpopInvalid);
    assert_eq!(sum(audited(&log, 3).await.remove(2)).2, 1);
}
