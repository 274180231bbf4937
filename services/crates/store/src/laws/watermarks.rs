//! Laws of watermarks.

use super::sample::{conversation, device, user, watermark};
use super::{Harness, ok, orders};
use crate::watermarks::{WatermarkRow, merge};

fn merged(rows: &[WatermarkRow]) -> WatermarkRow {
    let mut result = rows[0].clone();
    for row in rows {
        merge(&mut result, row);
    }
    result
}

/// Rows are read as written, in the order asked, those unknown with nothing.
pub async fn watermarks_are_read_as_written(harness: impl Harness) {
    let store = &harness.stores().watermarks;
    let rows = [watermark(1, 1, 9, 3, &[(2, 4), (7, 7)]), watermark(1, 2, 0, 0, &[]), watermark(2, 1, 5, 5, &[])];
    ok(store.put(&rows).await);
    let key = |of, reader| (conversation(of), user(reader), device(reader));
    let read = ok(store.get(&[key(2, 1), key(3, 3), key(1, 1), key(1, 2), key(2, 1)]).await);
    let [first, second, third] = rows.map(Some);
    assert_eq!(read, vec![third.clone(), None, first, second, third]);
}

/// In whatever order, in one call or many, rows of one key merge to the same.
pub async fn watermarks_merge_in_every_order(harness: impl Harness) {
    let store = &harness.stores().watermarks;
    let told = [(1, 0, vec![(5, 6)]), (9, 2, vec![(1, 2), (7, 7)]), (4, 4, Vec::new()), (3, 8, vec![(3, 3), (20, 30)])];
    for (of, order) in (0..).zip(orders(&told)) {
        let rows = |of| -> Vec<_> { order.iter().map(|(d, r, skipped)| watermark(of, 1, *d, *r, skipped)).collect() };
        for row in rows(of) {
            ok(store.put(&[row]).await);
        }
        ok(store.put(&rows(of + 100)).await);
        for of in [of, of + 100] {
            let expected = merged(&rows(of));
            assert_eq!((expected.delivered, expected.read, expected.skipped.len()), (9, 8, 3));
            assert_eq!(ok(store.of(conversation(of)).await), vec![expected], "{order:?}");
        }
    }
}

/// What was merged already changes nothing.
pub async fn watermarks_merged_again_change_nothing(harness: impl Harness) {
    let store = &harness.stores().watermarks;
    let rows = [watermark(1, 1, 9, 3, &[(2, 4)]), watermark(1, 1, 4, 4, &[(5, 5)])];
    for again in [&rows[..], &rows[..1], &rows[1..], &[]] {
        ok(store.put(again).await);
        assert_eq!(ok(store.of(conversation(1)).await), vec![merged(&rows)]);
    }
}

/// A conversation's rows come by user, then device, and no others.
pub async fn watermarks_of_a_conversation_are_sorted(harness: impl Harness) {
    let store = &harness.stores().watermarks;
    let mut rows = Vec::new();
    for reader in [5, 3, 9] {
        for n in [2, 1] {
            rows.push(WatermarkRow { device: device(n), ..watermark(1, reader, n, 0, &[]) });
        }
    }
    ok(store.put(&rows).await);
    ok(store.put(&[watermark(0, 5, 1, 1, &[]), watermark(2, 5, 1, 1, &[])]).await);
    rows.sort_by_key(|row| (row.user, row.device));
    assert_eq!(ok(store.of(conversation(1)).await), rows);
    assert_eq!(ok(store.of(conversation(7)).await), vec![]);
}
