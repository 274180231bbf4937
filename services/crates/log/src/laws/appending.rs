//! Laws of appending.

use std::num::NonZeroU32;

use futures::FutureExt as _;
use futures::future::join_all;
use tokio::time::Instant;

use super::{
    BUDGET_BYTES, Faults, Faulty, Follower, Harness, PATIENCE, TOPIC, append, append_batch, at, record, within,
};
use crate::seam::{Group, Refused, Start};

const ONE: NonZeroU32 = NonZeroU32::MIN;

/// What was acknowledged is read, at the position that the answer named.
pub async fn acknowledged_is_readable(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let positions = append(&*log, at(1), &["a", "b"]).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    assert_eq!(follower.read_to(1, "b").await, ["a", "b"]);
    assert_eq!(follower.positions(1), positions);
}

/// Whatever order the answers are awaited in, the log's order is that of the calls, and calls need no polling.
pub async fn order_of_calls_is_order_of_log(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut appended = Vec::new();
    for n in 0..100 {
        let permit = log.reserve(ONE).expect("100 bytes are within the budget");
        appended.push(log.append(permit, at(0), vec![record("k", n.to_string())]));
    }
    appended.reverse();
    within(join_all(appended)).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(follower.read_to(0, "99").await, expected);
}

/// A batch lies in the log whole and adjacent, whoever else appends.
pub async fn a_batch_is_adjacent(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let batches = (0..20).map(|n| {
        let payloads = ["x", "y", "z"].map(|part| format!("{n}{part}"));
        let log = &log;
        async move { append(&**log, at(0), &payloads.each_ref().map(String::as_str)).await }
    });
    join_all(batches).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    follower.until(|follower| follower.payloads(0).len() == 60).await;
    for batch in follower.payloads(0).chunks(3) {
        let batch_of = |payload: &String| payload.trim_end_matches(['x', 'y', 'z']).to_owned();
        assert!(batch.iter().all(|payload| batch_of(payload) == batch_of(&batch[0])), "a batch is not torn apart");
    }
}

/// A record is neither acknowledged nor readable while it is not durable.
pub async fn not_readable_before_durable(harness: &dyn Harness) {
    let subject = harness.fresh().await;
    let log = subject.log();
    append(&*log, at(0), &["before"]).await;
    let Some(release) = subject.hold() else { return };
    let permit = log.reserve(ONE).expect("one byte is within the budget");
    let mut appended = log.append(permit, at(0), vec![record("k", "held")]);
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    assert_eq!(follower.read_to(0, "before").await, ["before"]);
    assert!(follower.subscription.next().now_or_never().is_none(), "it is not readable");
    assert!((&mut appended).now_or_never().is_none(), "it is not acknowledged");
    release();
    within(appended).await.expect("a log without faults appends");
    assert_eq!(follower.read_to(0, "held").await, ["before", "held"]);
}

/// A caller that repeats what was `Unknown` until it is acknowledged finds it in the log at least once, and what was
/// `NotApplied` and not repeated is nowhere.
pub async fn unacknowledged_may_repeat(harness: &dyn Harness) {
    let subject = harness.fresh().await;
    let log = Faulty::new(
        subject.log(),
        7,
        Faults { refused: 0.2, lost: 0.2, told_unknown: 0.2, twice: 0.2, ..Faults::NONE },
    );
    let (mut there, mut nowhere) = (Vec::new(), Vec::new());
    for n in 0..50 {
        let mut unknown = false;
        let last = loop {
            match append_batch(&log, at(0), vec![record("k", n.to_string())]).await {
                Err(crate::Failure::Unknown(_)) => unknown = true,
                last => break last,
            }
        };
        match last {
            Ok(_) => there.push(n.to_string()),
            Err(_) if !unknown => nowhere.push(n.to_string()),
            Err(_) => {}
        }
    }
    append(&*subject.log(), at(0), &["end"]).await;
    let mut follower = Follower::join(&*subject.log(), Group::Everyone, TOPIC, Start::Oldest).await;
    let read = follower.read_to(0, "end").await;
    assert!(there.iter().all(|payload| read.contains(payload)), "what was acknowledged is there");
    assert!(!nowhere.iter().any(|payload| read.contains(payload)), "what was not applied is nowhere");
    let mut first_seen = read;
    first_seen.dedup();
    let numbers: Vec<u32> = first_seen.iter().filter_map(|payload| payload.parse().ok()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "repeats of one are adjacent, since its caller waited");
}

/// Positions of a partition rise, across batches and callers, and gaps are no repetition.
pub async fn dense_or_gapped_positions_rise(harness: &dyn Harness) {
    let subject = harness.fresh().await;
    let log = Faulty::new(subject.log(), 3, Faults { gap: 0.3, ..Faults::NONE });
    let mut acknowledged = Vec::new();
    for n in 0..30 {
        acknowledged.extend(append(&log, at(2), &[&format!("{n}a"), &format!("{n}b")]).await);
    }
    let mut follower = Follower::join(&log, Group::Everyone, TOPIC, Start::Oldest).await;
    follower.read_to(2, "29b").await;
    assert_eq!(follower.positions(2), acknowledged);
    assert!(acknowledged.is_sorted_by(|a, b| a < b));
}

/// The budget refuses what it has no room for, at once, and has the room again when a permit is dropped or durable.
pub async fn reserve_is_bounded_and_returned(harness: &dyn Harness) {
    let subject = harness.fresh().await;
    if !subject.promises().budgets {
        return;
    }
    let log = subject.log();
    let all = NonZeroU32::new(BUDGET_BYTES).expect("the budget is not zero");
    assert!(matches!(log.reserve(all.saturating_add(1)), Err(Refused::TooLarge)));
    let permit = log.reserve(all).expect("all of it is free");
    assert!(matches!(log.reserve(ONE), Err(Refused::Overloaded { .. })));
    drop(permit);
    let permit = log.reserve(all).expect("dropping a permit gives the room back");
    within(log.append(permit, at(0), vec![record("k", "v")])).await.expect("a log without faults appends");
    assert!(log.reserve(all).is_ok(), "durability gives the room back, before the answer");
}

/// Closing waits for what was accepted, and all of it is answered and readable.
pub async fn close_drops_nothing_in_flight(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    let mut appended = Vec::new();
    for n in 0..200 {
        let permit = log.reserve(ONE).expect("200 bytes are within the budget");
        appended.push(log.append(permit, at(0), vec![record("k", n.to_string())]));
    }
    within(log.close(Instant::now() + PATIENCE)).await.expect("200 records are durable in time");
    let answers = within(join_all(appended)).await;
    assert!(answers.iter().all(Result::is_ok), "what was accepted before is acknowledged");
    assert_eq!(follower.read_to(0, "199").await.len(), 200);
}

/// A closed log takes nothing, and says that nothing happened.
pub async fn closed_takes_nothing(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let permit = log.reserve(ONE).expect("one byte is within the budget");
    within(log.close(Instant::now() + PATIENCE)).await.expect("an idle log closes");
    assert!(matches!(log.reserve(ONE), Err(Refused::Closed)));
    let appended = within(log.append(permit, at(0), vec![record("k", "late")])).await;
    assert!(matches!(appended, Err(crate::Failure::NotApplied(_))));
}
