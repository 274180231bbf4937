//! Laws of sharing.

use super::{Follower, Harness, TOPIC, append, at};
use crate::seam::{EventLog, Group, Start};

const GROUP: Group = Group::Named("laws");

/// Appends the payload to every partition.
async fn mark(log: &dyn EventLog, payload: &str) {
    for index in 0..4 {
        append(log, at(index), &[payload]).await;
    }
}

/// Two groups each get everything.
pub async fn two_groups_are_independent(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut one = Follower::join(&*log, GROUP, TOPIC, Start::Oldest).await;
    let mut two = Follower::join(&*log, Group::Named("others"), TOPIC, Start::Oldest).await;
    mark(&*log, "a").await;
    for follower in [&mut one, &mut two] {
        follower.until(|follower| (0..4).all(|index| follower.payloads(index) == ["a"])).await;
    }
}

/// The members of a named group hold each partition once, in equal shares.
pub async fn a_named_group_shares_partitions(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut one = Follower::join(&*log, GROUP, TOPIC, Start::Oldest).await;
    one.until_held(4).await;
    let mut two = Follower::join(&*log, GROUP, TOPIC, Start::Oldest).await;
    let (_, ()) = futures::join!(two.until_held(2), one.until_held(2));
    let mut all: Vec<_> = one.held.keys().chain(two.held.keys()).copied().collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3]);
}

/// Subscribers of `Everyone` each get every partition.
pub async fn everyone_gets_everything(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut one = Follower::join(&*log, Group::Everyone, TOPIC, Start::Newest).await;
    let mut two = Follower::join(&*log, Group::Everyone, TOPIC, Start::Newest).await;
    one.until_held(4).await;
    two.until_held(4).await;
    mark(&*log, "a").await;
    for follower in [&mut one, &mut two] {
        follower.until(|follower| (0..4).all(|index| follower.payloads(index) == ["a"])).await;
    }
}

/// A subscription gives out nothing of a partition after it told that it is revoked.
pub async fn revoked_partition_yields_nothing(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut one = Follower::join(&*log, GROUP, TOPIC, Start::Newest).await;
    one.until_held(4).await;
    let mut two = Follower::join(&*log, GROUP, TOPIC, Start::Newest).await;
    let (_, ()) = futures::join!(two.until_held(2), one.until_held(2));
    mark(&*log, "after").await;
    // A follower panics on records of what it does not hold.
    for follower in [&mut one, &mut two] {
        let held: Vec<u32> = follower.held.keys().copied().collect();
        follower.until(|follower| held.iter().all(|index| follower.payloads(*index) == ["after"])).await;
        assert_eq!(follower.read.len(), 2);
    }
}

/// What a member that leaves held is the others', from where they start it.
pub async fn leaving_rebalances(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    mark(&*log, "a").await;
    let mut one = Follower::join(&*log, GROUP, TOPIC, Start::Oldest).await;
    one.until_held(4).await;
    let mut two = Follower::join(&*log, GROUP, TOPIC, Start::Oldest).await;
    let (_, ()) = futures::join!(two.until_held(2), one.until_held(2));
    drop(one);
    two.until(|two| (0..4).all(|index| two.payloads(index) == ["a"])).await;
    assert_eq!(two.held.len(), 4);
}
