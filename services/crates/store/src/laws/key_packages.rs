//! Laws of key packages.

use std::collections::BTreeSet;

use wardline_domain::{DeviceId, Timestamp};

use super::sample::{day, device, last_resort, package, time, user};
use super::{Harness, ok};
use crate::Stores;
use crate::directory::{Claimed, KeyPackageRow, KeyPackageStatus, RequestId};

const SUITE: u16 = 1;
const KEEP: u32 = 100;

async fn publish(stores: &Stores, rows: &[KeyPackageRow]) -> u32 {
    ok(stores.directory.publish_key_packages(rows, KEEP).await)
}

fn request(n: u8) -> RequestId {
    [n; 16]
}

/// Claims for user 1, as on the first day, packages that live for another 60.
async fn claim(stores: &Stores, devices: &[DeviceId], by: u8) -> Claimed {
    ok(stores.directory.claim_key_packages(user(1), SUITE, devices, request(by), day(60), time(5)).await)
}

async fn status(stores: &Stores, of: u64, not_before_end: Timestamp) -> KeyPackageStatus {
    ok(stores.directory.key_package_status(user(1), device(of), SUITE, not_before_end).await)
}

/// No more than the cap are unserved; further ones are not taken until some are served. Devices are apart, last-resort
/// ones do not count.
pub async fn published_packages_are_counted_up_to_the_cap(harness: impl Harness) {
    let stores = harness.stores();
    let rows: Vec<_> = (0..8).map(|n| package(1, 1, n, 90 + n)).collect();
    assert_eq!(ok(stores.directory.publish_key_packages(&rows[..3], 5).await), 3);
    assert_eq!(ok(stores.directory.publish_key_packages(&rows[3..], 5).await), 5);
    assert_eq!(ok(stores.directory.publish_key_packages(&rows, 5).await), 5);
    assert_eq!(ok(stores.directory.publish_key_packages(&[last_resort(1, 1, 50, 90)], 5).await), 5);
    assert_eq!(ok(stores.directory.publish_key_packages(&[package(1, 2, 0, 90)], 5).await), 1);
    assert_eq!(status(stores, 1, day(60)).await.available, 5);
    assert_eq!(status(stores, 1, day(92)).await.available, 3);
    assert_eq!(status(stores, 3, day(60)).await, KeyPackageStatus::default());
    claim(stores, &[device(1)], 1).await;
    assert_eq!(ok(stores.directory.publish_key_packages(&rows[6..], 5).await), 5);
}

/// A package published again, in the same call or later, served or not, is not there twice.
pub async fn published_again_they_are_skipped(harness: impl Harness) {
    let stores = harness.stores();
    let rows = [package(1, 1, 0, 90), package(1, 1, 1, 91), package(1, 1, 0, 90)];
    assert_eq!(publish(stores, &rows).await, 2);
    assert_eq!(publish(stores, &rows).await, 2);
    assert_eq!(claim(stores, &[device(1)], 1).await.packages, vec![package(1, 1, 0, 90)]);
    assert_eq!(publish(stores, &rows).await, 1);
    assert_eq!(claim(stores, &[device(1)], 2).await.packages, vec![package(1, 1, 1, 91)]);
    assert_eq!(publish(stores, &rows).await, 0);
    assert_eq!(claim(stores, &[device(1)], 3).await.missing, vec![device(1)]);
    assert_eq!(publish(stores, &[]).await, 0);
}

/// Of those that live long enough the one that ends first is served; those that do not are not.
pub async fn the_package_that_ends_first_is_served_first(harness: impl Harness) {
    let stores = harness.stores();
    let days = [100, 30, 80, 59, 60, 120];
    let rows: Vec<_> = (0..).zip(days).map(|(n, days)| package(1, 1, n, days)).collect();
    publish(stores, &rows).await;
    let mut served = Vec::new();
    for by in 0..4 {
        let claimed = claim(stores, &[device(1)], by).await;
        assert_eq!(claimed.left, vec![(device(1), 3 - u32::from(by))]);
        served.extend(claimed.packages.into_iter().map(|row| row.not_after));
    }
    assert_eq!(served, vec![day(60), day(80), day(100), day(120)]);
    assert_eq!(claim(stores, &[device(1)], 9).await.missing, vec![device(1)]);
}

