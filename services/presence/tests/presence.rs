//! The role as devices see it.

#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::Timestamp;
use wardline_domain::conversation::Head;
use wardline_domain::envelope::{Epoch, Generation, Sequence};
use wardline_domain::record::{BlobRef, ConversationKind, GroupStateRef, Policy};
use wardline_domain::{Digest, Position};
use wardline_log::Topic;
use wardline_proto::internal::v1 as wire;
use wardline_proto::internal::v1::presence_link_service_client::PresenceLinkServiceClient;
use wardline_proto::v1;
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_store::conversations::{HeadRow, MembershipRow, RowBatch};
use world::{PATIENCE, World, conversation, device_of, reason, user};

fn dense(through: u64) -> Vec<u64> {
    (1..=through).collect()
}

/// Whatever was there before and whatever comes meanwhile arrives in order, once, without a gap.
#[tokio::test]
async fn catching_up_meets_the_live_stream() {
    let world = World::new().await;
    let node = world.node(|options| {
        options.limits.ring_events = 16;
        options.limits.page_rows = 8;
    });
    let node = node.await;
    let now = world.clock.now();
    for sequence in 1..=100 {
        world.message(1, sequence, now).await;
    }
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    let appending = async {
        for sequence in 101..=300 {
            world.message(1, sequence, now).await;
        }
    };
    tokio::join!(appending, device.read_through(300));
    assert_eq!(device.sequences, dense(300));
    // Live from here on.
    while device.caught_up == 0 {
        device.next().await.unwrap().unwrap();
    }
    world.message(1, 301, now).await;
    device.read_through(301).await;
    node.stop().await;
}

/// A device that does not acknowledge is sent its window, and the rest when it does.
#[tokio::test]
async fn a_slow_device_gets_its_window() {
    let world = World::new().await;
    let node = world.node(|options| options.limits.ring_events = 4).await;
    let now = world.clock.now();
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 8).await;
    device.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    for sequence in 1..=50 {
        world.message(1, sequence, now).await;
    }
    while device.sequences.len() < 50 {
        while device.unacknowledged < 8 && device.sequences.len() < 50 {
            device.next().await.unwrap().unwrap();
        }
        device.acknowledge().await;
    }
    assert_eq!(device.sequences, dense(50));
    assert_eq!(device.most_unacknowledged, 8);
    node.stop().await;
}

/// What is not a cursor of this feed is refused: garbage, another user's, one that was never given out.
#[tokio::test]
async fn foreign_cursors_are_refused() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    world.message(1, 1, world.clock.now()).await;
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    device.read_through(1).await;
    let cursor = device.cursor.clone();
    for (of, cursor) in [(1, Bytes::from_static(b"garbage")), (2, cursor.clone())] {
        let mut device = world.client(&node, of).await.attach(cursor, 0).await;
        assert_eq!(device.end().await, "CURSOR_INVALID");
    }
    let forged = v1::AttachAcknowledge { cursor: Bytes::from_static(&[1; 13]) };
    device.send(Up::Acknowledge(forged)).await;
    assert_eq!(device.end().await, "CURSOR_INVALID");
    node.stop().await;
}

/// A repeat of a derived record is dropped by its mark.
#[tokio::test]
async fn repeated_records_are_delivered_once() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let now = world.clock.now();
    for sequence in [1, 2, 1, 2, 3] {
        world.message(1, sequence, now).await;
    }
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    device.read_through(3).await;
    assert_eq!(device.sequences, dense(3));
    node.stop().await;
}

