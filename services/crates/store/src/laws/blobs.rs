//! Laws of blobs.

use bytes::Bytes;
use wardline_domain::Digest;

use super::sample::{conversation, digest};
use super::{Harness, ok};

fn blob(n: u8, bytes: usize) -> Bytes {
    Bytes::from(vec![n; bytes])
}

/// Bytes are read under their SHA-256; empty ones and large ones too; what was never put is not there.
pub async fn blobs_are_read_by_their_digest(harness: impl Harness) {
    let store = &harness.stores().blobs;
    let blobs = [blob(0, 0), blob(1, 10), blob(2, 70_000), blob(3, 1_000_000)];
    ok(store.put(conversation(1), &blobs).await);
    for bytes in blobs {
        assert_eq!(ok(store.get(conversation(1), Digest::of(&bytes)).await), Some(bytes));
    }
    assert_eq!(ok(store.get(conversation(1), digest(9)).await), None);
}

/// What one conversation holds another does not.
pub async fn a_blob_belongs_to_its_conversation(harness: impl Harness) {
    let store = &harness.stores().blobs;
    ok(store.put(conversation(1), &[blob(1, 10)]).await);
    assert_eq!(ok(store.get(conversation(2), Digest::of(&blob(1, 10))).await), None);
}

/// The same bytes again are the same blob.
pub async fn a_blob_put_again_changes_nothing(harness: impl Harness) {
    let store = &harness.stores().blobs;
    for blobs in [vec![blob(1, 10), blob(1, 10)], vec![blob(1, 10)], vec![]] {
        ok(store.put(conversation(1), &blobs).await);
        assert_eq!(ok(store.get(conversation(1), Digest::of(&blob(1, 10))).await), Some(blob(1, 10)));
    }
}

/// What was answered is there after the process was killed.
pub async fn blobs_survive_the_end_of_the_process(harness: impl Harness) {
    ok(harness.stores().blobs.put(conversation(1), &[blob(1, 10), blob(2, 100_000)]).await);
    let Some(harness) = harness.crash().await else { return };
    for bytes in [blob(1, 10), blob(2, 100_000)] {
        assert_eq!(ok(harness.stores().blobs.get(conversation(1), Digest::of(&bytes)).await), Some(bytes));
    }
}
