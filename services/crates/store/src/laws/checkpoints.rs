//! Laws of checkpoints.

use bytes::Bytes;
use wardline_domain::Position;

use super::sample::{conversation, digest, feed, head, message, position, user};
use super::{Harness, ok, orders};
use crate::checkpoints::Checkpoint;
use crate::conversations::RowBatch;

const PARTITION: (&str, u32) = ("conversations", 3);

fn checkpoint(n: u64) -> Checkpoint {
    Checkpoint { position: position(n), digest: digest(n), marks: Bytes::from(vec![n as u8; n as usize]) }
}

/// A place is read as it was written; before that there is none.
pub async fn a_checkpoint_is_read_as_written(harness: impl Harness) {
    let store = &harness.stores().checkpoints;
    assert_eq!(ok(store.get(PARTITION).await), None);
    for n in [0, 1, 50, 50] {
        ok(store.put(PARTITION, &checkpoint(n)).await);
        assert_eq!(ok(store.get(PARTITION).await), Some(checkpoint(n)));
    }
    ok(store.flush().await);
    assert_eq!(ok(store.get(PARTITION).await), Some(checkpoint(50)));
}

/// In whatever order places are written the highest stands; a later incarnation is higher than any offset.
pub async fn an_older_checkpoint_never_shadows_a_newer_one(harness: impl Harness) {
    let store = &harness.stores().checkpoints;
    let later = Position::new(2, 0).expect("both fit");
    let places = [checkpoint(3), checkpoint(4), checkpoint(200), Checkpoint { position: later, ..checkpoint(1) }];
    for (partition, order) in (0..).zip(orders(&places)) {
        for place in &order {
            ok(store.put(("feeds", partition), place).await);
        }
        assert_eq!(ok(store.get(("feeds", partition)).await).as_ref(), Some(&places[3]), "{order:?}");
    }
}

/// Topics and partitions have places of their own.
pub async fn checkpoints_of_partitions_are_apart(harness: impl Harness) {
    let store = &harness.stores().checkpoints;
    let partitions = [("conversations", 0), ("conversations", 256), ("conversations", 1), ("feeds", 0), ("feed", 0)];
    for (n, partition) in (1..).zip(partitions) {
        ok(store.put(partition, &checkpoint(n)).await);
    }
    for (n, partition) in (1..).zip(partitions) {
        assert_eq!(ok(store.get(partition).await), Some(checkpoint(n)));
    }
}

/// A place and what was written before it are there after the stores were closed and opened.
pub async fn a_checkpoint_survives_a_reopening(harness: impl Harness) {
    ok(harness.stores().conversations.put_heads(&[head(1, 7)]).await);
    ok(harness.stores().checkpoints.put(PARTITION, &checkpoint(7)).await);
    ok(harness.stores().checkpoints.flush().await);
    let harness = harness.reopen().await;
    assert_eq!(ok(harness.stores().checkpoints.get(PARTITION).await), Some(checkpoint(7)));
    assert_eq!(ok(harness.stores().conversations.head(conversation(1)).await), Some(head(1, 7).head));
    ok(harness.stores().checkpoints.put(PARTITION, &checkpoint(6)).await);
    assert_eq!(ok(harness.stores().checkpoints.get(PARTITION).await), Some(checkpoint(7)));
}

/// Everything answered is there after the process was killed, flushed or not.
pub async fn what_was_answered_survives_the_end_of_the_process(harness: impl Harness) {
    let stores = harness.stores();
    let messages = vec![message(1, 1, 5000)];
    ok(stores.conversations.put_rows(&RowBatch { messages: messages.clone(), ..RowBatch::default() }).await);
    ok(stores.conversations.put_heads(&[head(1, 7)]).await);
    ok(stores.feeds.put_rows(&[feed(1, 5, None)]).await);
    ok(stores.feeds.put_heads(&[(user(1), position(5))]).await);
    ok(stores.checkpoints.put(PARTITION, &checkpoint(7)).await);
    let Some(harness) = harness.crash().await else { return };
    let stores = harness.stores();
    assert_eq!(ok(stores.checkpoints.get(PARTITION).await), Some(checkpoint(7)));
    assert_eq!(ok(stores.conversations.head(conversation(1)).await), Some(head(1, 7).head));
    let at = [(messages[0].conversation, messages[0].sequence)];
    assert_eq!(ok(stores.conversations.messages_at(&at).await), vec![Some(messages[0].clone())]);
    assert_eq!(ok(stores.feeds.rows(user(1), None, position(9), 9).await), vec![feed(1, 5, None)]);
    assert_eq!(ok(stores.feeds.heads(&[user(1)]).await), vec![Some(position(5))]);
}