/// An event for another device of the user comes without body, and the chain holds.
#[tokio::test]
async fn other_devices_events_have_no_body() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let low = wire::FeedKeyPackagesLow { suite: 1, available: 3 };
    let low = wire::feed_event_record::Event::KeyPackagesLow(low);
    world.event(1, vec![device_of(2)], low.clone(), 1).await;
    world.event(1, vec![device_of(1)], low, 2).await;
    world.message(1, 3, world.clock.now()).await;
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    let mut bodies = Vec::new();
    while bodies.len() < 3 {
        let Some(Down::Events(events)) = device.next().await.unwrap() else { continue };
        bodies.extend(events.events.into_iter().map(|event| event.body));
    }
    assert!(bodies[0].is_none());
    assert!(matches!(bodies[1], Some(v1::event::Body::KeyPackagesLow(_))));
    assert!(matches!(bodies[2], Some(v1::event::Body::Message(_))));
    node.stop().await;
}

/// The owner of some of the users goes away; their devices, attached elsewhere, notice a pause at most.
#[tokio::test]
async fn devices_outlive_their_owner() {
    let world = World::new().await;
    let first = world.node(|_| {}).await;
    let second = world.node(|options| options.peers = vec![format!("http://{}", first.link_address)]).await;
    let now = world.clock.now();
    let mut devices = Vec::new();
    for of in 1..=8 {
        let mut device = world.client(&second, of).await.attach(Bytes::new(), 0).await;
        world.message(of, 1, now).await;
        device.read_through(1).await;
        devices.push((of, device));
    }
    let appending = async {
        for sequence in 2..=40 {
            for of in 1..=8 {
                world.message(of, sequence, now).await;
            }
        }
    };
    tokio::join!(first.stop(), appending);
    for (of, device) in &mut devices {
        device.read_through(40).await;
        assert_eq!(device.sequences, dense(40), "user {of}");
    }
    second.stop().await;
}

/// After a crash the log is folded again; a device that comes back with its cursor gets what it missed, once.
#[tokio::test]
async fn a_crash_leaves_no_gap() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let now = world.clock.now();
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    for sequence in 1..=30 {
        world.message(1, sequence, now).await;
    }
    device.read_through(20).await;
    let (mut sequences, cursor) = (device.sequences.clone(), device.cursor.clone());
    node.crash().await;
    for sequence in 25..=60 {
        world.message(1, sequence, now).await;
    }
    let node = world.node(|_| {}).await;
    let mut device = world.client(&node, 1).await.attach(cursor, 0).await;
    device.read_through(60).await;
    sequences.extend(&device.sequences);
    assert_eq!(sequences, dense(60));
    node.stop().await;
}

/// What a device acknowledges is reported, with the senders to tell; its cursor is kept after that.
#[tokio::test]
async fn acknowledgements_become_receipts() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut receipts = world.receipts().await;
    for sequence in 1..=3 {
        world.message(1, sequence, world.clock.now()).await;
    }
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    device.read_through(3).await;
    receipts
        .until(|record, report| {
            record.sender_user_ids == [Bytes::from_static(&[77; 16])]
                && report.delivered == 3
                && report.device_id == device_of(1).as_bytes().as_slice()
        })
        .await;
    // A cursor saved but never acknowledged counts when the device comes back with it.
    world.message(1, 4, world.clock.now()).await;
    while device.sequences.len() < 4 {
        device.next().await.unwrap().unwrap();
    }
    let cursor = device.cursor.clone();
    drop(device);
    let again = world.client(&node, 1).await.attach(cursor, 0).await;
    receipts.until(|_, report| report.delivered == 4).await;
    drop(again);
    node.stop().await;
}