/// As many claims at once as there are packages get one each; the next get the last-resort one.
pub async fn a_package_is_served_once_under_concurrency(harness: impl Harness) {
    const PACKAGES: u64 = 12;
    let stores = harness.stores().clone();
    publish(&stores, &(0..PACKAGES).map(|n| package(1, 1, n, 90)).collect::<Vec<_>>()).await;
    publish(&stores, &[last_resort(1, 1, 99, 90)]).await;
    let claims = (0..PACKAGES as u8 + 4).map(|by| {
        let stores = stores.clone();
        tokio::spawn(async move { claim(&stores, &[device(1)], by).await })
    });
    let mut served = BTreeSet::new();
    let mut last_resorts = 0;
    for claimed in claims.collect::<Vec<_>>() {
        let claimed = claimed.await.expect("a claim that panics has failed its law");
        assert_eq!((claimed.packages.len(), claimed.missing.len()), (1, 0));
        if claimed.packages[0].last_resort {
            last_resorts += 1;
        } else {
            assert!(served.insert(claimed.packages[0].reference), "a package was served twice");
        }
    }
    assert_eq!((served.len() as u64, last_resorts), (PACKAGES, 4));
}

/// Without any other the last-resort package is served, again and again, and it is told when.
pub async fn without_packages_the_last_resort_one_is_served(harness: impl Harness) {
    let stores = harness.stores();
    publish(stores, &[last_resort(1, 1, 9, 90), package(1, 1, 1, 90)]).await;
    assert_eq!(claim(stores, &[device(1)], 1).await.packages, vec![package(1, 1, 1, 90)]);
    let unused = KeyPackageStatus { available: 0, has_last_resort: true, last_resort_used: None };
    assert_eq!(status(stores, 1, day(60)).await, unused);
    for by in [2, 3] {
        let claimed = claim(stores, &[device(1)], by).await;
        assert_eq!(claimed.packages, vec![last_resort(1, 1, 9, 90)]);
        assert_eq!(claimed.left, vec![(device(1), 0)]);
        let used = KeyPackageStatus { last_resort_used: Some(time(5)), ..unused };
        assert_eq!(status(stores, 1, day(60)).await, used);
    }
}

/// A new last-resort package takes the place of the one before; the one before is still found when it was served.
pub async fn a_last_resort_package_replaces_the_one_before(harness: impl Harness) {
    let stores = harness.stores();
    let (first, second, third) = (last_resort(1, 1, 7, 90), last_resort(1, 1, 8, 91), last_resort(1, 1, 9, 92));
    publish(stores, std::slice::from_ref(&first)).await;
    assert_eq!(claim(stores, &[device(1)], 1).await.packages, vec![first.clone()]);
    publish(stores, &[second, third.clone()]).await;
    assert_eq!(status(stores, 1, day(60)).await.last_resort_used, None);
    assert_eq!(claim(stores, &[device(1)], 2).await.packages, vec![third.clone()]);
    for row in [first.clone(), third.clone()] {
        assert_eq!(ok(stores.directory.served_key_package(user(1), SUITE, row.reference).await), Some(row));
    }
    // Published again, one that was served and replaced does not come back.
    publish(stores, &[first]).await;
    assert_eq!(claim(stores, &[device(1)], 3).await.packages, vec![third]);
}

