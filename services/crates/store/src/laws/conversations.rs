//! Laws of heads, outcomes and memberships.

use wardline_domain::envelope::Sequence;

use super::sample::{conversation, head, membership, message, outcome, roster_rows, time, user};
use super::{Harness, ok, orders};
use crate::conversations::RowBatch;

const DAY: u64 = 24 * 3600;

/// A head is read as it was written; before that there is none.
pub async fn heads_are_read_as_written(harness: impl Harness) {
    let store = &harness.stores().conversations;
    assert_eq!(ok(store.head(conversation(1)).await), None);
    ok(store.put_heads(&[head(1, 7)]).await);
    assert_eq!(ok(store.head(conversation(1)).await), Some(head(1, 7).head));
    ok(store.put_heads(&[head(1, 9)]).await);
    assert_eq!(ok(store.head(conversation(1)).await), Some(head(1, 9).head));
}

/// Heads are answered in the order asked, those asked twice twice, those unknown with nothing.
pub async fn heads_are_answered_in_the_order_asked(harness: impl Harness) {
    let store = &harness.stores().conversations;
    ok(store.put_heads(&(0..40).map(|n| head(n, n + 1)).collect::<Vec<_>>()).await);
    for count in [0, 3, 60] {
        let asked: Vec<_> = (0..count).map(|n| n * 7 % 50).collect();
        let ids: Vec<_> = asked.iter().copied().map(conversation).collect();
        let expected: Vec<_> = asked.iter().map(|n| (*n < 40).then(|| head(*n, n + 1).head)).collect();
        assert_eq!(ok(store.heads(&ids).await), expected);
    }
}

/// In whatever order heads are written, in one call or many, the newest stands.
pub async fn an_older_head_never_shadows_a_newer_one(harness: impl Harness) {
    let store = &harness.stores().conversations;
    for (of, order) in (0..).zip(orders(&[2, 3, 5, 8])) {
        for n in &order {
            ok(store.put_heads(&[head(of, *n)]).await);
        }
        assert_eq!(ok(store.head(conversation(of)).await), Some(head(of, 8).head), "{order:?}");
        let at_once: Vec<_> = order.iter().map(|n| head(of + 100, *n)).collect();
        ok(store.put_heads(&at_once).await);
        assert_eq!(ok(store.head(conversation(of + 100)).await), Some(head(of + 100, 8).head), "{order:?}");
    }
}

/// Outcomes are answered in the order asked, those unknown with nothing; device and id both tell them apart.
pub async fn outcomes_are_answered_in_the_order_asked(harness: impl Harness) {
    let store = &harness.stores().conversations;
    // Ids of several days: of several partitions.
    let rows: Vec<_> = (0..40).map(|n| outcome(1, n, n * DAY / 4)).collect();
    ok(store.put_rows(&RowBatch { outcomes: rows.clone(), ..RowBatch::default() }).await);
    for count in [0, 5, 60] {
        let asked: Vec<_> = (0..count).map(|n| outcome(1, n * 7 % 50, n * 7 % 50 * DAY / 4)).collect();
        let keys: Vec<_> = asked.iter().map(|row| row.key).collect();
        let expected: Vec<_> = asked.into_iter().map(|row| rows.contains(&row).then_some(row)).collect();
        assert_eq!(ok(store.outcomes(&keys).await), expected);
    }
    let mut other = rows[0].key;
    other.device = rows[1].key.device;
    assert_eq!(ok(store.outcomes(&[other]).await), vec![None]);
}