/// The law: an event whose message is not stored yet goes to nobody before it is, and then whole.
#[tokio::test]
async fn a_message_that_is_stored_late_arrives_whole() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    device.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    let message = wire::FeedMessage {
        conversation_id: Bytes::copy_from_slice(conversation(7).as_bytes()),
        sequence: 1,
        sender_user_id: Bytes::from_static(&[77; 16]),
        sender_device_id: Bytes::from_static(&[78; 16]),
        by_reference: true,
        ..Default::default()
    };
    world.event(1, Vec::new(), wire::feed_event_record::Event::Message(message), 1).await;
    // What somebody else in the partition gets after it says that the owner has come to it.
    let neighbour = (2..).find(|other| world.partition_of(*other) == world.partition_of(1)).unwrap();
    world.message(neighbour, 2, world.clock.now()).await;
    world.client(&node, neighbour).await.attach(Bytes::new(), 0).await.read_through(2).await;
    world.stored(1, 1000, world.clock.now()).await;
    let Down::Events(events) = device.until(|frame| matches!(frame, Down::Events(_))).await else { return };
    let Some(v1::event::Body::Message(message)) = &events.events[0].body else { panic!("no message") };
    assert_eq!(message.chain_hash, Bytes::from_static(&[1; 32]));
    assert!(matches!(&message.body, Some(v1::message::Body::MlsMessage(bytes)) if bytes.len() == 1000));
    node.stop().await;
}

/// A cursor older than what is kept: said first, nothing sent before it is accepted, the gap reported as skipped.
#[tokio::test]
async fn an_old_cursor_is_told_where_to_resume() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut receipts = world.receipts().await;
    let old = Timestamp::from_micros(1_000_000);
    let mut device = world.client(&node, 1).await.attach(Bytes::new(), 0).await;
    world.message(1, 1, old).await;
    device.read_through(1).await;
    receipts.until(|_, report| report.delivered == 1).await;
    let cursor = device.cursor.clone();
    drop(device);
    for sequence in 2..=5 {
        world.message(1, sequence, old).await;
    }
    let mut other = world.client(&node, 1).await.attach(cursor.clone(), 0).await;
    while other.sequences.len() < 4 {
        other.next().await.unwrap().unwrap();
    }
    drop(other);
    node.stop().await;
    member_at(&world, 5).await;
    world.stores.feeds.expire(world.clock.now()).await.unwrap();
    let node = world.node(|_| {}).await;
    let mut device = world.client(&node, 1).await.attach(cursor, 0).await;
    let told = device.until(|frame| matches!(frame, Down::CursorExpired(_) | Down::Events(_))).await;
    let Down::CursorExpired(expired) = told else { panic!("events before the gap was told") };
    device.cursor = expired.resume_cursor;
    device.acknowledge().await;
    receipts.until(|_, report| report.skipped_through == 5 && report.delivered == 0).await;
    world.message(1, 6, world.clock.now()).await;
    device.read_through(6).await;
    assert_eq!(device.sequences, [6]);
    node.stop().await;
}

async fn member_at(world: &World, sequence: u64) {
    let blob = BlobRef { digest: Digest::of(b""), length: 0 };
    let group_state = GroupStateRef {
        generation: Generation(0),
        epoch: Epoch(0),
        group_info: blob,
        ratchet_tree: blob,
        sealed_group_data: blob,
    };
    let head = Head {
        last: Position::from_u64(9),
        last_digest: Digest::of(b""),
        created: Position::from_u64(1),
        create_digest: Digest::of(b""),
        tenant: world::TENANT,
        kind: ConversationKind::Group,
        suite: 1,
        sequence: Sequence(sequence),
        chain: Digest::of(b""),
        generation: Generation(0),
        epoch: Epoch(0),
        epoch_winner: None,
        members_version: 0,
        policy: Policy::default(),
        group_state,
        quarantined: None,
        newest: std::collections::BTreeMap::new(),
        floor: None,
    };
    let conversations = &world.stores.conversations;
    let membership =
        MembershipRow { user: user(1), conversation: conversation(7), member: true, position: Position::from_u64(9) };
    conversations.put_rows(&RowBatch { memberships: vec![membership], ..RowBatch::default() }).await.unwrap();
    conversations.put_heads(&[HeadRow { conversation: conversation(7), head }]).await.unwrap();
}

