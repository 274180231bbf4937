//! What a power cut leaves: a prefix of the journal.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use wardline_domain::envelope::Sequence;
use wardline_domain::failure::CauseKind;
use wardline_domain::roster::Roster;

use super::{EmbeddedHarness, copy, data_length, directory};
use crate::Stores;
use crate::checkpoints::Checkpoint;
use crate::conversations::RowBatch;
use crate::embedded::open;
use crate::laws::Harness;
use crate::laws::sample::{Random, conversation, digest, feed, head, message, position, roster_rows, user};

const PARTITION: (&str, u32) = ("conversations", 0);
const RECORDS: u64 = 40;

async fn effects(stores: &Stores, n: u64) {
    let members = roster_rows(1, n).split_off(n as usize - 1);
    let rows = RowBatch { messages: vec![message(1, n, 200)], members, ..RowBatch::default() };
    stores.conversations.put_rows(&rows).await.unwrap();
    stores.feeds.put_rows(&[feed(1, n, None)]).await.unwrap();
    stores.feeds.put_heads(&[(user(1), position(n))]).await.unwrap();
    stores.conversations.put_heads(&[head(1, n)]).await.unwrap();
    let checkpoint = Checkpoint { position: position(n), digest: digest(n), marks: Bytes::new() };
    stores.checkpoints.put(PARTITION, &checkpoint).await.unwrap();
}

/// Whatever was written up to the checkpoint that survived is there.
async fn check(stores: &Stores) -> u64 {
    let checkpoint = stores.checkpoints.get(PARTITION).await.unwrap();
    let last = checkpoint.map_or(0, |checkpoint| checkpoint.position.offset());
    let messages = stores.conversations.messages(conversation(1), Sequence(0), 1000, usize::MAX).await.unwrap();
    assert!(messages.len() as u64 >= last);
    assert!(messages.iter().zip(1..).all(|(row, n)| *row == message(1, n, 200)));
    let head = stores.conversations.head(conversation(1)).await.unwrap();
    assert!(head.map_or(0, |head| head.last.offset()) >= last);
    let roster: Roster = stores.conversations.roster(conversation(1), u64::MAX).await.unwrap();
    assert!(roster.version() >= last);
    assert!(stores.feeds.heads(&[user(1)]).await.unwrap()[0].map_or(0, |at| at.offset()) >= last);
    assert!(stores.feeds.rows(user(1), None, position(1000), 1000).await.unwrap().len() as u64 >= last);
    last
}

fn journal(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "jnl")).collect();
    assert_eq!(journals.len(), 1);
    journals.remove(0)
}

/// Cuts the journal's data off at a byte. What was allocated behind it reads as zeros, as on a disk.
fn cut(journal: &Path, at: usize) {
    let file = std::fs::OpenOptions::new().write(true).open(journal).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(at as u64).unwrap();
    file.set_len(length).unwrap();
}

/// A checkpoint that survives a power cut has everything before it beside it, wherever the journal was cut.
#[tokio::test]
async fn a_surviving_checkpoint_has_everything_before_it() {
    let harness = EmbeddedHarness::new();
    for n in 1..=RECORDS {
        effects(harness.stores(), n).await;
    }
    let left = directory();
    copy(harness.dir.path(), left.path());
    let bytes = std::fs::read(journal(left.path())).unwrap();
    let data = data_length(&bytes);
    let mut random = Random(1);
    let mut survived = std::collections::BTreeSet::new();
    for _ in 0..8 {
        cut_and_check(left.path(), 4000 + random.below(data as u64 - 4000) as usize, &mut survived).await;
    }
    cut_and_check(left.path(), data, &mut survived).await;
    assert!(survived.len() > 4 && survived.contains(&RECORDS), "{survived:?}");
}

async fn cut_and_check(from: &Path, at: usize, survived: &mut std::collections::BTreeSet<u64>) {
    let dir = directory();
    copy(from, dir.path());
    cut(&journal(dir.path()), at);
    let stores = open(dir.path()).unwrap();
    survived.insert(check(&stores).await);
    // And the stores go on.
    effects(&stores, RECORDS + 1).await;
}

/// The harness's files with one page of the journal as zeros: pages reach a disk in any order.
fn without_page(harness: &EmbeddedHarness, page: usize) -> tempfile::TempDir {
    let dir = directory();
    copy(harness.dir.path(), dir.path());
    let journal = journal(dir.path());
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[page * 4096..(page + 1) * 4096].fill(0);
    std::fs::write(journal, bytes).unwrap();
    dir
}

fn pages(harness: &EmbeddedHarness) -> usize {
    data_length(&std::fs::read(journal(harness.dir.path())).unwrap()) / 4096
}

/// A missing page of small rows ends the journal there: no checkpoint is left without what came before it.
#[tokio::test]
async fn a_missing_page_ends_the_journal() {
    let harness = EmbeddedHarness::new();
    for n in 1..=RECORDS {
        effects(harness.stores(), n).await;
    }
    let pages = pages(&harness);
    for page in (2..pages).step_by(pages / 6) {
        let dir = without_page(&harness, page);
        assert!(check(&open(dir.path()).unwrap()).await < RECORDS);
    }
}

/// A missing page inside one large value spoils nothing but the batch's checksum. fjall refuses such a journal: a person must
/// look.
#[tokio::test]
async fn a_missing_page_inside_a_value_is_refused() {
    let harness = EmbeddedHarness::new();
    let rows = RowBatch { messages: vec![message(1, 1, 200_000)], ..RowBatch::default() };
    harness.stores().conversations.put_rows(&rows).await.unwrap();
    let dir = without_page(&harness, pages(&harness) / 2);
    assert_eq!(open(dir.path()).unwrap_err().cause().kind, CauseKind::Corrupt);
}