/// The same request for the same user and suite answers the same, also after more was published or served; another user or
/// suite is another claim.
pub async fn a_claim_repeated_answers_the_same(harness: impl Harness) {
    let stores = harness.stores();
    publish(stores, &(0..4).map(|n| package(1, 1, n, 90 + n)).collect::<Vec<_>>()).await;
    publish(stores, &[package(2, 1, 9, 90)]).await;
    let claimed = |of, suite, by| stores.directory.key_packages_claimed(user(of), suite, request(by));
    assert!(!ok(claimed(1, SUITE, 1).await));
    let first = claim(stores, &[device(1), device(2)], 1).await;
    assert_eq!((first.packages.len(), &first.missing), (1, &vec![device(2)]));
    assert!(ok(claimed(1, SUITE, 1).await));
    assert!(!ok(claimed(2, SUITE, 1).await) && !ok(claimed(1, 2, 1).await) && !ok(claimed(1, SUITE, 2).await));
    publish(stores, &[package(1, 2, 5, 90)]).await;
    assert_eq!(claim(stores, &[device(1), device(2)], 1).await, first);
    assert_eq!(status(stores, 1, day(60)).await.available, 3);
    let of_another =
        stores.directory.claim_key_packages(user(2), SUITE, &[device(1)], request(1), day(60), time(5)).await;
    assert_eq!(ok(of_another).packages, vec![package(2, 1, 9, 90)]);
    let of_another = stores.directory.claim_key_packages(user(1), 2, &[device(1)], request(1), day(60), time(5)).await;
    assert_eq!(ok(of_another).missing, vec![device(1)]);
    let racing = (0..6).map(|_| {
        let stores = stores.clone();
        tokio::spawn(async move { claim(&stores, &[device(1)], 2).await })
    });
    let mut answers = Vec::new();
    for claimed in racing.collect::<Vec<_>>() {
        answers.push(claimed.await.expect("a claim that panics has failed its law"));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(status(stores, 1, day(60)).await.available, 2);
}

/// A claim takes one package for each device asked for, and no more; devices not asked for keep theirs.
pub async fn a_claim_takes_one_for_each_device(harness: impl Harness) {
    let stores = harness.stores();
    for of in 1..=3 {
        publish(stores, &(0..of).map(|n| package(1, of, n, 90)).collect::<Vec<_>>()).await;
    }
    let claimed = claim(stores, &[device(3), device(1), device(9)], 1).await;
    let served: BTreeSet<_> = claimed.packages.iter().map(|row| row.device).collect();
    assert_eq!(served, BTreeSet::from([device(1), device(3)]));
    assert_eq!(claimed.missing, vec![device(9)]);
    let left: BTreeSet<_> = claimed.left.into_iter().collect();
    assert_eq!(left, BTreeSet::from([(device(1), 0), (device(3), 2), (device(9), 0)]));
    assert_eq!(status(stores, 2, day(60)).await.available, 2);
}

/// A package is found by its reference once it was served, in its user and suite.
pub async fn served_packages_are_found_unserved_ones_not(harness: impl Harness) {
    let stores = harness.stores();
    let rows = [package(1, 1, 0, 90), package(1, 1, 1, 91)];
    publish(stores, &rows).await;
    claim(stores, &[device(1)], 1).await;
    let served = |of, suite, row: &KeyPackageRow| {
        let (store, reference) = (stores.directory.clone(), row.reference);
        async move { ok(store.served_key_package(user(of), suite, reference).await) }
    };
    assert_eq!(served(1, SUITE, &rows[0]).await, Some(rows[0].clone()));
    assert_eq!(served(1, SUITE, &rows[1]).await, None);
    assert_eq!(served(2, SUITE, &rows[0]).await, None);
    assert_eq!(served(1, 2, &rows[0]).await, None);
}

/// After a drop a device has nothing left to serve, in any suite; other devices do, and what was served is still found.
pub async fn dropped_packages_are_not_served(harness: impl Harness) {
    let stores = harness.stores();
    let in_suite_2 = KeyPackageRow { suite: 2, ..package(1, 1, 9, 90) };
    let rows = [package(1, 1, 0, 90), package(1, 1, 1, 91), last_resort(1, 1, 2, 90)];
    publish(stores, &rows).await;
    publish(stores, &[in_suite_2]).await;
    publish(stores, &[package(1, 2, 5, 90)]).await;
    claim(stores, &[device(1)], 1).await;
    ok(stores.directory.drop_key_packages(user(1), device(1)).await);
    assert_eq!(status(stores, 1, day(0)).await, KeyPackageStatus::default());
    let claimed = claim(stores, &[device(1), device(2)], 2).await;
    assert_eq!((claimed.missing, claimed.packages), (vec![device(1)], vec![package(1, 2, 5, 90)]));
    let of_suite_2 = stores.directory.claim_key_packages(user(1), 2, &[device(1)], request(3), day(60), time(5)).await;
    assert_eq!(ok(of_suite_2).missing, vec![device(1)]);
    let served = stores.directory.served_key_package(user(1), SUITE, rows[0].reference).await;
    assert_eq!(ok(served), Some(rows[0].clone()));
}

/// After the process was killed a claim answers the same, and what it served is not served again.
pub async fn claims_survive_the_end_of_the_process(harness: impl Harness) {
    let stores = harness.stores();
    publish(stores, &[package(1, 1, 0, 90), package(1, 1, 1, 91)]).await;
    let first = claim(stores, &[device(1)], 1).await;
    let Some(harness) = harness.crash().await else { return };
    assert_eq!(claim(harness.stores(), &[device(1)], 1).await, first);
    assert_eq!(claim(harness.stores(), &[device(1)], 2).await.packages, vec![package(1, 1, 1, 91)]);
}
