//! Device logs, key packages and ends.

#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use harness::*;
use prost::Message as _;
use wardline_directory::Limits;
use wardline_domain::envelope::Epoch;
use wardline_domain::record::{Body, Control};
use wardline_domain::roster::{Leaf, Role, RosterDelta};
use wardline_domain::{ConversationId, Digest, Position, Timestamp, UserId};
use wardline_log::{Event, FetchLimits, Group, LogRecord, Start, Topic};
use wardline_proto::convert::record;
use wardline_proto::{internal, v1};
use wardline_registry::Rate;
use wardline_runtime::consumer::Deps;
use wardline_runtime::health::FoldHealth;
use wardline_store::conversations::{MembersRow, MembershipRow, RowBatch};

const DAY: u64 = 24 * 3600;

#[tokio::test]
async fn a_device_joins_only_at_the_head_and_vouched_for() {
    let mut world = World::new().await;
    let ann = world.user(A, "ann").await;
    let (one, two, three) = (Device::new(1), Device::new(2), Device::new(3));
    let token = world.token(A, "ann", "");
    let fresh = world.open(&one, &token).await.unwrap().session_token;
    // A key that is not enrolled may do nothing else.
    let status = world.client.get_user(bearer(&fresh, v1::GetUserRequest { user_id: ann.to_string() })).await;
    assert_eq!(reason(&status.unwrap_err()), "DEVICE_NOT_ENROLLED");
    // The first device signs for itself, with the key that proved the session.
    let refusals = [
        (one.enrolment(ann, 1, Digest::default(), &two), "SIGNER_REQUIRED"),
        (one.enrolment(ann, 2, Digest::default(), &one), "DEVICE_LOG_CONFLICT"),
        (one.enrolment(ann, 1, Digest::of(b"x"), &one), "DEVICE_LOG_CONFLICT"),
        (two.enrolment(ann, 1, Digest::default(), &two), "ARGUMENT_INVALID"),
        (
            v1::EnrollDeviceRequest { signature: vec![0; 64].into(), ..one.enrolment(ann, 1, Digest::default(), &one) },
            "SIGNATURE_INVALID",
        ),
    ];
    for (request, expected) in refusals {
        let status = world.client.enroll_device(bearer(&fresh, request)).await.unwrap_err();
        assert_eq!(reason(&status), expected);
    }
    world.enrolled(A, "ann", ann, &one, &one).await;
    let again = one.enrolment(ann, 1, Digest::default(), &one);
    world.client.enroll_device(bearer(&fresh, again)).await.unwrap();

    // The second needs the first, at the head.
    let fresh = world.open(&two, &token).await.unwrap().session_token;
    let (version, hash) = world.head(ann).await;
    let refusals = [
        (two.enrolment(ann, version + 1, hash, &two), "SIGNER_REQUIRED"),
        (two.enrolment(ann, version + 1, hash, &three), "SIGNER_REQUIRED"),
        (two.enrolment(ann, version, Digest::default(), &one), "DEVICE_LOG_CONFLICT"),
        (two.enrolment(ann, version + 1, Digest::default(), &one), "DEVICE_LOG_CONFLICT"),
    ];
    for (request, expected) in refusals {
        let status = world.client.enroll_device(bearer(&fresh, request)).await.unwrap_err();
        assert_eq!(reason(&status), expected);
    }
    world.enrolled(A, "ann", ann, &two, &one).await;
    // A key speaks for one user only.
    world.user(A, "bob").await;
    let token = world.token(A, "bob", "");
    assert_eq!(reason(&world.open(&one, &token).await.unwrap_err()), "KEY_TAKEN");
}

