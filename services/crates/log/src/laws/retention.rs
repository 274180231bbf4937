//! Laws of what is kept.

use super::{Follower, Harness, TOPIC, append, append_batch, at, record, within};
use crate::seam::{EventLog, Group, Start};
use crate::topic::{Partition, Topic};

const DIRECTORY: Partition = Partition { topic: Topic::Directory, index: 0 };

/// Trimming removes what lies at or below, keeps the rest, may be repeated, and is remembered.
pub async fn trim_keeps_the_rest(harness: &dyn Harness) {
    let mut subject = harness.fresh().await;
    if !subject.promises().trims {
        return;
    }
    let positions = {
        let log = subject.log();
        let positions = append(&*log, at(0), &["a", "b", "c", "d"]).await;
        append(&*log, at(1), &["other"]).await;
        for through in [positions[1], positions[1], positions[0]] {
            within(log.trim(at(0), through)).await.expect("a log without faults trims");
        }
        holds(&*log, &["c", "d"]).await;
        positions
    };
    if subject.promises().restarts {
        subject.reopen().await;
        holds(&*subject.log(), &["c", "d"]).await;
    }
    let log = subject.log();
    within(log.trim(at(0), positions[3])).await.expect("a log without faults trims");
    let next = append(&*log, at(0), &["e"]).await;
    assert!(next[0] > positions[3], "positions rise though nothing was left");
    holds(&*log, &["e"]).await;
}

async fn holds(log: &dyn EventLog, payloads: &[&str]) {
    let mut follower = Follower::join(log, Group::Everyone, TOPIC, Start::Oldest).await;
    let last = payloads.last().expect("a law names what is left");
    assert_eq!(follower.read_to(0, last).await, payloads);
    assert_eq!(follower.read_to(1, "other").await, ["other"]);
    let oldest = follower.positions(0).first().copied();
    assert_eq!(follower.held[&0].oldest, oldest);
}

/// A compacted topic keeps at least the latest record of each key, in order; older ones are gone once more was appended.
pub async fn compaction_keeps_the_latest(harness: &dyn Harness) {
    let mut subject = harness.fresh().await;
    let put = [("u", "u1"), ("v", "v1"), ("u", "u2"), ("w", "w1"), ("u", "u3"), ("v", "v2"), ("end", "end")];
    for (key, payload) in put {
        let appended = append_batch(&*subject.log(), DIRECTORY, vec![record(key, payload)]).await;
        appended.expect("a log without faults appends");
    }
    let latest = ["w1", "u3", "v2", "end"];
    let read = read_directory(&*subject.log()).await;
    assert_eq!(read.iter().filter(|payload| latest.contains(&payload.as_str())).count(), latest.len());
    if subject.promises().compacts {
        if subject.promises().restarts {
            subject.reopen().await;
        }
        let log = subject.log();
        append_batch(&*log, DIRECTORY, vec![record("end", "end")]).await.expect("a log without faults appends");
        // A record is removed once the newer one of its key is durable, which is a little after that one can be read.
        within(async { while read_directory(&*log).await != latest {} }).await;
    }
}

/// A compacted topic is never trimmed: whoever starts later needs the latest record of each key.
pub async fn a_compacted_topic_is_not_trimmed(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let batch = ["u", "v", "end"].map(|key| record(key, key.to_owned())).to_vec();
    let positions = append_batch(&*log, DIRECTORY, batch).await.expect("a log without faults appends");
    within(log.trim(DIRECTORY, positions[1])).await.expect("a log without faults is asked to trim");
    assert_eq!(read_directory(&*log).await, ["u", "v", "end"]);
}

async fn read_directory(log: &dyn EventLog) -> Vec<String> {
    let mut follower = Follower::join(log, Group::Everyone, Topic::Directory, Start::Oldest).await;
    follower.read_to(0, "end").await
}

/// What was acknowledged is there after a restart, at the same positions, and positions go on above it.
pub async fn restart_keeps_everything(harness: &dyn Harness) {
    let mut subject = harness.fresh().await;
    if !subject.promises().restarts {
        return;
    }
    let mut acknowledged = Vec::new();
    for round in ["a", "b", "c"] {
        acknowledged.extend(append(&*subject.log(), at(0), &[round]).await);
        subject.reopen().await;
    }
    let log = subject.log();
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    assert_eq!(follower.read_to(0, "c").await, ["a", "b", "c"]);
    assert_eq!(follower.positions(0), acknowledged);
    assert!(acknowledged.is_sorted_by(|a, b| a < b));
}
