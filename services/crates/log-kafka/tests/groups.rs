//! Sharing between processes: what moves, what stays, who is missed.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::Instant;
use wardline_log::{Event, EventLog, FetchLimits, Group, Start, Subscription, Topic};
use wardline_log_kafka::{Options, open};

use self::support::{PATIENCE, Topics, append, at, brokers, insist, within};

const GROUP: Group = Group::Named("members");

/// A member that starts what it is assigned and remembers all that it was told.
struct Member {
    subscription: Box<dyn Subscription>,
    held: BTreeSet<u32>,
    moves: Vec<(bool, u32)>,
    read: BTreeMap<u32, Vec<String>>,
}

impl Member {
    async fn join(log: &dyn EventLog) -> Self {
        let subscription = log.subscribe(GROUP, Topic::Conversations, FetchLimits::default()).await.unwrap();
        Self { subscription, held: BTreeSet::new(), moves: Vec::new(), read: BTreeMap::new() }
    }

    async fn step(&mut self) {
        match within(self.subscription.next()).await.unwrap() {
            Event::Assigned(index) => {
                assert!(self.held.insert(index), "it is not held twice");
                self.moves.push((true, index));
                // It may be gone again by then, which is told next.
                let _ = self.subscription.start(index, Start::Oldest).await;
            }
            Event::Revoked(index) => {
                assert!(self.held.remove(&index), "what is taken away was held");
                self.moves.push((false, index));
            }
            Event::Records { partition, records } => {
                assert!(self.held.contains(&partition), "records come only of what is held");
                let payloads = records.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned());
                self.read.entry(partition).or_default().extend(payloads);
            }
        }
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.step().await;
        }
    }

    async fn until_held(&mut self, count: usize) {
        self.until(|member| member.held.len() == count).await;
    }
}

/// Of the members of two processes, only what must move moves, and what stays goes on where it stood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_must_move_moves() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let (first, second) = (topics.open().await, topics.open().await);
    for index in 0..4 {
        insist(&*first, at(index), "before").await;
    }
    let mut one = Member::join(&*first).await;
    one.until(|one| one.held.len() == 4 && one.read.len() == 4).await;
    let mut two = Member::join(&*second).await;
    let (_, ()) = futures::join!(two.until_held(2), one.until_held(2));
    assert_eq!(one.moves.iter().filter(|(assigned, _)| !assigned).count(), 2, "what stays is not taken away");
    assert_eq!(one.moves.iter().filter(|(assigned, _)| *assigned).count(), 4, "nor given again");
    assert!(one.held.is_disjoint(&two.held));
    for index in 0..4 {
        insist(&*second, at(index), "after").await;
    }
    for member in [&mut one, &mut two] {
        let held = member.held.clone();
        let both = ["before", "after"].map(str::to_owned);
        member.until(|member| held.iter().all(|index| member.read.get(index).is_some_and(|read| *read == both))).await;
    }
}

/// A member that goes has left when the log is closed, so nobody waits for its session to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_goes_has_left_when_the_log_is_closed() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers.clone()).await;
    let log = topics.open().await;
    let mut member = Member::join(&*log).await;
    member.until_held(4).await;
    let watcher: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers.join(",")).create().unwrap();
    let group = format!("{}.members", topics.options.prefix);
    let members = || {
        let groups = watcher.fetch_group_list(Some(&group), PATIENCE).unwrap();
        groups.groups().iter().map(|group| group.members().len()).sum::<usize>()
    };
    assert_eq!(members(), 1);
    drop(member);
    within(log.close(Instant::now() + PATIENCE)).await.unwrap();
    assert_eq!(members(), 0);
}

/// Places reach the group's offsets, for whoever watches the lag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_committed() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers.clone()).await;
    let log = topics.open().await;
    let mut member = Member::join(&*log).await;
    member.until_held(4).await;
    for payload in ["a", "b", "c"] {
        insist(&*log, at(2), payload).await;
    }
    let last = within(append(&*log, at(2), "d")).await.unwrap()[0];
    member.subscription.ack(2, last);
    let group = format!("{}.members", topics.options.prefix);
    let watcher: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers.join(",")).set("group.id", group).create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topics.name(Topic::Conversations), 2);
    let expected = Offset::Offset(i64::try_from(last.offset()).unwrap() + 1);
    within(async {
        while watcher.committed_offsets(asked.clone(), PATIENCE).unwrap().elements()[0].offset() != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A process that stands still loses its partitions to the others, learns of it when it goes on, and gets its share again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stands_still_is_missed() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers.clone()).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture"])
        .env(PREFIX, &topics.options.prefix)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = async |what: &str| {
        within(async { while !lines.next_line().await.unwrap().expect("the other process runs").ends_with(what) {} })
            .await;
    };
    told("holds 4").await;
    let log = topics.open().await;
    let mut member = Member::join(&*log).await;
    futures::join!(told("holds 2"), member.until_held(2));
    let kept = member.held.clone();

    let pid = child.id().unwrap().to_string();
    let signal = async |name: &str| {
        assert!(tokio::process::Command::new("kill").args([name, &pid]).status().await.unwrap().success());
    };
    signal("-STOP").await;
    member.until_held(4).await;
    assert!(!member.moves.iter().any(|(assigned, index)| !assigned && kept.contains(index)), "what it held stayed");

    signal("-CONT").await;
    futures::join!(
        async {
            told("holds 0").await;
            told("holds 2").await;
        },
        member.until_held(2)
    );
    child.start_kill().unwrap();
}

const PREFIX: &str = "WARDLINE_TEST_KAFKA_MEMBER_OF";

/// Not a test by itself: what the other process runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_process() {
    let (Some(brokers), Ok(prefix)) = (brokers(), std::env::var(PREFIX)) else { return };
    let log = open(Options { prefix, ..Topics::options(brokers) }).await.unwrap();
    let mut member = Member::join(&*log).await;
    loop {
        member.step().await;
        println!("holds {}", member.held.len());
    }
}