#[tokio::test]
async fn the_id_and_the_mls_key_of_another_users_device_are_refused() {
    let mut world = World::new().await;
    let (ann, bob) = (world.user(A, "ann").await, world.user(A, "bob").await);
    let (one, two) = (Device::new(1), Device::new(2));
    let ann_session = world.enrolled(A, "ann", ann, &one, &one).await;
    let token = world.token(A, "bob", "");
    let fresh = world.open(&two, &token).await.unwrap().session_token;
    let field = |status: tonic::Status| {
        let info = tonic_types::StatusExt::get_error_details(&status).error_info().unwrap().clone();
        (info.reason, info.metadata["field"].clone())
    };

    let same_id = two.enrolment_as(one.id, bob, 1, Digest::default(), &two);
    let status = world.client.enroll_device(bearer(&fresh, same_id.clone())).await.unwrap_err();
    assert_eq!(field(status), ("ALREADY_EXISTS".into(), "device.id".into()));
    let copy = Device { mls: one.mls.clone(), ..Device::new(2) };
    let same_key = copy.enrolment(bob, 1, Digest::default(), &copy);
    let status = world.client.enroll_device(bearer(&fresh, same_key)).await.unwrap_err();
    assert_eq!(field(status), ("KEY_TAKEN".into(), "device.mls_keys".into()));

    // Not even after its end: rosters and outcomes still know it.
    let request = v1::RevokeDeviceRequest { user_id: ann.to_string(), device_id: one.id.to_string() };
    world.client.revoke_device(bearer(&ann_session, request)).await.unwrap();
    let status = world.client.enroll_device(bearer(&fresh, same_id)).await.unwrap_err();
    assert_eq!(field(status), ("ALREADY_EXISTS".into(), "device.id".into()));
    assert_eq!(world.head(bob).await.0, 0);
    world.enrolled(A, "bob", bob, &two, &two).await;
}

#[tokio::test]
async fn of_devices_that_race_for_one_place_one_wins() {
    let mut world = World::new().await;
    let ann = world.user(A, "ann").await;
    let token = world.token(A, "ann", "");
    let mut calls = Vec::new();
    for n in 1..=6 {
        let device = Device::new(n);
        let session = world.open(&device, &token).await.unwrap().session_token;
        let request = bearer(&session, device.enrolment(ann, 1, Digest::default(), &device));
        let mut client = world.client.clone();
        calls.push(tokio::spawn(async move { client.enroll_device(request).await }));
    }
    let mut won = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => won += 1,
            Err(status) => assert_eq!(reason(&status), "DEVICE_LOG_CONFLICT"),
        }
    }
    assert_eq!((won, world.head(ann).await.0), (1, 1));
}

#[tokio::test]
async fn key_packages_of_others_or_of_the_wrong_life_are_refused() {
    let mut world = World::new().await;
    let ann = world.user(A, "ann").await;
    let (one, two) = (Device::new(1), Device::new(2));
    let session = world.enrolled(A, "ann", ann, &one, &one).await;
    let now = world.seconds();
    let life = (now - 3600, now + 180 * DAY - 3600);
    let bad = [
        two.key_package(ann, 1, life, false),
        one.key_package(UserId::from_bytes([9; 16]), 1, life, false),
        one.key_package(ann, 1, (now, now + 59 * DAY), false),
        one.key_package(ann, 1, (now, now + 200 * DAY), false),
        one.key_package(ann, 1, (now + 2 * DAY, now + 100 * DAY), false),
        one.key_package(ann, 1, life, true),
        Bytes::from_static(b"no package"),
    ];
    for package in bad {
        let request = v1::PublishKeyPackagesRequest { key_packages: vec![package], last_resort: Bytes::new() };
        let status = world.client.publish_key_packages(bearer(&session, request)).await.unwrap_err();
        assert_eq!(reason(&status), "KEY_PACKAGE_INVALID");
    }
    let request =
        v1::PublishKeyPackagesRequest { key_packages: vec![], last_resort: one.key_package(ann, 1, life, false) };
    let status = world.client.publish_key_packages(bearer(&session, request)).await.unwrap_err();
    assert_eq!(reason(&status), "KEY_PACKAGE_INVALID");
}

