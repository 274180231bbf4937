//! Write timestamps, and rows that are not what they should be.

#![allow(clippy::unwrap_used)]

mod support;

use scylla::client::session::Session;
use scylla::serialize::row::SerializeRow;
use support::{Lease, nodes, raw};
use wardline_domain::envelope::Sequence;
use wardline_domain::failure::CauseKind;
use wardline_domain::{Digest, Position};
use wardline_store::checkpoints::Checkpoint;
use wardline_store::conversations::RowBatch;
use wardline_store::laws::sample::{
    conversation, device, digest, feed, head, membership, message, outcome, position, receipt_of, roster_rows, tenant,
    user, watermark,
};
use wardline_store::{Failure, Result};

struct World {
    lease: Lease,
    session: Session,
}

impl World {
    async fn start() -> Option<Self> {
        let nodes = nodes()?;
        Some(Self { lease: Lease::take(nodes.clone()).await, session: raw(nodes).await })
    }

    async fn run(&self, cql: &str, values: impl SerializeRow) {
        self.session.query_unpaged(cql.replace("{ks}", self.lease.keyspace()), values).await.unwrap();
    }

    /// The write timestamps that a query answers.
    async fn stamps(&self, cql: &str) -> Vec<i64> {
        let answer = self.session.query_unpaged(cql.replace("{ks}", self.lease.keyspace()), ()).await.unwrap();
        answer.into_rows_result().unwrap().rows::<(i64,)>().unwrap().map(|row| row.unwrap().0).collect()
    }
}

fn at(n: u64) -> i64 {
    position(n).as_u64().try_into().unwrap()
}

fn micros(at: wardline_domain::Timestamp) -> i64 {
    at.as_micros().try_into().unwrap()
}

/// Cells that the log derives are written at their position, numbers of receipts at themselves, immutable rows at the time of
/// acceptance: whatever a zombie writes later of an earlier record is older.
#[tokio::test]
async fn write_timestamps_are_what_the_log_says() {
    let Some(world) = World::start().await else { return };
    let stores = world.lease.stores();
    let rows = RowBatch {
        messages: vec![message(1, 3, 9)],
        outcomes: vec![outcome(1, 3, 3)],
        members: roster_rows(1, 1),
        memberships: vec![membership(1, 1, 3)],
    };
    stores.conversations.put_rows(&rows).await.unwrap();
    stores.conversations.put_heads(&[head(1, 3)]).await.unwrap();
    stores.feeds.put_rows(&[feed(1, 4, None)]).await.unwrap();
    stores.feeds.put_heads(&[(user(1), position(4))]).await.unwrap();
    stores.feeds.put_receipts_of(&[receipt_of(1, 1, 6)]).await.unwrap();
    stores.watermarks.put(&[watermark(1, 1, 9, 3, &[(2, 4)])]).await.unwrap();
    let expected = [
        ("value) FROM {ks}.messages", micros(rows.messages[0].accepted_at)),
        ("value) FROM {ks}.outcomes", micros(rows.outcomes[0].accepted_at)),
        ("value) FROM {ks}.members", micros(rows.members[0].accepted_at)),
        ("member) FROM {ks}.conversations_of", at(3)),
        ("head) FROM {ks}.heads", at(3)),
        ("value) FROM {ks}.feeds", micros(feed(1, 4, None).at)),
        ("position) FROM {ks}.feed_heads", at(4)),
        ("updated) FROM {ks}.receipts_of", at(6)),
        ("delivered) FROM {ks}.receipts_of", 6),
        ("delivered) FROM {ks}.watermarks", 9),
        ("read) FROM {ks}.watermarks", 3),
        ("recorded) FROM {ks}.watermarks", micros(watermark(1, 1, 9, 3, &[]).when)),
    ];
    for (what, stamp) in expected {
        assert_eq!(world.stamps(&format!("SELECT WRITETIME({what}")).await, [stamp], "{what}");
    }
}

