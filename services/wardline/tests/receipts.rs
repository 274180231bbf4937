//! Receipts: what devices say of themselves reaches everybody whom it concerns, moves only forward and says only what happened.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{ByHand, Member, Stable, agreed, agreed_with_receipts, another, conversation, members, ward};
use wardline_client::{ContentId, ConversationId, Failpoints, MessageState, Point, ReceiptView};
use wardline_proto::v1;
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_testbed::cluster::Cluster;
use wardline_testbed::people::PATIENCE;

/// Waits until the sender's device shows a message as at least this far.
async fn shows(member: &Member, id: ConversationId, content: ContentId, state: fn(u64) -> MessageState) {
    let found = member.device.wait_for("a state", PATIENCE, |view| {
        let found = view.message_state(id, content)?;
        let at = match found {
            Some(MessageState::Sequenced(at) | MessageState::Delivered(at) | MessageState::Read(at)) => at,
            _ => return Ok(None),
        };
        Ok((found >= Some(state(at))).then_some(()))
    });
    found.await.expect("the message gets this far");
}

fn mark(views: &[ReceiptView], of: &Member) -> (u64, u64) {
    let found = views.iter().find(|view| (view.user, view.device) == (of.user(), of.id()));
    found.map_or((0, 0), |view| (view.delivered, view.read))
}

