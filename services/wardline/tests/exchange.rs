//! The exchange itself: who gets what, in which order, and what is said of it afterwards.

#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use support::{
    ByHand, Stable, agreed, another, another_with, conversation, eventually, member, members, options, times, ward,
};
use wardline_client::{Body, Failpoints, MessageId, Options, Point};
use wardline_proto::v1;
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_proto::v1::event::Body as Event;
use wardline_proto::v1::get_outcome_response::Outcome;
use wardline_testbed::cluster::Cluster;
use wardline_testbed::people::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn every_device_of_every_member_gets_every_event_the_senders_other_devices_too() {
    let (cluster, people, [ann, bob, cid]) = ward(["ann", "bob", "cid"]).await;
    let (ann_tablet, bob_tablet) = (another(&people, &ann).await, another(&people, &bob).await);
    let all = [&ann, &ann_tablet, &bob, &bob_tablet, &cid];
    let id = conversation(&all).await;
    let mut sent = Vec::new();
    for round in 0..5 {
        for (who, member) in all.iter().enumerate() {
            sent.push(member.say(id, &format!("{who} says {round}")));
        }
    }
    let ledger = agreed(id, &all, &sent).await;
    assert_eq!(ledger.sent.len(), 25);
    for member in all {
        member.sees_leaves(id, &all).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_device_says_keeps_its_order() {
    let (cluster, _, [ann, bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let texts: Vec<String> = (0..40).map(|number| format!("{number:02}")).collect();
    let sent: Vec<_> = texts.iter().map(|text| ann.say(id, text)).collect();
    agreed(id, &[&ann, &bob], &sent).await;
    let history = bob.device.history(id).unwrap();
    let shown: Vec<_> = history.iter().filter_map(|entry| entry.text()).collect();
    assert_eq!(shown, texts);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_send_is_known_by_its_key_and_its_repeat_takes_no_second_sequence() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let ann = ann.reopened_with(&people, Failpoints::new(|point| point == Point::AfterSend)).await;
    let sent = ann.say(id, "was that heard?");
    ann.device.stopped().await;

    let entry = bob.reads(id, "was that heard?").await;
    let hand = ByHand::of(&ann.device, people.endpoints()).await;
    match hand.outcome(id, ann.id(), &entry.message.to_string()).await {
        Some(Outcome::Sequenced(sequenced)) => assert_eq!(sequenced.sequence, entry.sequence),
        other => panic!("not sequenced: {other:?}"),
    }
    let never = MessageId::from_bytes(*uuid::Uuid::now_v7().as_bytes());
    let unknown = hand.outcome(id, ann.id(), &never.to_string()).await;
    assert!(matches!(unknown, Some(Outcome::Pending(_))), "never sent, and still {unknown:?}");

    let ann = ann.reopened(&people).await;
    ann.device.wait_sequenced(id, sent, PATIENCE).await.unwrap();
    let after = ann.say(id, "yes");
    agreed(id, &[&ann, &bob], &[sent, after]).await;
    let repeated = bob.device.history(id).unwrap().into_iter().filter(|other| other.message == entry.message).count();
    assert_eq!(repeated, 1);
    assert_eq!(bob.reads(id, "yes").await.sequence, entry.sequence + 1, "the repeat took a sequence");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_cut_off_on_its_way_arrives_once() {
    let cluster = Cluster::start(1).await.unwrap();
    let stable = Stable::before(&cluster.endpoints(0)).await;
    let people = cluster.people(0, 0).at(stable.endpoints());
    let [ann, bob] = members(&people, ["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let mut sent = Vec::new();
    for round in 0..20 {
        sent.push(ann.say(id, &format!("round {round}")));
        stable.cut_ingest();
        sent.push(bob.say(id, &format!("answer {round}")));
        stable.lead_to(&cluster.endpoints(0));
    }
    agreed(id, &[&ann, &bob], &sent).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_id_with_other_bytes_is_refused() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let sent = ann.say(id, "8 mg");
    let at = ann.device.wait_sequenced(id, sent, PATIENCE).await.unwrap();
    ann.device.detach();
    let hand = ByHand::of(&ann.device, people.endpoints()).await;
    let stored = hand.messages(id, at - 1, 1).await.messages.remove(0);
    let Some(v1::message::Body::MlsMessage(body)) = stored.body else { panic!("a small message comes with its body") };
    let same = v1::Sealed { envelope: stored.envelope, mls_message: body.clone() };
    hand.send(same.clone()).await.expect("a repeat is fine");

    // The last byte is the authentication tag's: the envelope and all that is in clear stay as they are.
    let mut bytes = body.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    hand.send(v1::Sealed { mls_message: Bytes::from(bytes), ..same }).await.expect("accepted, then rejected");
    let mut feed = hand.attach().await;
    let rejected = loop {
        let Down::Events(events) = feed.next().await.unwrap() else { continue };
        let rejected = events.events.into_iter().find_map(|event| match event.body {
            Some(Event::Rejected(rejected)) => Some(rejected),
            _ => None,
        });
        if let Some(rejected) = rejected {
            break rejected;
        }
    };
    assert_eq!(rejected.reason(), v1::RejectReason::MessageIdReused);
    let entry = bob.reads(id, "8 mg").await;
    assert_eq!(rejected.message_id, entry.message.to_string());
    match hand.outcome(id, ann.id(), &rejected.message_id).await {
        Some(Outcome::Sequenced(sequenced)) => assert_eq!(sequenced.sequence, at, "the first outcome stands"),
        other => panic!("not sequenced: {other:?}"),
    }
    let after = bob.say(id, "read back: 8 mg");
    assert_eq!(bob.device.wait_sequenced(id, after, PATIENCE).await.unwrap(), at + 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_come_back_as_they_were() {
    let (cluster, _, [ann, bob, cid, dan]) = ward(["ann", "bob", "cid", "dan"]).await;
    let all = [&ann, &bob, &cid, &dan];
    let id = conversation(&all).await;
    // A small one travels in the feed; a large one to several partitions is only named there.
    let mut sent = Vec::new();
    for size in [3, 60 * 1024] {
        let bytes: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
        let content = ann.device.send_attachment(id, "ecg.pdf", "application/pdf", bytes.clone()).unwrap();
        sent.push(content);
        for member in all {
            let body = member.device.wait_for("the attachment", PATIENCE, |view| {
                let history = view.history(id)?;
                let found = history.iter().filter_map(|entry| entry.content()).find(|(id, _)| *id == content);
                Ok(found.map(|(_, body)| body.clone()))
            });
            let Body::Attachment(file) = body.await.unwrap() else { panic!("not an attachment") };
            assert_eq!((file.file_name.as_str(), file.media_type.as_str()), ("ecg.pdf", "application/pdf"));
            assert!(file.bytes == bytes, "the bytes differ");
        }
    }
    agreed(id, &all, &sent).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_dense_in_pages_and_only_for_members() {
    let (cluster, people, [ann, bob, eve]) = ward(["ann", "bob", "eve"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let sent: Vec<_> = (0..12).map(|number| ann.say(id, &format!("line {number}"))).collect();
    agreed(id, &[&ann, &bob], &sent).await;
    let hand = ByHand::of(&bob.device, people.endpoints()).await;
    let mut listed = Vec::new();
    loop {
        let page = hand.messages(id, listed.len() as u64, 5).await;
        if page.messages.is_empty() {
            assert_eq!(page.last_sequence, listed.len() as u64);
            break;
        }
        assert!(page.messages.len() <= 5);
        listed.extend(page.messages);
    }
    for (index, message) in listed.iter().enumerate() {
        assert_eq!(message.sequence, index as u64 + 1);
    }
    for entry in ann.device.history(id).unwrap() {
        let stored = &listed[usize::try_from(entry.sequence).unwrap() - 1];
        assert_eq!(stored.chain_hash.as_ref(), entry.chain.as_bytes());
    }
    let stranger = ByHand::of(&eve.device, people.endpoints()).await;
    let request = v1::ListMessagesRequest { conversation_id: id.to_string(), after_sequence: 0, page_size: 5 };
    let refused = stranger.presence().list_messages(stranger.request(request)).await;
    assert!(refused.is_err(), "somebody else reads the history");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_shows_those_one_shares_a_conversation_with_and_nobody_else() {
    let (cluster, _, [ann, bob, cid, eve]) = ward(["ann", "bob", "cid", "eve"]).await;
    let _id = conversation(&[&ann, &bob, &cid]).await;
    let users = [bob.user(), cid.user(), eve.user()];
    eventually("the two who are there", async || {
        let present = ann.device.present(&users).await.unwrap();
        assert!(!present.contains(&eve.user()), "presence of somebody one shares nothing with");
        (present.contains(&bob.user()) && present.contains(&cid.user())).then_some(())
    })
    .await;
    assert!(eve.device.present(&[ann.user(), bob.user()]).await.unwrap().is_empty());
    cid.device.detach();
    eventually("one to have gone", async || (ann.device.present(&users).await.unwrap() == [bob.user()]).then_some(()))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_device_with_a_tiny_window_gets_everything_in_order() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let slow = another_with(&people, &bob, Options { window_events: 1, ..options() }).await;
    let all = [&ann, &bob, &slow];
    let id = conversation(&all).await;
    let sent: Vec<_> = (0..80).map(|number| ann.say(id, &format!("{number:03}"))).collect();
    agreed(id, &all, &sent).await;
    let history = slow.device.history(id).unwrap();
    let shown: Vec<_> = history.iter().filter_map(|entry| entry.text()).collect();
    assert!(shown.is_sorted());
    assert_eq!(times(&slow.device, id, "079"), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_people_are_not_found() {
    let cluster = Cluster::start(1).await.unwrap();
    let ann = member(&cluster.people(0, 0), "ann").await;
    let eve = member(&cluster.people(1, 0), "eve").await;
    let id = conversation(&[&ann]).await;
    assert!(ann.device.add_users(id, &[eve.user()]).await.is_err(), "a user of another tenant was added");
    assert!(eve.device.present(&[ann.user()]).await.unwrap_or_default().is_empty());
    cluster.stop().await;
}