/// Outcomes and feed rows go by themselves.
#[tokio::test]
async fn rows_that_go_by_themselves_have_their_time() {
    let Some(world) = World::start().await else { return };
    let stores = world.lease.stores();
    let outcomes = vec![outcome(1, 3, 3)];
    stores.conversations.put_rows(&RowBatch { outcomes, ..RowBatch::default() }).await.unwrap();
    stores.feeds.put_rows(&[feed(1, 4, None)]).await.unwrap();
    for (table, days) in [("outcomes", 21), ("feeds", 30)] {
        let cql = format!("SELECT TTL(value) FROM {}.{table}", world.lease.keyspace());
        let answer = world.session.query_unpaged(cql, ()).await.unwrap().into_rows_result().unwrap();
        let (left,) = answer.single_row::<(i32,)>().unwrap();
        assert!((days * 86_400 - 3600..=days * 86_400).contains(&left), "{table}: {left} s");
    }
}

/// A position that CQL's timestamps do not hold is refused before anything is written.
#[tokio::test]
async fn a_position_above_what_timestamps_hold_is_refused() {
    let Some(world) = World::start().await else { return };
    let checkpoints = &world.lease.stores().checkpoints;
    let checkpoint = Checkpoint { position: Position::from_u64(1 << 63), digest: digest(1), marks: Vec::new().into() };
    corrupt(checkpoints.put(("feeds", 1), &checkpoint).await);
    assert_eq!(checkpoints.get(("feeds", 1)).await.unwrap(), None);
}

#[track_caller]
fn corrupt<T: std::fmt::Debug>(result: Result<T>) {
    match result {
        Err(Failure::NotApplied(cause)) => assert_eq!(cause.kind, CauseKind::Corrupt, "{cause}"),
        other => panic!("{other:?}"),
    }
}

/// A head or checkpoint whose write timestamp is not its position was written by something else: it is not gone on with.
#[tokio::test]
async fn a_cell_at_another_timestamp_is_corrupt() {
    let Some(world) = World::start().await else { return };
    let stores = world.lease.stores();
    stores.conversations.put_heads(&[head(1, 3)]).await.unwrap();
    let cql = "UPDATE {ks}.heads USING TIMESTAMP ? SET head = ? WHERE conversation = ?";
    world.run(cql, (at(4), head(1, 3).head.encode(), conversation(1).as_bytes())).await;
    corrupt(stores.conversations.head(conversation(1)).await);
    let checkpoint = Checkpoint { position: position(5), digest: digest(1), marks: Vec::new().into() };
    stores.checkpoints.put(("feeds", 1), &checkpoint).await.unwrap();
    let cql = "UPDATE {ks}.checkpoints USING TIMESTAMP ? SET checkpoint = ? \
               WHERE topic = 'feeds' AND partition = 1 AND incarnation = 1";
    world.run(cql, (at(6), &b"\x01\0\0\x01\0\0\0\0\x0500000000000000000000000000000000"[..])).await;
    corrupt(stores.checkpoints.get(("feeds", 1)).await);
}

