//! What happens when the journal cannot be written any more, and what is forgotten in time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{EmbeddedHarness, directory};
use crate::Failure;
use crate::embedded::engine::Engine;
use crate::embedded::sync::Syncer;
use crate::embedded::{Fatal, Options};
use crate::laws::Harness;
use crate::laws::sample::{day, device, package, time, user};

/// A failed write ends in the hook, is not retried, and leaves the caller without knowledge.
#[tokio::test]
async fn a_failed_write_is_fatal() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    let fatal: Fatal = Arc::new(move |message: &str| hook.lock().unwrap().push(message.to_owned()));
    let dir = directory();
    let engine = Engine::open(dir.path(), Options { fatal, ..Options::default() }).unwrap();
    let failure = engine.failed_write(&fjall::Error::Poisoned);
    assert!(matches!(failure, Failure::Unknown(_)));
    assert_eq!(told.lock().unwrap().len(), 1);
}

/// Many waiters share a sync, and who has nothing to wait for does not wait.
#[tokio::test]
async fn waiters_are_answered_by_a_sync() {
    let dir = directory();
    let db = fjall::Database::builder(dir.path()).open().unwrap();
    let mut syncer = Syncer::start(db, Arc::new(|_: &str| panic!("no sync fails here"))).unwrap();
    syncer.synced().await.unwrap();
    syncer.written();
    syncer.written();
    let (a, b) = tokio::join!(syncer.synced(), syncer.synced());
    assert_eq!((a, b), (Ok(()), Ok(())));
    syncer.stop();
    syncer.synced().await.unwrap();
    syncer.written();
    assert!(matches!(syncer.synced().await, Err(Failure::Unknown(_))));
}

/// Claims older than a week and packages whose life ended are forgotten by later calls.
#[tokio::test]
async fn old_claims_and_ended_packages_are_forgotten() {
    let harness = EmbeddedHarness::new();
    let directory = &harness.stores().directory;
    let (first, second) = (package(1, 1, 1, 90), package(1, 1, 2, 95));
    directory.publish_key_packages(&[first.clone(), second.clone()], 2).await.unwrap();
    let devices = [device(1)];
    let claim = |request: u8, now| directory.claim_key_packages(user(1), 1, &devices, [request; 16], day(60), now);
    assert_eq!(claim(1, time(0)).await.unwrap().packages, vec![first.clone()]);
    let week = Duration::from_secs(7 * 24 * 3600);
    assert_eq!(claim(1, time(0).plus(week)).await.unwrap().packages, vec![first.clone()]);
    // Another claim of a later week forgets the first, which is then a new one.
    let later = time(1).plus(week);
    directory.claim_key_packages(user(2), 1, &[], [9; 16], day(60), later).await.unwrap();
    assert_eq!(claim(1, later).await.unwrap().packages, vec![second.clone()]);
    // After the first one's life, a publish forgets it.
    let found = || directory.served_key_package(user(1), 1, first.reference);
    assert_eq!(found().await.unwrap(), Some(first.clone()));
    directory.claim_key_packages(user(2), 1, &[], [10; 16], day(60), day(91)).await.unwrap();
    directory.publish_key_packages(&[package(1, 1, 3, 200)], 2).await.unwrap();
    assert_eq!(found().await.unwrap(), None);
    let of_the_second = directory.served_key_package(user(1), 1, second.reference).await.unwrap();
    assert_eq!(of_the_second, Some(second));
}