#[tokio::test]
async fn a_key_package_leaves_once_and_a_repeat_gets_the_same() {
    let mut world = World::new().await;
    let (ann, bob) = (world.user(A, "ann").await, world.user(A, "bob").await);
    let stranger = world.user(B, "eve").await;
    let (one, two) = (Device::new(1), Device::new(2));
    let ann_session = world.enrolled(A, "ann", ann, &one, &one).await;
    let bob_session = world.enrolled(A, "bob", bob, &two, &two).await;
    let now = world.seconds();
    let life = (now, now + 90 * DAY);
    let request = v1::PublishKeyPackagesRequest {
        key_packages: (0..2).map(|salt| one.key_package(ann, salt, life, false)).collect(),
        last_resort: one.key_package(ann, 99, life, true),
    };
    let published = world.client.publish_key_packages(bearer(&ann_session, request)).await.unwrap().into_inner();
    assert_eq!(published.available, 2);

    let claim = |n: u8| v1::ClaimKeyPackagesRequest {
        request_id: uuid(n),
        user_ids: vec![ann.to_string(), bob.to_string(), stranger.to_string()],
        suite: 1,
    };
    let mut served = Vec::new();
    for n in [1, 2, 3, 4] {
        let answer = world.client.claim_key_packages(bearer(&bob_session, claim(n))).await.unwrap().into_inner();
        let again = world.client.claim_key_packages(bearer(&bob_session, claim(n))).await.unwrap().into_inner();
        assert_eq!(answer, again);
        // Bob's own calling device is left out, and the stranger is as good as unknown.
        assert_eq!(answer.missing.iter().filter(|missing| missing.device_id.is_empty()).count(), 2);
        served.push((answer.claimed[0].key_package.clone(), answer.claimed[0].last_resort));
    }
    assert_ne!(served[0].0, served[1].0);
    assert_eq!([served[0].1, served[1].1, served[2].1, served[3].1], [false, false, true, true]);
    assert_eq!(served[2], served[3]);
    // Another device's request of the same id is another request.
    let mine = world.client.claim_key_packages(bearer(&ann_session, claim(1))).await.unwrap().into_inner();
    assert!(mine.claimed.is_empty());
    let status = v1::GetKeyPackageStatusRequest { suite: 1 };
    let status = world.client.get_key_package_status(bearer(&ann_session, status)).await.unwrap().into_inner();
    assert!(status.available == 0 && status.has_last_resort && status.last_resort_used_time.is_some());
    let told = first_record(&world, Topic::Feeds, |record| feed_low(record, &one)).await;
    assert_eq!(told.key, ann.as_bytes()[..]);
}

#[tokio::test]
async fn a_claimer_that_asks_for_too_many_users_waits() {
    let mut world = World::new().await;
    let bob = world.user(A, "bob").await;
    let device = Device::new(1);
    let session = world.enrolled(A, "bob", bob, &device, &device).await;
    let claim = |n: u8, users: usize| v1::ClaimKeyPackagesRequest {
        request_id: uuid(n),
        user_ids: (0..users).map(|user| uuid(u8::try_from(user).unwrap())).collect(),
        suite: 1,
    };
    for n in 0..8 {
        world.client.claim_key_packages(bearer(&session, claim(n, 128))).await.unwrap();
    }
    let status = world.client.claim_key_packages(bearer(&session, claim(8, 1))).await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_EXCEEDED");
    assert!(tonic_types::StatusExt::get_error_details(&status).retry_info().is_some());
    let status = world.client.claim_key_packages(bearer(&session, claim(9, 129))).await.unwrap_err();
    assert_eq!(reason(&status), "ARGUMENT_INVALID");
    world.pass(60);
    world.client.claim_key_packages(bearer(&session, claim(8, 1))).await.unwrap();
}

#[tokio::test]
async fn one_claimer_cannot_keep_another_from_claiming_a_user() {
    let eight_at_once = Rate { burst: 8 * 60, per_second: 1 };
    let limits = Limits {
        claims_of_user: Rate { burst: 9, per_second: 1 },
        claims_of_user_by_one: eight_at_once,
        ..Limits::default()
    };
    let mut world = World::with(limits).await;
    let (ann, bob, eve) = (world.user(A, "ann").await, world.user(A, "bob").await, world.user(A, "eve").await);
    let (one, two, three) = (Device::new(1), Device::new(2), Device::new(3));
    world.enrolled(A, "ann", ann, &one, &one).await;
    let bob_session = world.enrolled(A, "bob", bob, &two, &two).await;
    let eve_session = world.enrolled(A, "eve", eve, &three, &three).await;
    let claim = |n: u8| v1::ClaimKeyPackagesRequest { request_id: uuid(n), user_ids: vec![ann.to_string()], suite: 1 };
    for n in 0..8 {
        world.client.claim_key_packages(bearer(&eve_session, claim(n))).await.unwrap();
    }
    for n in 8..20 {
        let status = world.client.claim_key_packages(bearer(&eve_session, claim(n))).await.unwrap_err();
        assert_eq!(reason(&status), "QUOTA_EXCEEDED");
    }
    // What was refused took nothing of Ann's own bucket, which has one left.
    world.client.claim_key_packages(bearer(&bob_session, claim(0))).await.unwrap();
    world.pass(59);
    let status = world.client.claim_key_packages(bearer(&eve_session, claim(20))).await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_EXCEEDED");
    world.pass(1);
    world.client.claim_key_packages(bearer(&eve_session, claim(20))).await.unwrap();
}

