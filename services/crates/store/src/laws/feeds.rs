//! Laws of feeds.

use wardline_domain::Position;

use super::sample::{device, feed, position, receipt_of, time, user};
use super::{Harness, ok, orders};
use crate::Stores;
use crate::feeds::{DeviceCursorRow, FeedRow, ReceiptOfRow};
use crate::watermarks::merge;

/// A user's rows at the positions 10, 20, … each leading to the one before.
fn chain(of: u64, count: u64) -> Vec<FeedRow> {
    (1..=count).map(|n| feed(of, n * 10, (n > 1).then(|| (n - 1) * 10))).collect()
}

async fn positions(stores: &Stores, after: Option<u64>, through: u64, limit: usize) -> Vec<Position> {
    let rows = stores.feeds.rows(user(1), after.map(position), position(through), limit).await;
    ok(rows).iter().map(|row| row.position).collect()
}

/// Rows are read as written, in order, written twice or not; other users' are apart.
pub async fn feed_rows_are_read_as_written(harness: impl Harness) {
    let store = &harness.stores().feeds;
    let rows = chain(1, 20);
    let mut written = [chain(2, 3), rows.clone()].concat();
    written.reverse();
    for _ in 0..2 {
        ok(store.put_rows(&written).await);
        assert_eq!(ok(store.rows(user(1), None, position(1000), 100).await), rows);
        assert_eq!(ok(store.rows(user(2), None, position(1000), 100).await), chain(2, 3));
    }
}

/// `after` is excluded, `through` included, the limit holds.
pub async fn feed_rows_are_ranges_of_positions(harness: impl Harness) {
    let stores = harness.stores();
    ok(stores.feeds.put_rows(&chain(1, 10)).await);
    let at = |positions: &[u64]| positions.iter().copied().map(position).collect::<Vec<_>>();
    assert_eq!(positions(stores, None, 30, 100).await, at(&[10, 20, 30]));
    assert_eq!(positions(stores, Some(10), 30, 100).await, at(&[20, 30]));
    assert_eq!(positions(stores, Some(15), 35, 100).await, at(&[20, 30]));
    assert_eq!(positions(stores, Some(30), 1000, 2).await, at(&[40, 50]));
    assert_eq!(positions(stores, Some(30), 30, 100).await, vec![]);
    assert_eq!(positions(stores, Some(40), 30, 100).await, vec![]);
    assert_eq!(positions(stores, Some(100), 1000, 100).await, vec![]);
    assert_eq!(positions(stores, None, 5, 100).await, vec![]);
}

/// Whatever the pages, each row names the one before it.
pub async fn previous_leads_from_row_to_row(harness: impl Harness) {
    let store = &harness.stores().feeds;
    ok(store.put_rows(&chain(1, 25)).await);
    let mut last = None;
    let mut read = 0;
    loop {
        let page = ok(store.rows(user(1), last, position(1000), 7).await);
        if page.is_empty() {
            break;
        }
        for row in page {
            assert_eq!(row.previous, last);
            last = Some(row.position);
            read += 1;
        }
    }
    assert_eq!(read, 25);
}

/// In whatever order last positions are written, in one call or many, the highest stands.
pub async fn an_older_feed_head_never_shadows_a_newer_one(harness: impl Harness) {
    let store = &harness.stores().feeds;
    for (of, order) in (0..).zip(orders(&[1, 4, 6, 9])) {
        for n in &order {
            ok(store.put_heads(&[(user(of), position(*n))]).await);
        }
        let at_once: Vec<_> = order.iter().map(|n| (user(of + 100), position(*n))).collect();
        ok(store.put_heads(&at_once).await);
        let heads = ok(store.heads(&[user(of + 100), user(999), user(of)]).await);
        assert_eq!(heads, vec![Some(position(9)), None, Some(position(9))], "{order:?}");
    }
}

/// In whatever order acknowledgements are written, in one call or many, the highest stands; devices are apart.
pub async fn an_older_device_cursor_never_shadows_a_newer_one(harness: impl Harness) {
    let store = &harness.stores().feeds;
    let cursor = |of, n, at| DeviceCursorRow { user: user(of), device: device(n), acknowledged: position(at) };
    for (of, order) in (0..).zip(orders(&[1, 4, 6, 9])) {
        for at in &order {
            ok(store.put_device_cursors(&[cursor(of, 1, *at)]).await);
        }
        let at_once: Vec<_> = order.iter().map(|at| cursor(of, 2, at + 1)).collect();
        ok(store.put_device_cursors(&at_once).await);
        let read = ok(store.device_cursors(user(of)).await);
        assert_eq!(read, vec![cursor(of, 1, 9), cursor(of, 2, 10)], "{order:?}");
    }
    assert_eq!(ok(store.device_cursors(user(999)).await), vec![]);
}