/// Rows that do not decode are corrupt, and nothing panics.
#[tokio::test]
async fn rows_that_do_not_decode_are_corrupt() {
    let Some(world) = World::start().await else { return };
    let stores = world.lease.stores();
    let (c, u, d) = (*conversation(1).as_bytes(), *user(1).as_bytes(), *device(1).as_bytes());
    for garbage in [&b""[..], b"\x01", b"\x07garbage", b"\x01\xff\xff\xff\xff\xff\xff\xff\xff"] {
        world.run("INSERT INTO {ks}.heads (conversation, head) VALUES (?, ?)", (c, garbage)).await;
        corrupt(stores.conversations.head(conversation(1)).await);
        let cql = "INSERT INTO {ks}.messages (conversation, bucket, sequence, value) VALUES (?, 0, 1, ?)";
        world.run(cql, (c, garbage)).await;
        corrupt(stores.conversations.messages(conversation(1), Sequence(0), 9, 999).await);
        corrupt(stores.conversations.messages_at(&[(conversation(1), Sequence(1))]).await);
        let cql = "INSERT INTO {ks}.members (conversation, version, chunk, chunks, value) VALUES (?, 1, 0, 1, ?)";
        world.run(cql, (c, garbage)).await;
        corrupt(stores.conversations.roster(conversation(1), 9).await);
        let cql = "INSERT INTO {ks}.blobs (conversation, digest, chunk, chunks, value) VALUES (?, ?, 0, 1, ?)";
        world.run(cql, (c, digest(1).as_bytes(), garbage)).await;
        corrupt(stores.blobs.get(conversation(1), digest(1)).await);
        world.run("INSERT INTO {ks}.feeds (user, position, value) VALUES (?, 1, ?)", (u, garbage)).await;
        corrupt(stores.feeds.rows(user(1), None, position(1), 9).await);
        let cql = "INSERT INTO {ks}.checkpoints (topic, partition, incarnation, checkpoint) VALUES ('feeds', 1, 1, ?)";
        world.run(cql, (garbage,)).await;
        corrupt(stores.checkpoints.get(("feeds", 1)).await);
        let keys = [
            ("tenants", tenant(1).as_bytes().to_vec()),
            ("users", u.to_vec()),
            ("users_by_external_id", [&tenant(1).as_bytes()[..], b"sub"].concat()),
            ("device_claims", [&[0], &digest(1).as_bytes()[..]].concat()),
        ];
        for (table, key) in keys {
            let cql = format!("INSERT INTO {{ks}}.{table} (key, value) VALUES (?, ?)");
            world.run(&cql, (key, garbage)).await;
        }
        corrupt(stores.directory.tenant(tenant(1)).await);
        corrupt(stores.directory.user(user(1)).await);
        corrupt(stores.directory.user_by_external_id(tenant(1), "sub").await);
        corrupt(stores.directory.device_by_thumbprint(digest(1)).await);
        world.run("INSERT INTO {ks}.devices (user, kind, id, value) VALUES (?, 1, ?, ?)", (u, d, garbage)).await;
        corrupt(stores.directory.device(user(1), device(1)).await);
        corrupt(stores.directory.devices(user(1)).await);
        let cql = "INSERT INTO {ks}.key_packages (user, kind, suite, id, value) VALUES (?, 0, 1, ?, ?)";
        world.run(cql, (u, d, garbage)).await;
        corrupt(stores.directory.key_package_status(user(1), device(1), 1, Default::default()).await);
    }
    let cql = "UPDATE {ks}.watermarks SET delivered = -1 WHERE conversation = ? AND user = ? AND device = ?";
    world.run(cql, (c, u, d)).await;
    corrupt(stores.watermarks.of(conversation(1)).await);
    world.run("INSERT INTO {ks}.device_cursors (user, device, acknowledged) VALUES (?, 0x01, 1)", (u,)).await;
    corrupt(stores.feeds.device_cursors(user(1)).await);
}

/// Of a blob that a torn write left in part there is nothing; written again it is whole.
#[tokio::test]
async fn a_blob_in_part_is_not_there() {
    let Some(world) = World::start().await else { return };
    let blobs = &world.lease.stores().blobs;
    let bytes = bytes::Bytes::from(vec![5; 200_000]);
    let digest = Digest::of(&bytes);
    for chunk in 0..4 {
        blobs.put(conversation(1), std::slice::from_ref(&bytes)).await.unwrap();
        assert_eq!(blobs.get(conversation(1), digest).await.unwrap().as_ref(), Some(&bytes));
        let cql = "DELETE FROM {ks}.blobs WHERE conversation = ? AND digest = ? AND chunk = ?";
        world.run(cql, (conversation(1).as_bytes(), digest.as_bytes(), chunk)).await;
        assert_eq!(blobs.get(conversation(1), digest).await.unwrap(), None, "without chunk {chunk}");
    }
}

/// A roster whose snapshot a torn batch left out, in part or whole, is built from the one before.
#[tokio::test]
async fn a_roster_without_its_snapshot_is_built_from_the_one_before() {
    let Some(world) = World::start().await else { return };
    let store = &world.lease.stores().conversations;
    let members = roster_rows(1, 130);
    store.put_rows(&RowBatch { members, ..RowBatch::default() }).await.unwrap();
    let whole = store.roster(conversation(1), 127).await.unwrap();
    assert_eq!(whole.version(), 127);
    let cql =
        "UPDATE {ks}.members USING TIMESTAMP ? SET chunks = 2 WHERE conversation = ? AND version = 128 AND chunk = 0";
    world.run(cql, (micros(wardline_store::laws::sample::time(9999)), conversation(1).as_bytes())).await;
    assert_eq!(store.roster(conversation(1), 130).await.unwrap(), whole);
    assert_eq!(store.roster(conversation(1), u64::MAX).await.unwrap(), whole);
}
