//! What is not as it must be is refused, with what to do.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::{Offset, TopicPartitionList};
use wardline_domain::failure::CauseKind;
use wardline_domain::partition::PartitionCount;
use wardline_domain::{Failure, Position};
use wardline_log::{Event, EventLog, FetchLimits, Group, Start, Subscription, Topic};
use wardline_log_kafka::{Options, migrate, open};

use self::support::proxy::Proxy;
use self::support::{Topics, append, at, brokers, insist, within};

fn refusal<T>(result: Result<T, Failure>) -> String {
    match result {
        Err(Failure::NotApplied(cause)) => {
            assert_eq!(cause.kind, CauseKind::Corrupt, "{cause}");
            cause.detail
        }
        Err(failure) => panic!("{failure}"),
        Ok(_) => panic!("it was taken"),
    }
}

/// A subscription to everything that holds its partitions.
async fn follow(log: &dyn EventLog) -> Box<dyn Subscription> {
    let mut subscription = log.subscribe(Group::Everyone, Topic::Conversations, FetchLimits::default()).await.unwrap();
    for _ in 0..4 {
        assert!(matches!(within(subscription.next()).await.unwrap(), Event::Assigned(_)));
    }
    subscription
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migration_may_be_repeated_and_run_by_two() {
    let Some(brokers) = brokers() else { return };
    let topics = Arc::new(Topics { options: Topics::options(brokers) });
    let missing = refusal(open(topics.options.clone()).await);
    assert!(missing.contains("does not exist") && missing.contains("wardline migrate"), "{missing}");
    let (one, two) = within(futures::future::join(migrate(&topics.options), migrate(&topics.options))).await;
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.created.len() + two.created.len(), 6, "each topic is created once");
    let again = within(migrate(&topics.options)).await.unwrap();
    assert_eq!((again.created.len(), again.verified.len()), (0, 6));
    within(open(topics.options.clone())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_counts_and_settings_are_refused() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let others = Options { feeds: PartitionCount::new(8).unwrap(), replication: 2, ..topics.options.clone() };
    for refused in [refusal(within(open(others.clone())).await), refusal(within(migrate(&others)).await)] {
        assert!(refused.contains("feeds.v1: it has 4 partitions and is configured with 8"), "{refused}");
        assert!(refused.contains("1 replicas and must have 2"), "{refused}");
    }
    let name = topics.name(Topic::Receipts);
    let altered = AlterConfig::new(ResourceSpecifier::Topic(&name)).set("retention.ms", "1000");
    topics.admin().alter_configs([&altered], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let mut refused = String::new();
    within(async {
        while !refused.contains("message.timestamp.type") {
            refused = open(topics.options.clone()).await.err().map(|failure| failure.to_string()).unwrap_or_default();
        }
    })
    .await;
    assert!(
        refused.contains("receipts.v1: message.timestamp.type is CreateTime and must be LogAppendTime"),
        "{refused}"
    );
    assert!(refused.contains("retention.ms is 1000 and must be at least 604800000"), "{refused}");
    assert!(!refused.contains("feeds.v1"), "what is right is not named: {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_created_anew_is_refused() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let name = topics.name(Topic::Conversations);
    let log = topics.open().await;
    insist(&*log, at(0), "a").await;
    let last = insist(&*log, at(0), "b").await;
    let mut before = follow(&*log).await;
    before.start(0, Start::Newest).await.unwrap();
    topics.admin().delete_topics(&[&name], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    // A deletion is acknowledged before the brokers show it, and meanwhile a migration finds nothing missing.
    within(async { while open(topics.options.clone()).await.is_ok() {} }).await;
    within(async { while migrate(&topics.options).await.is_err() {} }).await;
    // Whoever was reading does not go on as if nothing had happened.
    let refused = within(async {
        loop {
            match before.next().await {
                Err(Failure::NotApplied(cause)) if cause.kind == CauseKind::Corrupt => return cause.detail,
                Err(Failure::NotApplied(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert!(refused.contains("does not hold partition 0's next record any more"), "{refused}");

    let anew = topics.open().await;
    let mut subscription = follow(&*anew).await;
    let refused = refusal(within(subscription.start(0, Start::At(last))).await);
    assert!(refused.contains("lies beyond") && refused.contains("raise the topic's incarnation"), "{refused}");
    let later = Position::new(2, 0).unwrap();
    let refused = refusal(within(subscription.start(0, Start::At(later))).await);
    assert!(refused.contains("incarnation 2") && refused.contains("configured with 1"), "{refused}");

    // With the next incarnation, what was before lies below all that is there.
    let raised = topics.open_with(|options, _| options.incarnations.conversations = 2).await;
    let first = insist(&*raised, at(0), "c").await;
    assert!(first > last);
    let mut subscription = follow(&*raised).await;
    let started = within(subscription.start(0, Start::At(last))).await.unwrap();
    assert_eq!(started.oldest, Some(first));
    let Event::Records { records, .. } = within(subscription.next()).await.unwrap() else { panic!("records come") };
    assert_eq!(records[0].position, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_below_what_is_kept_begins_at_the_oldest_kept() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let log = topics.open().await;
    let first = insist(&*log, at(0), "a").await;
    insist(&*log, at(0), "b").await;
    let kept = within(append(&*log, at(0), "c")).await.unwrap()[0];
    let mut through = TopicPartitionList::new();
    let offset = Offset::Offset(i64::try_from(kept.offset()).unwrap());
    through.add_partition_offset(&topics.name(Topic::Conversations), 0, offset).unwrap();
    topics.admin().delete_records(&through, &AdminOptions::new()).await.unwrap();
    let mut subscription = follow(&*log).await;
    let started = within(subscription.start(0, Start::At(first))).await.unwrap();
    assert_eq!(started.oldest, Some(kept));
    let Event::Records { records, .. } = within(subscription.next()).await.unwrap() else { panic!("records come") };
    assert_eq!(records[0].position, kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_away_are_told_of_and_come_back() {
    let Some(brokers) = brokers() else { return };
    let proxy = Proxy::before(&brokers).await;
    let topics = Topics::create(brokers).await;
    let proxied = proxy.addresses();
    let log = topics.open_with(|options, _| options.brokers = proxied).await;
    let mut subscription = follow(&*log).await;
    subscription.start(0, Start::Oldest).await.unwrap();
    proxy.refuse();
    match within(subscription.next()).await {
        Err(Failure::NotApplied(cause)) => assert_eq!(cause.kind, CauseKind::Unavailable),
        other => panic!("{other:?}"),
    }
    let appended = append(&*log, at(0), "a");
    proxy.heal();
    within(appended).await.unwrap();
    let records = within(async {
        loop {
            // A failure of before may still be told.
            if let Ok(Event::Records { records, .. }) = subscription.next().await {
                return records;
            }
        }
    })
    .await;
    assert_eq!(&records[0].payload[..], b"a");
}
