//! Laws of rosters.

use std::collections::BTreeMap;

use wardline_domain::roster::{Roster, RosterDelta};

use super::sample::{conversation, head, roster_rows};
use super::{Harness, ok};
use crate::conversations::{MembersRow, RowBatch};

/// The rosters at versions 0, 1, 2 … by folding deltas.
fn fold(rows: &[MembersRow]) -> Vec<Roster> {
    let mut rosters = vec![Roster::default()];
    for row in rows {
        let mut next = rosters[rosters.len() - 1].clone();
        next.apply(&row.delta).expect("sample rows are dense");
        rosters.push(next);
    }
    rosters
}

/// At every version, across snapshots, the roster is the fold of the deltas up to it, whatever order rows were written in.
pub async fn a_roster_at_every_version_is_the_fold_of_its_deltas(harness: impl Harness) {
    let store = &harness.stores().conversations;
    let rows = roster_rows(1, 140);
    let mut members = rows.clone();
    members.sort_by_key(|row| row.version * 37 % 141);
    members.extend(roster_rows(2, 3));
    ok(store.put_rows(&RowBatch { members, ..RowBatch::default() }).await);
    for (version, expected) in (0..).zip(fold(&rows)) {
        assert_eq!(ok(store.roster(conversation(1), version).await), expected, "version {version}");
    }
    assert_eq!(ok(store.roster(conversation(2), 99).await).version(), 3);
}

/// Versions whose head is not yet written are readable, and one that a torn batch left without its predecessor is not
/// answered.
pub async fn versions_above_the_head_are_readable(harness: impl Harness) {
    let store = &harness.stores().conversations;
    ok(store.put_heads(&[head(1, 2)]).await);
    let rows = roster_rows(1, 8);
    let rosters = fold(&rows);
    let torn = [&rows[..5], &rows[6..]].concat();
    ok(store.put_rows(&RowBatch { members: torn, ..RowBatch::default() }).await);
    assert_eq!(ok(store.roster(conversation(1), 1).await), rosters[1]);
    assert_eq!(ok(store.roster(conversation(1), 5).await), rosters[5]);
    assert_eq!(ok(store.roster(conversation(1), u64::MAX).await), rosters[5]);
    ok(store.put_rows(&RowBatch { members: rows, ..RowBatch::default() }).await);
    assert_eq!(ok(store.roster(conversation(1), u64::MAX).await), rosters[8]);
}

/// A conversation without versions has the empty roster.
pub async fn an_unknown_conversation_has_the_empty_roster(harness: impl Harness) {
    assert_eq!(ok(harness.stores().conversations.roster(conversation(1), u64::MAX).await), Roster::default());
}

/// A roster of the largest conversation is read as written: engines that cut it into chunks put it together again.
pub async fn a_large_roster_is_read_as_written(harness: impl Harness) {
    let store = &harness.stores().conversations;
    let mut leaves = BTreeMap::new();
    for row in roster_rows(1, 2500) {
        leaves.extend(row.delta.leaves.into_iter().filter(|(_, leaf)| leaf.is_some()));
    }
    let mut rows = roster_rows(1, 64);
    let delta = RosterDelta { to: 65, leaves };
    rows.push(MembersRow { version: 65, delta, snapshot: None, ..rows[0].clone() });
    let rosters = fold(&rows);
    assert!(rosters[65].leaves().len() >= 5000);
    // A snapshot where none is due is allowed.
    rows[64].snapshot = Some(std::sync::Arc::new(rosters[65].clone()));
    ok(store.put_rows(&RowBatch { members: rows, ..RowBatch::default() }).await);
    assert_eq!(ok(store.roster(conversation(1), 65).await), rosters[65]);
    assert_eq!(ok(store.roster(conversation(1), 64).await), rosters[64]);
}
