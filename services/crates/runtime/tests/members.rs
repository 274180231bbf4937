//! What the cache of conversations may say, and what it must look up first.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wardline_domain::conversation::Head;
use wardline_domain::envelope::{Epoch, Generation, Sequence};
use wardline_domain::record::{BlobRef, ConversationKind, GroupStateRef, Policy};
use wardline_domain::roster::{Leaf, Role, RosterDelta};
use wardline_domain::{ConversationId, DeviceId, Digest, Position, TenantId, Timestamp, UserId};
use wardline_proto::reason::Reason;
use wardline_runtime::Clock;
use wardline_runtime::members::Members;
use wardline_store::Stores;
use wardline_store::conversations::{HeadRow, MembersRow, RowBatch};

const WARD: ConversationId = ConversationId::from_bytes([1; 16]);
const ANN: UserId = UserId::from_bytes([2; 16]);
const BOB: UserId = UserId::from_bytes([3; 16]);
const PHONE: DeviceId = DeviceId::from_bytes([4; 16]);
const DESK: DeviceId = DeviceId::from_bytes([5; 16]);

fn leaf(user: UserId, device: DeviceId, removal_pending: bool) -> Option<Leaf> {
    Some(Leaf {
        tenant: TenantId::from_bytes([9; 16]),
        user,
        device,
        key_hash: Digest::default(),
        role: Role::Member,
        joined: Epoch(0),
        removal_pending,
    })
}

fn head() -> Head {
    let blob = BlobRef { digest: Digest::default(), length: 0 };
    Head {
        last: Position::from_u64(1),
        last_digest: Digest::default(),
        created: Position::from_u64(1),
        create_digest: Digest::default(),
        tenant: TenantId::from_bytes([9; 16]),
        kind: ConversationKind::Group,
        suite: 1,
        sequence: Sequence(0),
        chain: Digest::default(),
        generation: Generation(0),
        epoch: Epoch(0),
        epoch_winner: None,
        members_version: 1,
        policy: Policy::default(),
        group_state: GroupStateRef {
            generation: Generation(0),
            epoch: Epoch(0),
            group_info: blob,
            ratchet_tree: blob,
            sealed_group_data: blob,
        },
        quarantined: None,
        newest: BTreeMap::new(),
        floor: None,
    }
}

async fn put(stores: &Stores, version: u64, leaves: &[(u32, Option<Leaf>)]) {
    let delta = RosterDelta { to: version, leaves: leaves.iter().cloned().collect() };
    let accepted_at = Timestamp::from_micros(version);
    let members = vec![MembersRow { conversation: WARD, version, accepted_at, delta, snapshot: None }];
    stores.conversations.put_rows(&RowBatch { members, ..RowBatch::default() }).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_looked_up_before_it_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let stores = wardline_store::embedded::open(dir.path()).unwrap();
    let seconds = Arc::new(AtomicU64::new(0));
    let clock = Clock::from_fn({
        let seconds = Arc::clone(&seconds);
        move || Timestamp::from_micros(seconds.load(Ordering::SeqCst) * 1_000_000)
    });
    let members = Members::new(Arc::clone(&stores.conversations), 8, Duration::from_secs(5), clock);
    assert!(members.get(WARD).await.unwrap().is_none());
    assert_eq!(members.of_user(WARD, ANN).await.unwrap_err().reason, Reason::NotAMember);

    put(&stores, 1, &[(0, leaf(ANN, PHONE, false))]).await;
    stores.conversations.put_heads(&[HeadRow { conversation: WARD, head: head() }]).await.unwrap();
    members.of_device(WARD, ANN, PHONE).await.unwrap();
    assert_eq!(members.of_user(WARD, BOB).await.unwrap_err().reason, Reason::NotAMember);
    assert_eq!(members.of_device(WARD, BOB, PHONE).await.unwrap_err().reason, Reason::NotAMember);

    // The roster in the store may be ahead of the head, and of the cache.
    put(&stores, 2, &[(1, leaf(BOB, DESK, false))]).await;
    assert_eq!(members.get(WARD).await.unwrap().unwrap().roster.version(), 1, "fresh enough");
    assert_eq!(members.of_device(WARD, BOB, DESK).await.unwrap().roster.version(), 2);

    // Who waits for removal is out when the cache is no longer fresh.
    put(&stores, 3, &[(1, leaf(BOB, DESK, true))]).await;
    members.of_device(WARD, BOB, DESK).await.unwrap();
    seconds.fetch_add(5, Ordering::SeqCst);
    assert_eq!(members.of_device(WARD, BOB, DESK).await.unwrap_err().reason, Reason::NotAMember);
    assert_eq!(members.of_user(WARD, BOB).await.unwrap_err().reason, Reason::NotAMember);
    members.of_user(WARD, ANN).await.unwrap();
}
