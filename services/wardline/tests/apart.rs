//! Several instances of every role: devices anywhere, owners that come and go, and nothing lost between them.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Member, agreed, agreed_with_receipts, conversation, eventually, member};
use wardline_client::{ContentId, ConversationId};
use wardline_log::Topic;
use wardline_testbed::cluster::Cluster;
use wardline_testbed::people::PATIENCE;

/// Which link address owns each feeds partition, by the registry; `None` while some have no owner.
async fn owners(cluster: &Cluster) -> Option<BTreeMap<u32, String>> {
    let partitions = cluster.over().log.partitions(Topic::Feeds).get();
    let mut owners = BTreeMap::new();
    for partition in 0..partitions {
        let owner = cluster.over().registry.owner(partition).await.unwrap()?;
        owners.insert(partition, owner.address);
    }
    Some(owners)
}

/// Waits until that many instances own partitions.
async fn shared_by(cluster: &Cluster, instances: usize) -> BTreeMap<u32, String> {
    eventually("every instance to own something", async || {
        let owners = owners(cluster).await?;
        (owners.values().collect::<BTreeSet<_>>().len() == instances).then_some(owners)
    })
    .await
}

/// People at the instances in turn.
async fn spread(cluster: &Cluster, names: &[&str]) -> Vec<Member> {
    let at = [cluster.people(0, 0), cluster.people(0, 1)];
    let made = names.iter().enumerate().map(|(index, name)| member(&at[index % 2], name));
    futures::future::join_all(made).await
}

/// How many of the members are attached to an instance that does not own their feed.
async fn away_from_their_owner(cluster: &Cluster, all: &[Member]) -> usize {
    let owners = shared_by(cluster, 2).await;
    let partitions = cluster.over().log.partitions(Topic::Feeds);
    let elsewhere = |(index, member): &(usize, &Member)| {
        owners[&partitions.partition_of(member.user().as_bytes())] != cluster.link(index % 2)
    };
    all.iter().enumerate().filter(elsewhere).count()
}

/// Keeps speaking until told to stop; everything said.
async fn speak(id: ConversationId, member: &Member, stop: &AtomicBool) -> Vec<ContentId> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let content = member.say(id, &format!("{}", sent.len()));
        sent.push(content);
        member.device.wait_sequenced(id, content, PATIENCE).await.expect("it gets its place");
    }
    sent
}

/// Waits until a device has that many messages more than now.
async fn hears_more(id: ConversationId, member: &Member, more: usize) {
    let count =
        |history: &[wardline_client::HistoryEntry]| history.iter().filter(|entry| entry.content().is_some()).count();
    let until = count(&member.device.history(id).unwrap()) + more;
    let heard = member
        .device
        .wait_for("more messages", PATIENCE, |view| Ok((count(&view.history(id)?) >= until).then_some(())));
    heard.await.expect("messages flow on");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_attached_away_from_their_users_owner_get_everything() {
    let cluster = Cluster::start(2).await.unwrap();
    shared_by(&cluster, 2).await;
    let mut team = spread(&cluster, &["ann", "bob", "cid", "dan", "eve", "fay"]).await;
    while away_from_their_owner(&cluster, &team).await == 0 {
        // By chance everybody came to the right door.
        let index = team.len() % 2;
        team.push(member(&cluster.people(0, index), "gus").await);
    }
    let all: Vec<&Member> = team.iter().collect();
    let id = conversation(&all).await;
    let mut sent = Vec::new();
    for round in 0..4 {
        sent.extend(all.iter().map(|member| member.say(id, &format!("round {round}"))));
    }
    agreed_with_receipts(id, &all, &sent).await;
    cluster.stop().await;
}

/// What happens to the second instance while messages flow.
enum Goes {
    Down,
    Drained,
}

async fn one_goes(how: Goes) {
    let mut cluster = Cluster::start(2).await.unwrap();
    shared_by(&cluster, 2).await;
    let mut team = spread(&cluster, &["ann", "bob", "cid", "dan"]).await;
    let all: Vec<&Member> = team.iter().collect();
    let id = conversation(&all).await;
    let stop = Arc::new(AtomicBool::new(false));
    let going = async {
        hears_more(id, &team[0], 5).await;
        match how {
            Goes::Down => cluster.remove_node(1).await,
            Goes::Drained => cluster.drain_node(1).await,
        }
        // Those at the other instance see nothing but a pause.
        hears_more(id, &team[0], 5).await;
        hears_more(id, &team[2], 5).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (one, two, ()) = tokio::join!(speak(id, &team[0], &stop), speak(id, &team[2], &stop), going);
    let mut sent: Vec<ContentId> = one.into_iter().chain(two).collect();
    agreed(id, &[&team[0], &team[2]], &sent).await;

    // Those whose edge went come back at the other one.
    let people = cluster.people(0, 0);
    for index in [3, 1] {
        let member = team.remove(index).reopened(&people).await;
        team.insert(index, member);
    }
    let all: Vec<&Member> = team.iter().collect();
    sent.push(team[1].say(id, "back again"));
    agreed_with_receipts(id, &all, &sent).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_goes_down_is_a_pause_for_those_at_the_other_instance() {
    one_goes(Goes::Down).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_drained_is_a_pause_for_those_at_the_other_instance() {
    one_goes(Goes::Drained).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_instance_takes_its_share_while_messages_flow() {
    let mut cluster = Cluster::start(2).await.unwrap();
    shared_by(&cluster, 2).await;
    let mut team = spread(&cluster, &["ann", "bob", "cid", "dan"]).await;
    let all: Vec<&Member> = team.iter().collect();
    let id = conversation(&all).await;
    let stop = Arc::new(AtomicBool::new(false));
    let growing = async {
        hears_more(id, &team[0], 5).await;
        cluster.add_node().await.unwrap();
        shared_by(&cluster, 3).await;
        for member in &team {
            hears_more(id, member, 5).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (one, two, ()) = tokio::join!(speak(id, &team[0], &stop), speak(id, &team[1], &stop), growing);
    let mut sent: Vec<ContentId> = one.into_iter().chain(two).collect();
    let newcomer = member(&cluster.people(0, 2), "eve").await;
    team[0].device.add_users(id, &[newcomer.user()]).await.unwrap();
    newcomer.is_active(id).await;
    let late = newcomer.say(id, "hello");
    sent.push(late);
    agreed(id, &team.iter().collect::<Vec<_>>(), &sent).await;
    agreed(id, &[&newcomer], &[late]).await;
    team.push(newcomer);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_that_change_again_and_again_lose_nothing() {
    let mut cluster = Cluster::start(2).await.unwrap();
    shared_by(&cluster, 2).await;
    let at = cluster.people(0, 0);
    let (ann, bob) = (member(&at, "ann").await, member(&at, "bob").await);
    let id = conversation(&[&ann, &bob]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let changing = async {
        let mut other = 1;
        for round in 0..3 {
            hears_more(id, &bob, 3).await;
            if round % 2 == 0 {
                cluster.remove_node(other).await
            } else {
                cluster.drain_node(other).await
            }
            hears_more(id, &bob, 3).await;
            other = cluster.add_node().await.unwrap();
            shared_by(&cluster, 2).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (one, two, ()) = tokio::join!(speak(id, &ann, &stop), speak(id, &bob, &stop), changing);
    let sent: Vec<ContentId> = one.into_iter().chain(two).collect();
    agreed_with_receipts(id, &[&ann, &bob], &sent).await;
    cluster.stop().await;
}