/// Outcomes older than 21 days go when a conversation is told to drop, whatever time their ids claim; younger ones and other
/// conversations' stay.
pub async fn outcomes_older_than_three_weeks_go(harness: impl Harness) {
    if !harness.expires_when_told() {
        return;
    }
    let store = &harness.stores().conversations;
    let mut rows: Vec<_> = (0..20).map(|n| outcome(1, n, n * 2 * DAY)).collect();
    rows.push(outcome(2, 0, 0));
    // An id from the far future that was refused on the first day.
    let mut refused = outcome(1, 30, 5000 * DAY);
    refused.accepted_at = time(0);
    rows.push(refused);
    ok(store.put_rows(&RowBatch { outcomes: rows.clone(), ..RowBatch::default() }).await);
    ok(store.drop_messages(conversation(1), Sequence(0), time(31 * DAY)).await);
    let keys: Vec<_> = rows.iter().map(|row| row.key).collect();
    let stays = |row: &crate::conversations::OutcomeRow| {
        row.key.conversation != conversation(1) || row.accepted_at >= time(10 * DAY)
    };
    let expected: Vec<_> = rows.into_iter().map(|row| stays(&row).then_some(row)).collect();
    assert_eq!(ok(store.outcomes(&keys).await), expected);
}

/// Memberships are read by conversation, page after page, former ones included, other users' not.
pub async fn memberships_are_paged_by_conversation(harness: impl Harness) {
    let store = &harness.stores().conversations;
    let rows: Vec<_> = (0..25).map(|n| membership(1, n, n + 1)).collect();
    let mut memberships = rows.clone();
    memberships.extend([membership(0, 3, 4), membership(2, 5, 6)]);
    memberships.reverse();
    ok(store.put_rows(&RowBatch { memberships, ..RowBatch::default() }).await);
    let mut read = Vec::new();
    loop {
        let after = read.last().map(|row: &crate::conversations::MembershipRow| row.conversation);
        let page = ok(store.memberships(user(1), after, 10).await);
        assert!(page.len() <= 10);
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    assert_eq!(read, rows);
    assert_eq!(ok(store.memberships(user(3), None, 10).await), vec![]);
}

/// In whatever order memberships are written, in one call or many, the newest stands.
pub async fn an_older_membership_never_shadows_a_newer_one(harness: impl Harness) {
    let store = &harness.stores().conversations;
    for (of, order) in (0..).zip(orders(&[1, 2, 5, 6])) {
        let rows: Vec<_> = order.iter().map(|n| membership(of, 1, *n)).collect();
        for row in &rows {
            ok(store.put_rows(&RowBatch { memberships: vec![row.clone()], ..RowBatch::default() }).await);
        }
        assert_eq!(ok(store.memberships(user(of), None, 9).await), vec![membership(of, 1, 6)], "{order:?}");
        let memberships: Vec<_> = order.iter().map(|n| membership(of + 100, 1, *n)).collect();
        ok(store.put_rows(&RowBatch { memberships, ..RowBatch::default() }).await);
        assert_eq!(ok(store.memberships(user(of + 100), None, 9).await), vec![membership(of + 100, 1, 6)], "{order:?}");
    }
}

/// Writing the same rows again, in part or as a whole, changes nothing.
pub async fn rows_written_again_change_nothing(harness: impl Harness) {
    let store = &harness.stores().conversations;
    let rows = RowBatch {
        messages: (1..6).map(|n| message(1, n, 100)).collect(),
        outcomes: (1..6).map(|n| outcome(1, n, n)).collect(),
        members: roster_rows(1, 5),
        memberships: (1..6).map(|n| membership(n, 1, n)).collect(),
    };
    let part = RowBatch { messages: rows.messages[2..].to_vec(), members: rows.members[..2].to_vec(), ..rows.clone() };
    for written in [&rows, &rows, &part, &RowBatch::default(), &rows] {
        ok(store.put_rows(written).await);
        assert_eq!(ok(store.messages(conversation(1), Sequence(0), 100, usize::MAX).await), rows.messages);
        let keys: Vec<_> = rows.outcomes.iter().map(|row| row.key).collect();
        let outcomes: Vec<_> = rows.outcomes.iter().cloned().map(Some).collect();
        assert_eq!(ok(store.outcomes(&keys).await), outcomes);
        assert_eq!(ok(store.roster(conversation(1), u64::MAX).await).version(), 5);
        assert_eq!(ok(store.memberships(user(3), None, 9).await), vec![membership(3, 1, 3)]);
    }
}
