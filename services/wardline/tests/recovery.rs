//! Devices that die, stay away too long, lose their groups or are new: each ends with everything that is its own.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use support::{ByHand, Member, agreed, another, conversation, eventually, members, times, unmetered, ward};
use wardline_client::{
    ContentId, ConversationId, ConversationStatus, Error, Failpoints, MessageState, NewConversation, Point,
};
use wardline_domain::{Position, UserId};
use wardline_testbed::cluster::Cluster;
use wardline_testbed::people::{PATIENCE, People};

/// No exchange here has as many chances to die at one point.
const CHANCES: u32 = 64;

/// Dies at a point when it is reached for the time after `survived` times.
fn dies(at: Point, survived: u32) -> Failpoints {
    let reached = Arc::new(AtomicU32::new(0));
    Failpoints::new(move |point| point == at && reached.fetch_add(1, Ordering::Relaxed) == survived)
}

/// Lets a device die at each chance that the exchange gives at `point`, one after the other, and reopens it each time.
async fn survives(point: Point) {
    let (cluster, people, [ann, mut bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let mut sent = Vec::new();
    for survived in 0..CHANCES {
        bob = bob.reopened_with(&people, dies(point, survived)).await;
        bob.device.attach();
        let mut whole = exchange(id, &ann, &bob, &mut sent, survived).await;
        if survived == 0 {
            // The first chance always comes, an acknowledgement's after everything is there.
            tokio::time::timeout(PATIENCE, bob.device.stopped()).await.expect("the device dies");
            whole = false;
        }
        bob = bob.reopened(&people).await;
        settle_doubt(id, &ann, &bob, point, &format!("bob {survived}"), &mut sent).await;
        agreed(id, &[&ann, &bob], &sent).await;
        if whole {
            cluster.stop().await;
            return;
        }
    }
    panic!("the device dies for ever");
}

/// Both say something; answers whether the second device lived to see it all.
async fn exchange(id: ConversationId, ann: &Member, bob: &Member, sent: &mut Vec<ContentId>, round: u32) -> bool {
    let (question, answer) = (format!("ann {round}"), format!("bob {round}"));
    sent.push(ann.say(id, &question));
    let own = match bob.device.send_text(id, &answer) {
        Ok(own) => own,
        Err(Error::Stopped) => return false,
        Err(error) => panic!("what is said is saved, or the device has died: {error}"),
    };
    sent.push(own);
    let heard = bob.device.wait_for_text(id, &question, PATIENCE).await;
    let placed = bob.device.wait_sequenced(id, own, PATIENCE).await;
    match (heard, placed) {
        (Ok(_), Ok(_)) => true,
        (Err(Error::Stopped), _) | (_, Err(Error::Stopped)) => false,
        (heard, placed) => panic!("neither dead nor whole: {:?} {:?}", heard.err(), placed.err()),
    }
}

/// What was said while dying is there once or not at all, and not at all when it died before the commit.
async fn settle_doubt(
    id: ConversationId,
    ann: &Member,
    bob: &Member,
    point: Point,
    text: &str,
    sent: &mut Vec<ContentId>,
) {
    let done = bob.device.wait_for("an empty outbox", PATIENCE, |view| Ok((view.unsequenced()? == 0).then_some(())));
    done.await.unwrap();
    let found = bob.device.history(id).unwrap().into_iter().find(|entry| entry.text() == Some(text));
    let content = found.as_ref().and_then(|entry| entry.content()).map(|(content, _)| content);
    if let Some(content) = content.filter(|content| !sent.contains(content)) {
        assert_eq!(point, Point::AfterCommit, "said without being saved");
        ann.reads(id, text).await;
        sent.push(content);
    }
    assert!(times(&bob.device, id, text) <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_before_any_commit_to_its_file_ends_whole() {
    survives(Point::BeforeCommit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_after_any_commit_to_its_file_ends_whole() {
    survives(Point::AfterCommit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_before_a_call_ends_whole() {
    survives(Point::BeforeSend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_after_a_call_ends_whole() {
    survives(Point::AfterSend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_before_an_acknowledgement_ends_whole() {
    survives(Point::BeforeAcknowledge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_after_an_acknowledgement_ends_whole() {
    survives(Point::AfterAcknowledge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_at_any_commit_while_it_joins_ends_in_the_conversation() {
    let cluster = unmetered().await;
    let people = cluster.people(0, 0);
    let [ann, mut bob] = members(&people, ["ann", "bob"]).await;
    for point in [Point::BeforeCommit, Point::AfterCommit] {
        for survived in 0..CHANCES {
            bob = bob.reopened_with(&people, dies(point, survived)).await;
            bob.device.attach();
            let new = NewConversation::group("Ward 7", [bob.user()]);
            let id = ann.device.create_conversation(new).await.unwrap();
            let joined = bob.device.wait_active(id, PATIENCE).await;
            bob = bob.reopened(&people).await;
            bob.is_active(id).await;
            let sent = [ann.say(id, "welcome"), bob.say(id, "thank you")];
            agreed(id, &[&ann, &bob], &sent).await;
            if joined.is_ok() {
                break;
            }
            assert!(survived + 1 < CHANCES, "the device dies for ever");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_around_the_call_while_it_adds_somebody_ends_in_one_group_with_the_others() {
    let (cluster, people, [ann, mut bob, cid]) = ward(["ann", "bob", "cid"]).await;
    for point in [Point::BeforeSend, Point::AfterSend] {
        let id = conversation(&[&ann, &bob]).await;
        bob = bob.reopened_with(&people, dies(point, 0)).await;
        bob.device.attach();
        let died = bob.device.add_users(id, &[cid.user()]).await;
        assert!(matches!(died, Err(Error::Stopped)), "alive: {died:?}");
        bob = bob.reopened(&people).await;
        // The commit was saved before it was sent, so it is sent, or sent again.
        cid.is_active(id).await;
        let sent = [ann.say(id, "one"), bob.say(id, "two"), cid.say(id, "three")];
        for member in [&ann, &bob, &cid] {
            member.sees_leaves(id, &[&ann, &bob, &cid]).await;
        }
        agreed(id, &[&ann, &bob], &sent).await;
    }
    cluster.stop().await;
}

/// Waits until the user's feed has `more` rows than it had.
async fn feed_grows(cluster: &Cluster, user: UserId, before: usize, more: u64) {
    let least = before + usize::try_from(more).unwrap();
    eventually("the feed's rows", async || (feed_rows(cluster, user).await >= least).then_some(())).await;
}

async fn feed_rows(cluster: &Cluster, user: UserId) -> usize {
    let feeds = &cluster.over().stores.feeds;
    feeds.rows(user, None, Position::from_u64(u64::MAX), 10_000).await.unwrap().len()
}

/// As if a month had gone by.
async fn expire_feeds(cluster: &Cluster, users: &[UserId]) {
    let later = cluster.over().clock.now().plus(std::time::Duration::from_secs(3600));
    eventually("the rows to go", async || {
        cluster.over().stores.feeds.expire(later).await.unwrap();
        let mut left = 0;
        for user in users {
            left += feed_rows(cluster, *user).await;
        }
        (left == 0).then_some(())
    })
    .await;
}

/// A cluster whose presence keeps almost nothing in memory, so that what the store has dropped is gone.
async fn forgetful() -> Cluster {
    Cluster::start_with(1, |options| options.presence_limits.ring_events = 1).await.unwrap()
}

fn last(member: &Member, id: ConversationId) -> u64 {
    member.device.history(id).unwrap().last().map_or(0, |entry| entry.sequence)
}

/// Waits until the sender knows that everybody has a message.
async fn delivered(member: &Member, id: ConversationId, content: ContentId) {
    let got = member.device.wait_for("a receipt", PATIENCE, |view| {
        let state = view.message_state(id, content)?;
        Ok(state.filter(|state| matches!(state, MessageState::Delivered(_) | MessageState::Read(_))))
    });
    got.await.expect("the message is delivered to everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_away_past_the_end_of_its_feed_comes_back_whole_and_claims_nothing_it_skipped() {
    let cluster = forgetful().await;
    let people = cluster.people(0, 0);
    let [ann, bob, cid, dan] = members(&people, ["ann", "bob", "cid", "dan"]).await;
    let id = conversation(&[&ann, &bob, &cid]).await;
    let mut sent = vec![ann.say(id, "before")];
    delivered(&ann, id, sent[0]).await;
    bob.reads(id, "before").await;
    let (had, rows) = (last(&bob, id), feed_rows(&cluster, bob.user()).await);
    bob.device.detach();

    let missed = ann.say(id, "missed");
    sent.push(missed);
    ann.device.wait_sequenced(id, missed, PATIENCE).await.unwrap();
    ann.device.add_users(id, &[dan.user()]).await.unwrap();
    dan.is_active(id).await;
    sent.push(dan.say(id, "from one who is new"));
    ann.reads(id, "from one who is new").await;
    ann.device.remove_users(id, &[cid.user()]).await.unwrap();
    sent.push(ann.say(id, "missed, too"));
    ann.device.wait_sequenced(id, sent[3], PATIENCE).await.unwrap();
    let end = last(&ann, id);
    feed_grows(&cluster, bob.user(), rows, end - had).await;
    expire_feeds(&cluster, &[bob.user()]).await;

    bob.device.attach();
    agreed(id, &[&ann, &bob], &sent).await;
    bob.sees_leaves(id, &[&ann, &bob, &dan]).await;
    let after = ann.say(id, "after");
    sent.push(after);
    agreed(id, &[&ann, &bob], &sent).await;
    delivered(&ann, id, after).await;

    let hand = ByHand::of(&ann.device, people.endpoints()).await;
    let marks = hand.receipts(id).await;
    let mark = marks.iter().find(|mark| mark.device_id == bob.id().to_string()).expect("a watermark");
    for sequence in had + 1..=end {
        let skipped = mark.skipped.iter().any(|range| (range.first..=range.last).contains(&sequence));
        assert!(skipped, "{sequence} was passed over, and is reported as delivered: {mark:?}");
    }
    let state = ann.device.message_state(id, missed).unwrap();
    assert!(matches!(state, Some(MessageState::Sequenced(_))), "skipped by one, and shown as {state:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_missed_its_welcome_joins_by_itself_and_reads_on() {
    let cluster = forgetful().await;
    let people = cluster.people(0, 0);
    let [ann, bob] = members(&people, ["ann", "bob"]).await;
    let other = conversation(&[&ann, &bob]).await;
    let known = [ann.say(other, "known")];
    agreed(other, &[&ann, &bob], &known).await;
    let rows = feed_rows(&cluster, bob.user()).await;
    bob.device.detach();
    let new = NewConversation::group("Ward 8", [bob.user()]);
    let id = ann.device.create_conversation(new).await.unwrap();
    ann.say(id, "before");
    feed_grows(&cluster, bob.user(), rows, 2).await;
    expire_feeds(&cluster, &[bob.user()]).await;

    bob.device.attach();
    bob.is_active(id).await;
    assert_eq!(times(&bob.device, id, "before"), 0, "there was nothing to read it with");
    ann.sees_leaves(id, &[&ann, &bob]).await;
    let sent = [ann.say(id, "after"), bob.say(id, "here I am")];
    agreed(id, &[&bob], &sent).await;
    ann.reads(id, "here I am").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_its_group_rejoins_by_an_external_commit_and_reads_on() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let tablet = another(&people, &bob).await;
    let all = [&ann, &bob, &tablet];
    let id = conversation(&all).await;
    let mut sent = vec![ann.say(id, "before"), bob.say(id, "before, too")];
    agreed(id, &all, &sent).await;
    for round in 0..3 {
        bob.device.rejoin(id).await.unwrap();
        let view = bob.device.conversations().unwrap().into_iter().find(|view| view.id == id).unwrap();
        assert_eq!(view.status, ConversationStatus::Active);
        sent.push(ann.say(id, &format!("after {round}")));
        sent.push(bob.say(id, &format!("here again {round}")));
        agreed(id, &all, &sent).await;
    }
    for member in all {
        member.sees_leaves(id, &all).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_starts_at_its_welcome() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let mut sent = vec![ann.say(id, "before")];
    agreed(id, &[&ann, &bob], &sent).await;
    let tablet = another(&people, &bob).await;
    bob.device.sync_own_devices(id).await.unwrap();
    tablet.is_active(id).await;
    let since = [ann.say(id, "after"), bob.say(id, "after, too"), tablet.say(id, "from the tablet")];
    sent.extend(since);
    agreed(id, &[&tablet], &since).await;
    agreed(id, &[&ann, &bob], &sent).await;
    assert_eq!(times(&tablet.device, id, "before"), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_comes_back_after_the_only_instance_was_away() {
    let (mut cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let mut sent = vec![ann.say(id, "before")];
    agreed(id, &[&ann, &bob], &sent).await;
    cluster.remove_node(0).await;
    sent.extend([ann.say(id, "into the void"), bob.say(id, "into the void, too")]);
    let index = cluster.add_node().await.unwrap();
    let people: People = people.at(cluster.endpoints(index));
    let (ann, bob) = (ann.reopened(&people).await, bob.reopened(&people).await);
    agreed(id, &[&ann, &bob], &sent).await;
    cluster.stop().await;
}
