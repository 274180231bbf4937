//! Laws of owners that do not know that they are owners no more, and of writes whose answer was lost.

use wardline_domain::envelope::Sequence;

use super::faulty::{Faults, faulty};
use super::sample::{
    Random, conversation, device, digest, feed, head, membership, message, outcome, position, receipt_of, roster_rows,
    user, watermark,
};
use super::{Harness, ok};
use crate::checkpoints::Checkpoint;
use crate::conversations::{HeadRow, MembershipRow, RowBatch};
use crate::feeds::{DeviceCursorRow, ReceiptOfRow};
use crate::watermarks::WatermarkRow;
use crate::{Result, Stores};

const PARTITION: (&str, u32) = ("conversations", 0);

/// How many records the owners work through.
const RECORDS: u64 = 12;

/// The effects of the record at position n, in their order: any owner computes the same.
async fn effects(stores: &Stores, n: u64, step: u64) -> Result<()> {
    match step {
        0 => {
            let rows = RowBatch {
                messages: vec![message(1, n, 64)],
                outcomes: vec![outcome(1, n, n)],
                members: roster_rows(1, n).split_off(n as usize - 1),
                memberships: vec![membership(1, 1, n), membership(2, n % 3, n)],
            };
            stores.conversations.put_rows(&rows).await
        }
        1 => stores.feeds.put_rows(&[feed(1, n, (n > 1).then(|| n - 1))]).await,
        2 => stores.feeds.put_heads(&[(user(1), position(n))]).await,
        3 => stores.conversations.put_heads(&[head(1, n)]).await,
        4 => stores.watermarks.put(&[watermark(1, 1, n, n / 2, &[(n, n)])]).await,
        5 => stores.feeds.put_receipts_of(&[receipt_of(1, 1, n)]).await,
        6 => {
            let cursor = DeviceCursorRow { user: user(1), device: device(1), acknowledged: position(n) };
            stores.feeds.put_device_cursors(&[cursor]).await
        }
        _ => {
            let checkpoint =
                Checkpoint { position: position(n), digest: digest(n), marks: digest(n).as_bytes().to_vec().into() };
            stores.checkpoints.put(PARTITION, &checkpoint).await
        }
    }
}

const STEPS: u64 = 8;

/// Everything that [`effects`] writes.
#[derive(Debug, PartialEq)]
struct State {
    head: Option<wardline_domain::conversation::Head>,
    messages: Vec<crate::conversations::MessageRow>,
    outcomes: Vec<Option<crate::conversations::OutcomeRow>>,
    roster: wardline_domain::roster::Roster,
    memberships: Vec<MembershipRow>,
    feed: Vec<crate::feeds::FeedRow>,
    feed_heads: Vec<Option<wardline_domain::Position>>,
    cursors: Vec<DeviceCursorRow>,
    receipts: Vec<ReceiptOfRow>,
    watermarks: Vec<WatermarkRow>,
    checkpoint: Option<Checkpoint>,
}

async fn state(stores: &Stores) -> State {
    let keys: Vec<_> = (1..=RECORDS).map(|n| outcome(1, n, n).key).collect();
    let mut memberships = ok(stores.conversations.memberships(user(1), None, 99).await);
    memberships.extend(ok(stores.conversations.memberships(user(2), None, 99).await));
    State {
        head: ok(stores.conversations.head(conversation(1)).await),
        messages: ok(stores.conversations.messages(conversation(1), Sequence(0), 99, usize::MAX).await),
        outcomes: ok(stores.conversations.outcomes(&keys).await),
        roster: ok(stores.conversations.roster(conversation(1), u64::MAX).await),
        memberships,
        feed: ok(stores.feeds.rows(user(1), None, position(999), 99).await),
        feed_heads: ok(stores.feeds.heads(&[user(1)]).await),
        cursors: ok(stores.feeds.device_cursors(user(1)).await),
        receipts: ok(stores.feeds.receipts_of(user(1), None, 99).await),
        watermarks: ok(stores.watermarks.of(conversation(1)).await),
        checkpoint: ok(stores.checkpoints.get(PARTITION).await),
    }
}

/// What the state must be after all records.
fn check(state: &State) {
    let HeadRow { head, .. } = head(1, RECORDS);
    assert_eq!(state.head, Some(head));
    assert_eq!(state.messages, (1..=RECORDS).map(|n| message(1, n, 64)).collect::<Vec<_>>());
    assert_eq!(state.roster.version(), RECORDS);
    assert_eq!(state.feed.len() as u64, RECORDS);
    assert_eq!(state.feed_heads, vec![Some(position(RECORDS))]);
    assert_eq!(state.cursors[0].acknowledged, position(RECORDS));
    assert_eq!(state.memberships[0], membership(1, 1, RECORDS));
    let skipped = vec![(1, RECORDS)];
    let WatermarkRow { delivered, read, .. } = state.watermarks[0];
    assert_eq!((delivered, read), (RECORDS, RECORDS / 2));
    assert_eq!((&state.watermarks[0].skipped, &state.receipts[0].watermark.skipped), (&skipped, &skipped));
    assert_eq!(state.receipts[0].updated, position(RECORDS));
    assert_eq!(state.checkpoint.as_ref().map(|checkpoint| checkpoint.position), Some(position(RECORDS)));
}

/// However an old owner's writes, of the same or earlier records, come between a new owner's, the final state is the new
/// owner's.
pub async fn a_zombies_writes_do_not_change_the_final_state<H: Harness>(harness: H) {
    let stores = harness.stores();
    for n in 1..=RECORDS {
        for step in 0..STEPS {
            ok(effects(stores, n, step).await);
        }
    }
    let alone = state(stores).await;
    check(&alone);
    for seed in 0..4 {
        let mut random = Random(seed);
        let Some(harness) = H::start().await else { return };
        let stores = harness.stores();
        let mut owners: [Vec<(u64, u64)>; 2] = [8, RECORDS].map(|last| {
            let writes = (1..=last).rev().flat_map(|n| (0..STEPS).rev().map(move |step| (n, step)));
            writes.collect()
        });
        while owners.iter().any(|writes| !writes.is_empty()) {
            // The new owner is ahead more often than not, and the zombie has the last word.
            let owner = usize::from(random.below(4) > 0 && !owners[1].is_empty());
            if let Some((n, step)) = owners[owner].pop() {
                ok(effects(stores, n, step).await);
            }
        }
        assert_eq!(state(stores).await, alone, "seed {seed}");
    }
}

/// Whatever failed, in part or as a whole, repeated until it is answered it leaves the same state.
pub async fn failed_writes_repeated_end_in_the_same_state(harness: impl Harness) {
    let engine = harness.stores();
    let faulty = faulty(engine.clone(), 7, Faults::default());
    let mut failures = 0;
    for n in 1..=RECORDS {
        for step in 0..STEPS {
            while effects(&faulty, n, step).await.is_err() {
                failures += 1;
            }
        }
    }
    assert!(failures > RECORDS, "the decorator injects failures");
    check(&state(engine).await);
}