/// Rows older than told go, for every user; younger ones stay.
pub async fn expire_drops_old_rows_only(harness: impl Harness) {
    let stores = harness.stores();
    for of in [1, 2, 3] {
        ok(stores.feeds.put_rows(&chain(of, 10)).await);
    }
    // Rows were told at 10, 20, … 100; what is gone stays gone.
    for (before, oldest) in [(0, 10), (40, 40), (40, 40), (55, 60), (30, 60)] {
        ok(stores.feeds.expire(time(before)).await);
        for of in [1, 2, 3] {
            let left = ok(stores.feeds.rows(user(of), None, position(1000), 100).await);
            let young: Vec<_> = chain(of, 10).into_iter().filter(|row| row.position >= position(oldest)).collect();
            if harness.expires_when_told() {
                assert_eq!(left, young, "before {before}");
            } else {
                assert!(left.ends_with(&young), "before {before}");
            }
        }
    }
}

/// Last positions stay when the rows go.
pub async fn feed_heads_do_not_expire(harness: impl Harness) {
    let store = &harness.stores().feeds;
    ok(store.put_rows(&chain(1, 3)).await);
    ok(store.put_heads(&[(user(1), position(30))]).await);
    ok(store.expire(time(1000)).await);
    assert_eq!(ok(store.heads(&[user(1)]).await), vec![Some(position(30))]);
}

/// In whatever order, in one call or many, repeated or not, what a user was told ends up the same.
pub async fn receipts_of_merge_in_every_order(harness: impl Harness) {
    let store = &harness.stores().feeds;
    let told = [2, 3, 7, 8];
    for (of, order) in (0..).zip(orders(&told)) {
        let rows = |of: u64| -> Vec<ReceiptOfRow> { order.iter().map(|n| receipt_of(of, 1, *n)).collect() };
        for row in rows(of) {
            ok(store.put_receipts_of(&[row]).await);
        }
        ok(store.put_receipts_of(&rows(of)[..2]).await);
        ok(store.put_receipts_of(&rows(of + 100)).await);
        for of in [of, of + 100] {
            let mut expected = receipt_of(of, 1, 8);
            for row in rows(of) {
                merge(&mut expected.watermark, &row.watermark);
            }
            assert_eq!(ok(store.receipts_of(user(of), None, 9).await), vec![expected], "{order:?}");
        }
    }
}

fn readers(rows: Vec<ReceiptOfRow>) -> Vec<u64> {
    let mut readers: Vec<_> = rows
        .iter()
        .map(|row| (0..100).find(|n| row.watermark.user == user(*n)).expect("laws have few readers"))
        .collect();
    readers.sort_unstable();
    readers
}

/// Only what was told by records above the position is answered; a later change moves a row up.
pub async fn receipts_of_above_a_position(harness: impl Harness) {
    let store = &harness.stores().feeds;
    let rows: Vec<_> = (1..=6).map(|n| receipt_of(1, n, n)).collect();
    ok(store.put_receipts_of(&rows).await);
    ok(store.put_receipts_of(&[receipt_of(1, 2, 9), receipt_of(2, 1, 50)]).await);
    assert_eq!(readers(ok(store.receipts_of(user(1), Some(position(4)), 99).await)), vec![2, 5, 6]);
    assert_eq!(readers(ok(store.receipts_of(user(1), Some(position(9)), 99).await)), Vec::<u64>::new());
    assert_eq!(readers(ok(store.receipts_of(user(1), None, 99).await)), vec![1, 2, 3, 4, 5, 6]);
}

/// When there are more than the limit, the most recent are answered.
pub async fn receipts_of_keep_the_most_recent(harness: impl Harness) {
    let store = &harness.stores().feeds;
    // 8 and 21 have no common factor, so each reader was told of at its own position.
    let rows: Vec<_> = (1..=20).map(|n| receipt_of(1, n, n * 8 % 21)).collect();
    ok(store.put_receipts_of(&rows).await);
    let recent: Vec<_> = (1..=20).filter(|n| n * 8 % 21 > 15).collect();
    assert_eq!(recent.len(), 5);
    assert_eq!(readers(ok(store.receipts_of(user(1), None, 5).await)), recent);
    assert_eq!(readers(ok(store.receipts_of(user(1), Some(position(3)), 5).await)), recent);
}
