//! Changes of the members: one winner an epoch, everybody's change in the end, and content between them shown once.

#![allow(clippy::unwrap_used)]

mod support;

use support::{ByHand, Member, agreed, another, conversation, eventually, members, times, unmetered, ward};
use tokio::sync::broadcast::Receiver;
use wardline_client::{ContentId, ConversationId, ConversationStatus, Incoming, NewConversation, Reason};
use wardline_proto::v1;
use wardline_testbed::people::PATIENCE;

/// Whether a commit of this device has lost against another.
fn conflicts(told: &mut Receiver<Incoming>) -> usize {
    let mut lost = 0;
    while let Ok(told) = told.try_recv() {
        lost += usize::from(matches!(told, Incoming::CommitLost { reason: Reason::EpochConflict, .. }));
    }
    lost
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_commits_at_once_one_wins_and_both_changes_are_made() {
    let cluster = unmetered().await;
    let people = cluster.people(0, 0);
    let [ann, bob, cid, dan] = members(&people, ["ann", "bob", "cid", "dan"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let mut told = [ann.device.incoming(), bob.device.incoming()];
    let mut sent = Vec::new();
    let mut lost = 0;
    let (cids, dans) = ([cid.user()], [dan.user()]);
    for round in 0..12 {
        let (one, two) = tokio::join!(ann.device.add_users(id, &cids), bob.device.add_users(id, &dans));
        one.and(two).expect("both are added");
        let four = [&ann, &bob, &cid, &dan];
        for member in four {
            member.sees_leaves(id, &four).await;
        }
        sent.push(ann.say(id, &format!("round {round}")));
        sent.push(bob.say(id, &format!("round {round}, too")));
        agreed(id, &[&ann, &bob], &sent).await;
        lost += told.iter_mut().map(conflicts).sum::<usize>();
        if lost > 0 {
            break;
        }
        ann.device.remove_users(id, &[cid.user(), dan.user()]).await.unwrap();
        bob.sees_leaves(id, &[&ann, &bob]).await;
    }
    assert!(lost > 0, "the commits never met");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_sealed_before_a_commit_is_sealed_again_and_shown_once() {
    let (cluster, people, [ann, bob, cid]) = ward(["ann", "bob", "cid"]).await;
    let id = conversation(&[&ann, &bob]).await;
    bob.device.detach();
    ann.device.add_users(id, &[cid.user()]).await.unwrap();
    cid.is_active(id).await;
    // The device does not know of the commit yet: what it seals is for an epoch that is over.
    let sent = [bob.say(id, "sealed for the old epoch"), bob.say(id, "and another")];
    let epoch = ann.device.view(|view| Ok(view.conversation(id)?.and_then(|view| view.epoch))).unwrap();
    let hand = ByHand::of(&bob.device, people.endpoints()).await;
    eventually("the server to have the new epoch", async || {
        let request = v1::GetConversationRequest { conversation_id: id.to_string() };
        let answer = hand.ingest().get_conversation(hand.request(request)).await.unwrap().into_inner();
        (Some(answer.conversation?.epoch) == epoch).then_some(())
    })
    .await;
    assert_eq!(times(&ann.device, id, "sealed for the old epoch"), 0, "content of another epoch was sequenced");
    bob.device.attach();
    agreed(id, &[&ann, &bob], &sent).await;
    agreed(id, &[&cid], &sent).await;
    let shown = ann.device.history(id).unwrap();
    let contents: Vec<ContentId> = shown.iter().filter_map(|entry| entry.content()).map(|(id, _)| id).collect();
    assert_eq!(contents, sent, "under the ids they were given, in order");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_speak_while_members_come_and_go() {
    let (cluster, people, [ann, bob, cid, dan]) = ward(["ann", "bob", "cid", "dan"]).await;
    let tablet = another(&people, &bob).await;
    let stay = [&ann, &bob, &tablet, &cid];
    let id = conversation(&stay).await;
    let changes = async {
        for _ in 0..4 {
            ann.device.add_users(id, &[dan.user()]).await.unwrap();
            // Who is not there yet, as far as a device knows, it cannot remove.
            cid.sees_leaves(id, &[&ann, &bob, &tablet, &cid, &dan]).await;
            cid.device.remove_users(id, &[dan.user()]).await.unwrap();
            ann.sees_leaves(id, &stay).await;
        }
    };
    let speeches = futures::future::join_all(stay.iter().map(|member| speak(id, member, 15)));
    let (sent, ()) = tokio::join!(speeches, changes);
    let sent: Vec<ContentId> = sent.into_iter().flatten().collect();
    agreed(id, &stay, &sent).await;
    for member in stay {
        member.sees_leaves(id, &stay).await;
    }
    cluster.stop().await;
}

/// One message after the other, each when the one before has its place.
async fn speak(id: ConversationId, member: &Member, count: usize) -> Vec<ContentId> {
    let mut sent = Vec::new();
    for number in 0..count {
        let content = member.say(id, &format!("{number}"));
        member.device.wait_sequenced(id, content, PATIENCE).await.expect("it gets its place");
        sent.push(content);
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_are_removed_read_nothing_more_and_may_come_back() {
    let (cluster, people, [ann, bob, cid]) = ward(["ann", "bob", "cid"]).await;
    let id = conversation(&[&ann, &bob, &cid]).await;
    let mut sent = vec![ann.say(id, "to all")];
    agreed(id, &[&ann, &bob, &cid], &sent).await;
    ann.device.remove_users(id, &[cid.user()]).await.unwrap();
    is(&cid, id, ConversationStatus::Removed).await;
    sent.push(bob.say(id, "without one"));
    agreed(id, &[&ann, &bob], &sent).await;
    let refused = ByHand::of(&cid.device, people.endpoints()).await;
    let request = v1::ListMessagesRequest { conversation_id: id.to_string(), after_sequence: 0, page_size: 10 };
    // The membership it is checked against may lag a little; what it would read is sealed for others anyway.
    eventually("the removed to be refused", async || {
        refused.presence().list_messages(refused.request(request.clone())).await.err()
    })
    .await;

    bob.device.add_users(id, &[cid.user()]).await.unwrap();
    cid.is_active(id).await;
    let back = cid.say(id, "back again");
    sent.push(back);
    agreed(id, &[&ann, &bob], &sent).await;
    cid.reads(id, "back again").await;
    assert_eq!(times(&cid.device, id, "without one"), 0, "what was said meanwhile is not for it");
    cluster.stop().await;
}

async fn is(member: &Member, id: ConversationId, status: ConversationStatus) {
    let found = member
        .device
        .wait_for("a status", PATIENCE, |view| Ok(view.conversation(id)?.filter(|view| view.status == status)));
    found.await.unwrap_or_else(|error| panic!("not {status:?}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_leaves_goes_with_all_devices_by_the_next_senders_commit() {
    let (cluster, people, [ann, bob, cid]) = ward(["ann", "bob", "cid"]).await;
    let tablet = another(&people, &bob).await;
    let id = conversation(&[&ann, &bob, &tablet, &cid]).await;
    bob.device.leave(id).await.unwrap();
    is(&bob, id, ConversationStatus::Removed).await;
    let sent = [ann.say(id, "without them"), cid.say(id, "yes")];
    agreed(id, &[&ann, &cid], &sent).await;
    for member in [&ann, &cid] {
        member.sees_leaves(id, &[&ann, &cid]).await;
    }
    is(&tablet, id, ConversationStatus::Removed).await;
    for gone in [&bob, &tablet] {
        assert_eq!(times(&gone.device, id, "without them"), 0);
        assert!(gone.device.send_text(id, "still here?").is_err());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_is_enough_to_join() {
    let cluster = unmetered().await;
    let people = cluster.people(0, 0);
    let [ann, bob, cid, dan] = members(&people, ["ann", "bob", "cid", "dan"]).await;
    let all = [&ann, &bob, &cid, &dan];
    for _ in 0..10 {
        let id = conversation(&all).await;
        for member in all {
            let view = member.device.view(|view| view.conversation(id)).unwrap().unwrap();
            assert_eq!((view.epoch, view.sequence), (Some(1), 1), "somebody joined by a commit of its own");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_with_oneself_has_all_ones_devices() {
    let (cluster, people, [ann]) = ward(["ann"]).await;
    let tablet = another(&people, &ann).await;
    let new = NewConversation::group("Notes", []);
    let id = ann.device.create_conversation(new).await.unwrap();
    tablet.is_active(id).await;
    let sent = [ann.say(id, "from the phone"), tablet.say(id, "from the tablet")];
    agreed(id, &[&ann, &tablet], &sent).await;
    let laptop = another(&people, &ann).await;
    tablet.device.sync_own_devices(id).await.unwrap();
    laptop.is_active(id).await;
    for member in [&ann, &tablet, &laptop] {
        member.sees_leaves(id, &[&ann, &tablet, &laptop]).await;
    }
    cluster.stop().await;
}
