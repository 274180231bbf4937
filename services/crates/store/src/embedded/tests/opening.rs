//! Opening: formats, and who holds the directory.

use wardline_domain::failure::CauseKind;

use super::{EmbeddedHarness, directory};
use crate::embedded::open;
use crate::laws::Harness;

fn database(dir: &std::path::Path) -> fjall::Database {
    fjall::Database::builder(dir).open().unwrap()
}

#[tokio::test]
async fn another_format_is_refused_and_named() {
    let EmbeddedHarness { stores, dir } = EmbeddedHarness::start().await.unwrap();
    drop(stores);
    let db = database(dir.path());
    let format = db.keyspace("format", fjall::KeyspaceCreateOptions::default).unwrap();
    format.insert("version", 7u32.to_be_bytes()).unwrap();
    drop((format, db));
    let failure = open(dir.path()).unwrap_err();
    assert_eq!(failure.cause().kind, CauseKind::Corrupt);
    assert!(failure.to_string().contains("format 7 of the store, this program reads 1"), "{failure}");
}

#[tokio::test]
async fn a_database_that_is_not_ours_is_refused() {
    let dir = directory();
    let db = database(dir.path());
    let other = db.keyspace("other", fjall::KeyspaceCreateOptions::default).unwrap();
    drop((other, db));
    assert_eq!(open(dir.path()).unwrap_err().cause().kind, CauseKind::Corrupt);
}

#[tokio::test]
async fn a_creation_cut_short_is_taken_up() {
    let dir = directory();
    let db = database(dir.path());
    let format = db.keyspace("format", fjall::KeyspaceCreateOptions::default).unwrap();
    drop((format, db));
    drop(open(dir.path()).unwrap());
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn a_directory_is_held_by_one() {
    let harness = EmbeddedHarness::start().await.unwrap();
    assert_eq!(open(harness.dir.path()).unwrap_err().cause().kind, CauseKind::Unavailable);
}
