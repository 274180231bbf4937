//! Laws of messages.

use wardline_domain::envelope::Sequence;

use super::sample::{conversation, message, time};
use super::{Harness, ok};
use crate::Stores;
use crate::conversations::{MessageRow, RowBatch};

async fn write(stores: &Stores, messages: Vec<MessageRow>) {
    ok(stores.conversations.put_rows(&RowBatch { messages, ..RowBatch::default() }).await);
}

async fn sequences(stores: &Stores, after: u64, limit: usize, max_bytes: usize) -> Vec<u64> {
    let page = ok(stores.conversations.messages(conversation(1), Sequence(after), limit, max_bytes).await);
    page.iter().map(|row| row.sequence.0).collect()
}

/// Messages are read as written, in order, whatever order they were written in; empty and large ones too.
pub async fn messages_are_read_as_written(harness: impl Harness) {
    let rows: Vec<_> = (1..30).map(|n| message(1, n, (n as usize % 7) * 3000)).collect();
    let mut shuffled = rows.clone();
    shuffled.sort_by_key(|row| row.sequence.0 * 7 % 30);
    shuffled.push(message(2, 4, 10));
    write(harness.stores(), shuffled).await;
    let read = harness.stores().conversations.messages(conversation(1), Sequence(0), 1000, usize::MAX).await;
    assert_eq!(ok(read), rows);
}

/// A page begins above `after` and holds at most the limit; pages cross partitions.
pub async fn messages_are_paged_by_number(harness: impl Harness) {
    let stores = harness.stores();
    write(stores, (1..=2100).map(|n| message(1, n, 8)).collect()).await;
    assert_eq!(sequences(stores, 0, 3, usize::MAX).await, vec![1, 2, 3]);
    assert_eq!(sequences(stores, 1020, 6, usize::MAX).await, (1021..=1026).collect::<Vec<_>>());
    assert_eq!(sequences(stores, 10, 5000, usize::MAX).await, (11..=2100).collect::<Vec<_>>());
    assert_eq!(sequences(stores, 2098, 10, usize::MAX).await, vec![2099, 2100]);
    assert_eq!(sequences(stores, 2100, 10, usize::MAX).await, Vec::<u64>::new());
    assert_eq!(sequences(stores, u64::MAX, 10, usize::MAX).await, Vec::<u64>::new());
}

/// A page ends at about the bytes asked for, and holds one message even if that is larger.
pub async fn messages_are_paged_by_bytes_but_at_least_one(harness: impl Harness) {
    let stores = harness.stores();
    write(stores, (1..=20).map(|n| message(1, n, 1000)).collect()).await;
    assert_eq!(sequences(stores, 0, 100, 1).await, vec![1]);
    assert_eq!(sequences(stores, 7, 100, 0).await, vec![8]);
    let page = sequences(stores, 0, 100, 5000).await;
    assert!((4..=6).contains(&page.len()), "{page:?}");
    assert_eq!(page, (1..=page.len() as u64).collect::<Vec<_>>());
}

/// Single messages are answered in the order asked, those unknown with nothing.
pub async fn single_messages_are_answered_in_the_order_asked(harness: impl Harness) {
    let stores = harness.stores();
    write(stores, (0..40).map(|n| message(n % 2, n, 50)).collect()).await;
    for count in [0, 4, 60] {
        let asked: Vec<_> = (0..count).map(|n| (n % 2, n * 7 % 50)).collect();
        let at: Vec<_> = asked.iter().map(|(of, n)| (conversation(*of), Sequence(*n))).collect();
        let there = |of, n| n < 40 && n % 2 == of;
        let expected: Vec<_> = asked.iter().map(|(of, n)| there(*of, *n).then(|| message(*of, *n, 50))).collect();
        assert_eq!(ok(stores.conversations.messages_at(&at).await), expected);
    }
}

/// Partitions of 1,024 sequences go when all of them lie at or below `through`; nothing above goes, nor of other
/// conversations.
pub async fn only_whole_partitions_at_or_below_are_dropped(harness: impl Harness) {
    let stores = harness.stores();
    write(stores, (1..=3100).map(|n| message(1, n, 8)).collect()).await;
    write(stores, vec![message(0, 5, 8), message(2, 5, 8)]).await;
    for (through, first) in [(0, 1), (1022, 1), (1023, 1024), (1023, 1024), (2046, 1024), (2500, 2048), (5, 2048)] {
        ok(stores.conversations.drop_messages(conversation(1), Sequence(through), time(0)).await);
        let left = sequences(stores, 0, 5000, usize::MAX).await;
        assert_eq!(left, (first..=3100).collect::<Vec<_>>(), "through {through}");
    }
    let others = [(conversation(0), Sequence(5)), (conversation(2), Sequence(5))];
    let expected = vec![Some(message(0, 5, 8)), Some(message(2, 5, 8))];
    assert_eq!(ok(stores.conversations.messages_at(&others).await), expected);
}