#[tokio::test]
async fn a_repeated_claim_costs_nothing() {
    let once = Rate { burst: 1, per_second: 1 };
    let limits = Limits { claims_of_user: once, claims_by_user: once, ..Limits::default() };
    let mut world = World::with(limits).await;
    let (ann, bob) = (world.user(A, "ann").await, world.user(A, "bob").await);
    let (one, two) = (Device::new(1), Device::new(2));
    world.enrolled(A, "ann", ann, &one, &one).await;
    let session = world.enrolled(A, "bob", bob, &two, &two).await;
    let claim = |n: u8| v1::ClaimKeyPackagesRequest { request_id: uuid(n), user_ids: vec![ann.to_string()], suite: 1 };
    for _ in 0..20 {
        world.client.claim_key_packages(bearer(&session, claim(1))).await.unwrap();
    }
    let status = world.client.claim_key_packages(bearer(&session, claim(2))).await.unwrap_err();
    assert_eq!(reason(&status), "QUOTA_EXCEEDED");
}

#[tokio::test]
async fn an_end_is_durable_spread_and_repeatable() {
    let mut world = World::new().await;
    let ann = world.user(A, "ann").await;
    let (one, two) = (Device::new(1), Device::new(2));
    let first = world.enrolled(A, "ann", ann, &one, &one).await;
    let second = world.enrolled(A, "ann", ann, &two, &one).await;
    let conversation = ConversationId::from_bytes([7; 16]);
    put_member(&world, conversation, ann, &[&one, &two]).await;
    let mut ends = world.revocations.subscribe();

    let request = v1::RevokeDeviceRequest { user_id: ann.to_string(), device_id: two.id.to_string() };
    for _ in 0..2 {
        let answer = world.client.revoke_device(bearer(&first, request.clone())).await.unwrap().into_inner();
        assert_eq!(answer.device.unwrap().state(), v1::DeviceState::Revoked);
    }
    assert_eq!(world.head(ann).await.0, 3, "the second end added no entry");
    ends.recv().await.unwrap();
    let read = v1::GetUserRequest { user_id: ann.to_string() };
    assert_eq!(reason(&world.client.get_user(bearer(&second, read)).await.unwrap_err()), "DEVICE_REVOKED");
    let token = world.token(A, "ann", "");
    assert_eq!(reason(&world.open(&two, &token).await.unwrap_err()), "DEVICE_REVOKED");
    the_authority_signed(&mut world, ann, &first).await;

    let spreading = tokio::spawn({
        let (directory, stop) = (world.directory.clone(), world.stop.clone());
        let on = Deps { log: Arc::clone(&world.log), stores: world.stores.clone(), health: FoldHealth::default() };
        async move { directory.follow_revocations(on, stop).await }
    });
    let control = first_record(&world, Topic::Conversations, |_| true).await;
    let control = record::decode(control.position, control.payload).unwrap();
    assert_eq!(control.conversation, conversation);
    assert_eq!(control.body, Body::Control(Control::DeviceRevoked { user: ann, device: two.id }));
    let told = first_record(&world, Topic::Feeds, |record| feed_end(record, &two)).await;
    assert_eq!(told.key, ann.as_bytes()[..]);
    world.stop.cancel();
    spreading.await.unwrap();
}

#[tokio::test]
async fn a_deactivated_user_is_out_and_so_are_its_devices() {
    let mut world = World::new().await;
    let ann = world.user(A, "ann").await;
    let one = Device::new(1);
    let session = world.enrolled(A, "ann", ann, &one, &one).await;
    let request = v1::DeactivateUserRequest { user_id: ann.to_string(), etag: "9".into() };
    assert_eq!(
        reason(&world.client.deactivate_user(bearer(&session, request.clone())).await.unwrap_err()),
        "SCOPE_REQUIRED"
    );
    let admin = world.admin(A).await;
    assert_eq!(reason(&world.client.deactivate_user(bearer(&admin, request)).await.unwrap_err()), "ETAG_MISMATCH");
    let mut ends = world.revocations.subscribe();
    for _ in 0..2 {
        let request = v1::DeactivateUserRequest { user_id: ann.to_string(), etag: String::new() };
        let user = world.client.deactivate_user(bearer(&admin, request)).await.unwrap().into_inner().user.unwrap();
        assert_eq!(user.state(), v1::UserState::Deactivated);
    }
    // The device's end, then the user's.
    ends.recv().await.unwrap();
    ends.recv().await.unwrap();
    let read = v1::GetUserRequest { user_id: ann.to_string() };
    assert_eq!(reason(&world.client.get_user(bearer(&session, read)).await.unwrap_err()), "USER_DEACTIVATED");
    let token = world.token(A, "ann", "");
    assert_eq!(reason(&world.open(&one, &token).await.unwrap_err()), "USER_DEACTIVATED");
}