/// Reads to the end.
fn read_all(member: &Member, id: ConversationId) -> u64 {
    let last = member.device.history(id).unwrap().last().unwrap().sequence;
    member.device.mark_read(id, last).unwrap();
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn delivered_and_read_converge_over_all_devices_and_equal_what_the_service_says() {
    let (cluster, people, [ann, bob, cid]) = ward(["ann", "bob", "cid"]).await;
    let (ann_tablet, bob_tablet) = (another(&people, &ann).await, another(&people, &bob).await);
    let all = [&ann, &ann_tablet, &bob, &bob_tablet, &cid];
    let id = conversation(&all).await;
    let mut sent = Vec::new();
    for round in 0..4 {
        sent.extend(all.iter().map(|member| member.say(id, &format!("round {round}"))));
    }
    agreed_with_receipts(id, &all, &sent).await;
    shows(&ann, id, sent[0], MessageState::Delivered).await;

    for reader in [&bob, &cid] {
        read_all(reader, id);
    }
    let ledger = agreed_with_receipts(id, &all, &sent).await;
    shows(&ann, id, sent[0], MessageState::Read).await;
    // The sender's other device shows the same, and so does the service.
    let hand = ByHand::of(&cid.device, people.endpoints()).await;
    support::eventually("the service to say the same", async || {
        let said: Vec<ReceiptView> = hand.receipts(id).await.iter().map(view).collect();
        ledger.service_findings(&said).is_empty().then_some(())
    })
    .await;
    let said: Vec<ReceiptView> = hand.receipts(id).await.iter().map(view).collect();
    for told in [&ann, &ann_tablet] {
        let pushed = told.device.receipts(id).unwrap();
        for other in [&bob, &bob_tablet, &cid] {
            assert!(mark(&pushed, other) <= mark(&said, other), "more was pushed than is so");
        }
        assert_eq!(mark(&pushed, &bob).1, mark(&said, &bob).1, "how far the reader is");
    }
    cluster.stop().await;
}

fn view(mark: &v1::Watermark) -> ReceiptView {
    ReceiptView {
        conversation: mark.conversation_id.parse().unwrap(),
        user: mark.user_id.parse().unwrap(),
        device: mark.device_id.parse().unwrap(),
        delivered: mark.delivered,
        read: mark.read,
        skipped: mark.skipped.iter().map(|range| (range.first, range.last)).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_on_one_device_is_read_on_the_readers_others() {
    let cluster = Cluster::start(2).await.unwrap();
    let (here, there) = (cluster.people(0, 0), cluster.people(0, 1));
    let [ann, bob] = members(&here, ["ann", "bob"]).await;
    let tablet = another(&there, &bob).await;
    let id = conversation(&[&ann, &bob, &tablet]).await;
    let sent = [ann.say(id, "one"), ann.say(id, "two")];
    agreed(id, &[&ann, &bob, &tablet], &sent).await;
    let read = read_all(&bob, id);
    let told = tablet
        .device
        .wait_for("the own read mark", PATIENCE, |view| Ok((mark(&view.receipts(id)?, &bob).1 == read).then_some(())));
    told.await.expect("the reader's other device is told");
    shows(&ann, id, sent[1], MessageState::Read).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watermarks_only_move_forward_in_every_frame() {
    let cluster = Cluster::start(2).await.unwrap();
    let people = cluster.people(0, 0);
    let [ann, bob, cid] = members(&people, ["ann", "bob", "cid"]).await;
    let observer = another(&people, &ann).await;
    let all = [&ann, &observer, &bob, &cid];
    let id = conversation(&all).await;
    let first = ann.say(id, "first");
    agreed(id, &all, &[first]).await;
    observer.device.detach();
    let mut feed = ByHand::of(&observer.device, &cluster.endpoints(1)).await.attach().await;
    let mut sent = vec![first];
    for round in 0..12 {
        sent.push(ann.say(id, &format!("round {round}")));
        let at = ann.device.wait_sequenced(id, sent[round + 1], PATIENCE).await.unwrap();
        for reader in [&bob, &cid] {
            reader.reads(id, &format!("round {round}")).await;
            reader.device.mark_read(id, at).unwrap();
            // Going back is no progress, and is not told.
            reader.device.mark_read(id, 1).unwrap();
        }
    }
    let last =
        agreed(id, &[&ann, &bob, &cid], &sent).await.devices.values().next().unwrap().history.last().unwrap().sequence;
    let readers = BTreeSet::from([bob.id().to_string(), cid.id().to_string()]);
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut frames = 0;
    while !readers.iter().all(|reader| seen.get(reader) == Some(&(last, last))) {
        let Down::Receipts(receipts) = feed.next().await.expect("the feed goes on") else { continue };
        frames += 1;
        for mark in receipts.watermarks {
            let known = seen.entry(mark.device_id.clone()).or_default();
            assert!(mark.delivered >= known.0 && mark.read >= known.1, "back from {known:?} to {mark:?}");
            assert!(mark.delivered <= last && mark.read <= last);
            *known = (mark.delivered, mark.read);
        }
    }
    assert!(frames > 1, "nothing was watched");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dies_before_its_acknowledgement_has_it_counted_when_it_is_back() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let first = ann.say(id, "before");
    shows(&ann, id, first, MessageState::Delivered).await;
    let bob = bob.reopened_with(&people, Failpoints::new(|point| point == Point::BeforeAcknowledge)).await;
    bob.device.attach();
    let content = ann.say(id, "saved, not acknowledged");
    bob.device.stopped().await;
    ann.device.wait_sequenced(id, content, PATIENCE).await.unwrap();
    let bob = bob.reopened(&people).await;
    shows(&ann, id, content, MessageState::Delivered).await;
    agreed_with_receipts(id, &[&ann, &bob], &[first, content]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_cut_again_and_again_lose_no_receipt() {
    let cluster = Cluster::start(1).await.unwrap();
    let stable = Stable::before(&cluster.endpoints(0)).await;
    let people = cluster.people(0, 0);
    let [ann, bob] = members(&people, ["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let bob = bob.reopened(&people.at(stable.endpoints())).await;
    let mut sent = Vec::new();
    for round in 0..15 {
        sent.push(ann.say(id, &format!("round {round}")));
        bob.reads(id, &format!("round {round}")).await;
        read_all(&bob, id);
        // What it has just saved it may not have said.
        stable.cut_presence();
        stable.lead_to(&cluster.endpoints(0));
    }
    for content in &sent {
        shows(&ann, id, *content, MessageState::Read).await;
    }
    agreed_with_receipts(id, &[&ann, &bob], &sent).await;
    cluster.stop().await;
}