/// A revoked device's stream ends, and it is not let in again.
#[tokio::test]
async fn a_revocation_ends_the_stream() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut client = world.client(&node, 1).await;
    let mut device = client.attach(Bytes::new(), 0).await;
    device.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    let revoked = wire::DirectoryDevice {
        tenant_id: Bytes::copy_from_slice(world::TENANT.as_bytes()),
        user_id: Bytes::copy_from_slice(user(1).as_bytes()),
        device_id: Bytes::copy_from_slice(device_of(1).as_bytes()),
        revoked: true,
        version: 2,
        at_us: 1,
    };
    let record = wire::DirectoryRecord { body: Some(wire::directory_record::Body::Device(revoked)) };
    world.append(Topic::Directory, 0, record.encode_to_vec()).await;
    assert_eq!(device.end().await, "DEVICE_REVOKED");
    node.stop().await;
}

/// One stream a device: the newer one replaces the older.
#[tokio::test]
async fn a_newer_attachment_replaces_the_older() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut client = world.client(&node, 1).await;
    let mut older = client.attach(Bytes::new(), 0).await;
    older.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    let mut newer = client.attach(Bytes::new(), 0).await;
    newer.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    assert_eq!(older.end().await, "ATTACHMENT_REPLACED");
    node.stop().await;
}

/// A session's end is told before it comes; a token of the same device keeps the stream.
#[tokio::test]
async fn a_session_is_renewed_inside_the_stream() {
    let world = World::new().await;
    let node = world.node(|options| options.timings.session_notice = Duration::from_secs(30)).await;
    let soon = world.clock.now().minus(Duration::from_secs(57));
    let mut device = world.client_until(&node, 1, soon).await.attach(Bytes::new(), 0).await;
    device.until(|frame| matches!(frame, Down::SessionExpiring(_))).await;
    let session_token = world.token(1, world.clock.now().plus(Duration::from_secs(10)));
    device.send(Up::Renew(v1::AttachRenew { session_token })).await;
    device.until(|frame| matches!(frame, Down::SessionExpiring(_))).await;
    let session_token = world.token(1, world.clock.now().minus(Duration::from_secs(59)));
    device.send(Up::Renew(v1::AttachRenew { session_token })).await;
    assert_eq!(device.end().await, "SESSION_EXPIRED");
    node.stop().await;
}

/// A server that goes away says so, with the cursor to come back with.
#[tokio::test]
async fn draining_names_the_cursor() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut client = world.client(&node, 1).await;
    let mut device = client.attach(Bytes::new(), 0).await;
    world.message(1, 1, world.clock.now()).await;
    device.read_through(1).await;
    node.presence.drain();
    let Down::Draining(draining) = device.until(|frame| matches!(frame, Down::Draining(_))).await else {
        unreachable!("just matched")
    };
    assert_eq!(draining.cursor, device.cursor);
    assert_eq!(device.end().await, "");
    node.stop().await;
}