async fn the_authority_signed(world: &mut World, user: UserId, session: &str) {
    let request = v1::ListDeviceLogRequest { user_id: user.to_string(), after_version: 2, page_size: 0 };
    let log = world.client.list_device_log(bearer(session, request)).await.unwrap().into_inner();
    let [entry] = &log.entries[..] else { panic!("one entry above 2") };
    assert!(entry.change() == v1::DeviceChange::Revoked && entry.signer_device_id.is_empty());
    let stored = world.stores.directory.device_log(user, 2, 1).await.unwrap().remove(0);
    let signed = wardline_directory::device_log::Entry {
        user,
        version: 3,
        previous_hash: stored.previous_hash,
        change: stored.change,
        device: stored.device.device,
        auth_key: &stored.device.auth_key,
        mls_keys: &stored.device.mls_keys,
    };
    let signature = ed25519_dalek::Signature::from_slice(&entry.signature).unwrap();
    world.authority.verifying_key().verify_strict(&signed.canonical_bytes(), &signature).unwrap();
}

/// A conversation whose roster has the user's devices.
async fn put_member(world: &World, conversation: ConversationId, user: UserId, devices: &[&Device]) {
    let leaf = |device: &&Device| Leaf {
        tenant: tenant(1),
        user,
        device: device.id,
        key_hash: Digest::of(&device.mls_key()),
        role: Role::Member,
        joined: Epoch(0),
        removal_pending: false,
    };
    let leaves: BTreeMap<_, _> = (0u32..).zip(devices.iter().map(|device| Some(leaf(device)))).collect();
    let members = MembersRow {
        conversation,
        version: 1,
        accepted_at: Timestamp::from_micros(1),
        delta: RosterDelta { to: 1, leaves },
        snapshot: None,
    };
    let membership = MembershipRow { user, conversation, member: true, position: Position::from_u64(1) };
    let rows = RowBatch { members: vec![members], memberships: vec![membership], ..RowBatch::default() };
    world.stores.conversations.put_rows(&rows).await.unwrap();
}

/// The first record of a topic, in any partition, that is `wanted`; waits for it.
async fn first_record(world: &World, topic: Topic, wanted: impl Fn(&LogRecord) -> bool) -> LogRecord {
    let mut subscription = world.log.subscribe(Group::Everyone, topic, FetchLimits::default()).await.unwrap();
    loop {
        match subscription.next().await.unwrap() {
            Event::Assigned(partition) => {
                subscription.start(partition, Start::Oldest).await.unwrap();
            }
            Event::Revoked(_) => {}
            Event::Records { records, .. } => {
                if let Some(record) = records.into_iter().find(&wanted) {
                    return record;
                }
            }
        }
    }
}

fn feed_end(record: &LogRecord, device: &Device) -> bool {
    use internal::v1::{FeedRecord, feed_event_record::Event, feed_record::Body};
    let Ok(FeedRecord { body: Some(Body::Event(event)) }) = FeedRecord::decode(record.payload.clone()) else {
        return false;
    };
    let Some(Event::DeviceChanged(changed)) = event.event else { return false };
    changed.revoked && changed.device_id == device.id.as_bytes()[..] && event.source >> 24 == 4
}

fn feed_low(record: &LogRecord, device: &Device) -> bool {
    use internal::v1::{FeedRecord, feed_event_record::Event, feed_record::Body};
    let Ok(FeedRecord { body: Some(Body::Event(event)) }) = FeedRecord::decode(record.payload.clone()) else {
        return false;
    };
    let to_device = event.recipients.iter().any(|to| to.device_ids == [device.id.as_bytes()[..].to_vec()]);
    to_device && event.source == 0 && matches!(event.event, Some(Event::KeyPackagesLow(low)) if low.available == 1)
}
