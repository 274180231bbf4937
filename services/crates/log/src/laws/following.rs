//! Laws of one subscriber.

use bytes::Bytes;
use futures::FutureExt as _;
use wardline_domain::failure::CauseKind;
use wardline_domain::{Failure, Position};

use super::{Follower, Harness, TOPIC, append, append_batch, at, record, within};
use crate::seam::{Event, FetchLimits, Group, NewRecord, Start};

/// Started at the oldest, everything comes, and `Started` says what there is.
pub async fn start_at_oldest(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let positions = append(&*log, at(0), &["a", "b", "c"]).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    assert_eq!(follower.read_to(0, "c").await, ["a", "b", "c"]);
    follower.until_held(4).await;
    assert_eq!(follower.held[&0].oldest, positions.first().copied());
    assert!(follower.held[&0].end > positions[2], "the end lies above all that is readable");
    assert_eq!(follower.held[&1].oldest, None, "an empty partition has no oldest");
}

/// Started at a position, that record comes first.
pub async fn start_at_position(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let positions = append(&*log, at(0), &["a", "b", "c"]).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Newest).await;
    follower.until_held(4).await;
    follower.subscription.start(0, Start::At(positions[1])).await.expect("it lies within the log");
    assert_eq!(follower.read_to(0, "c").await, ["b", "c"]);
    follower.read.clear();
    follower.subscription.start(0, Start::At(Position::default())).await.expect("what lies below begins at the oldest");
    assert_eq!(follower.read_to(0, "c").await, ["a", "b", "c"]);
}

/// Started at the newest, only what is appended later comes.
pub async fn start_at_newest(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    append(&*log, at(0), &["before"]).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Newest).await;
    follower.until_held(4).await;
    append(&*log, at(0), &["after"]).await;
    assert_eq!(follower.read_to(0, "after").await, ["after"]);
}

/// A start beyond the end is refused as corrupt; the end itself is a good start.
pub async fn start_beyond_end_is_corrupt(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    append(&*log, at(0), &["a"]).await;
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Newest).await;
    follower.until_held(4).await;
    let end = follower.held[&0].end;
    follower.subscription.start(0, Start::At(end)).await.expect("the end is a start");
    let beyond = Position::from_u64(end.as_u64() + 1);
    match follower.subscription.start(0, Start::At(beyond)).await {
        Err(Failure::NotApplied(cause)) => assert_eq!(cause.kind, CauseKind::Corrupt),
        other => panic!("a start beyond the end gave {other:?}"),
    }
}

/// Nothing of an assigned partition comes before it is started.
pub async fn nothing_comes_before_start(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    for index in 0..4 {
        append(&*log, at(index), &["a"]).await;
    }
    let mut subscription =
        log.subscribe(Group::Everyone, TOPIC, FetchLimits::default()).await.expect("a log without faults is followed");
    for _ in 0..4 {
        let event = within(subscription.next()).await.expect("a log without faults is read");
        assert!(matches!(event, Event::Assigned(_)), "{event:?}");
    }
    subscription.start(2, Start::Oldest).await.expect("what is assigned starts");
    let event = within(subscription.next()).await.expect("a log without faults is read");
    assert!(matches!(event, Event::Records { partition: 2, .. }), "{event:?}");
    assert!(subscription.next().now_or_never().is_none());
}

/// Dropping `next` at any point loses no event.
pub async fn cancelled_next_loses_nothing(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let limits = FetchLimits { records: 1, bytes: 1 };
    let mut follower = Follower::join_with(&*log, Group::Everyone, TOPIC, Start::Oldest, limits).await;
    follower.until_held(4).await;
    let appending = async {
        for n in 0..50 {
            append(&*log, at(n % 4), &[&n.to_string()]).await;
        }
    };
    let reading = async {
        let mut read = 0;
        while read < 50 {
            // Polled once and dropped, again and again.
            match follower.subscription.next().now_or_never() {
                Some(Ok(Event::Records { partition, records })) => {
                    read += records.len();
                    follower.read.entry(partition).or_default().extend(records);
                }
                Some(other) => panic!("{other:?}"),
                None => tokio::task::yield_now().await,
            }
        }
    };
    within(futures::future::join(appending, reading)).await;
    for index in 0..4 {
        let expected: Vec<_> = (0..50).filter(|n| n % 4 == index).map(|n: u32| n.to_string()).collect();
        assert_eq!(follower.payloads(index), expected);
    }
}

/// A batch holds no more than the limits, yet at least one record.
pub async fn limits_bound_a_batch(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let large = "x".repeat(1000);
    append(&*log, at(0), &["a", "b", "c", "d", "e", &large, "end"]).await;
    let limits = FetchLimits { records: 2, bytes: 500 };
    let mut follower = Follower::join_with(&*log, Group::Everyone, TOPIC, Start::Oldest, limits).await;
    let mut before = 0;
    while follower.payloads(0).last().is_none_or(|last| last != "end") {
        follower.step().await;
        let now = follower.payloads(0).len();
        assert!(now - before <= 2);
        before = now;
    }
    assert_eq!(before, 7);
}

/// A paused partition gives nothing and stays assigned; resumed, it goes on where it stood.
pub async fn pause_and_resume(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    follower.until_held(4).await;
    append(&*log, at(0), &["a"]).await;
    follower.read_to(0, "a").await;
    follower.subscription.pause(0);
    append(&*log, at(0), &["b"]).await;
    append(&*log, at(1), &["other"]).await;
    follower.read_to(1, "other").await;
    assert!(follower.subscription.next().now_or_never().is_none(), "the paused one gives nothing");
    assert_eq!(follower.payloads(0), ["a"]);
    follower.subscription.resume(0);
    assert_eq!(follower.read_to(0, "b").await, ["a", "b"]);
}

/// Key, payload and headers come back as they were given, empty ones too, and the engine's time rises.
pub async fn everything_returns_as_it_was(harness: &dyn Harness) {
    let log = harness.fresh().await.log();
    let headers = vec![("traceparent", Bytes::from_static(b"00-ab-cd-01")), ("void", Bytes::new())];
    let full = NewRecord { headers, ..record("key", &b"\0\xffFJL\x03"[..]) };
    append_batch(&*log, at(3), vec![full.clone(), record("", ""), record("end", "end")]).await.expect("it is appended");
    let mut follower = Follower::join(&*log, Group::Everyone, TOPIC, Start::Oldest).await;
    follower.read_to(3, "end").await;
    let read = &follower.read[&3];
    assert_eq!((&read[0].key, &read[0].payload), (&full.key, &full.payload));
    let headers: Vec<_> = full.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    assert_eq!(read[0].headers, headers);
    assert!(read[1].key.is_empty() && read[1].payload.is_empty() && read[1].headers.is_empty());
    assert!(read.is_sorted_by_key(|record| record.appended_at));
}