/// Presence is told to those who share a conversation, and to nobody else.
#[tokio::test]
async fn presence_is_for_those_who_share() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    member_at(&world, 0).await;
    let mut client = world.client(&node, 1).await;
    let mut device = client.attach(Bytes::new(), 0).await;
    device.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    device.send(Up::Activity(v1::AttachActivity {})).await;
    let asking = async {
        loop {
            let user_ids = vec![user(2).to_string(), user(1).to_string()];
            let request = client.request(v1::GetPresenceRequest { user_ids });
            let presences = client.service.get_presence(request).await.unwrap().into_inner().presences;
            assert_eq!(presences.len(), 1, "a stranger's presence was told");
            if presences[0].state == v1::PresenceState::Active as i32 && presences[0].devices == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
    let request = client.request(v1::ListMessagesRequest {
        conversation_id: conversation(8).to_string(),
        after_sequence: 0,
        page_size: 0,
    });
    assert_eq!(reason(&client.service.list_messages(request).await.unwrap_err()), "NOT_A_MEMBER");
    let request = client.request(v1::ListConversationsRequest::default());
    let listed = client.service.list_conversations(request).await.unwrap().into_inner();
    assert_eq!(listed.conversations.len(), 1);
    assert!(!listed.conversations[0].device_is_member);
    node.stop().await;
}

/// Receipts are told live, and at the next Attach to a device that was away.
#[tokio::test]
async fn receipts_reach_their_user() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut client = world.client(&node, 1).await;
    let mut device = client.attach(Bytes::new(), 0).await;
    device.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    let watermark = wire::WatermarkRecord {
        conversation_id: Bytes::copy_from_slice(conversation(7).as_bytes()),
        user_id: Bytes::copy_from_slice(user(2).as_bytes()),
        device_id: Bytes::copy_from_slice(device_of(2).as_bytes()),
        delivered: 5,
        read: 4,
        skipped: vec![2, 3],
        when_us: 1,
    };
    let user_id = Bytes::copy_from_slice(user(1).as_bytes());
    let summary = wire::ReceiptSummaryRecord { user_id, watermarks: vec![watermark] };
    let record = wire::FeedRecord { body: Some(wire::feed_record::Body::ReceiptSummary(summary)) };
    world.append(Topic::Feeds, world.partition_of(1), record.encode_to_vec()).await;
    for _ in 0..2 {
        let Down::Receipts(told) = device.until(|frame| matches!(frame, Down::Receipts(_))).await else {
            unreachable!("just matched")
        };
        let told = &told.watermarks[0];
        assert_eq!((told.delivered, told.read, told.skipped.len()), (5, 4, 1));
        device = client.attach(Bytes::new(), 0).await;
    }
    node.stop().await;
}

/// A link without the key is refused.
#[tokio::test]
async fn links_need_the_key() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut link = PresenceLinkServiceClient::connect_to(node.link_address).await;
    let refused = link.locate(wire::LocateRequest { partition: 0 }).await.unwrap_err();
    assert_eq!(reason(&refused), "TOKEN_MISSING");
    node.stop().await;
}

trait ConnectTo {
    async fn connect_to(address: std::net::SocketAddr) -> Self;
}

impl ConnectTo for PresenceLinkServiceClient<tonic::transport::Channel> {
    async fn connect_to(address: std::net::SocketAddr) -> Self {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self::new(endpoint.connect().await.unwrap())
    }
}

/// A message by reference is read from the store, live and when catching up; a large one is named for GetMessageBody.
#[tokio::test]
async fn references_are_read_from_the_store() {
    let world = World::new().await;
    let node = world.node(|_| {}).await;
    let mut client = world.client(&node, 1).await;
    let mut live = client.attach(Bytes::new(), 0).await;
    live.until(|frame| matches!(frame, Down::CaughtUp(_))).await;
    for (sequence, bytes) in [(1, 1000), (2, 300 << 10)] {
        world.stored(sequence, bytes, world.clock.now()).await;
        let message = wire::FeedMessage {
            conversation_id: Bytes::copy_from_slice(conversation(7).as_bytes()),
            sequence,
            sender_user_id: Bytes::from_static(&[77; 16]),
            sender_device_id: Bytes::from_static(&[78; 16]),
            by_reference: true,
            ..Default::default()
        };
        world.event(1, Vec::new(), wire::feed_event_record::Event::Message(message), sequence).await;
    }
    for again in [false, true] {
        if again {
            live = client.attach(Bytes::new(), 0).await;
        }
        let mut bodies = Vec::new();
        while bodies.len() < 2 {
            let Some(Down::Events(events)) = live.next().await.unwrap() else { continue };
            bodies.extend(events.events.into_iter().filter_map(|event| match event.body {
                Some(v1::event::Body::Message(message)) => message.body,
                _ => None,
            }));
        }
        assert!(matches!(&bodies[0], v1::message::Body::MlsMessage(bytes) if bytes.len() == 1000));
        assert!(matches!(&bodies[1], v1::message::Body::BlobRef(name) if name == "m:2"));
    }
    node.stop().await;
}
