//! Lost devices: cut off at once, and gone from every group before anybody says anything more.

#![allow(clippy::unwrap_used)]

mod support;

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use support::{ByHand, Member, Stable, agreed, another, conversation, eventually, is, member, members, times, ward};
use wardline::node::Role;
use wardline_client::{ConversationId, Incoming, Reason};
use wardline_domain::roster::Roster;
use wardline_log::{NewRecord, Partition, Topic};
use wardline_proto::internal::v1 as wire;
use wardline_proto::v1;
use wardline_testbed::cluster::{Cluster, TENANTS};
use wardline_testbed::people::PATIENCE;

/// How long a revoked device's stream may still be open.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn roster(cluster: &Cluster, id: ConversationId) -> Roster {
    cluster.over().stores.conversations.roster(id, u64::MAX).await.unwrap()
}

/// Waits until the conversation's roster has the device's leaf no more, or only to be removed.
async fn is_on_its_way_out(cluster: &Cluster, id: ConversationId, of: &Member) {
    eventually("the control record", async || {
        let roster = roster(cluster, id).await;
        roster.leaf_of(of.user(), of.id()).is_none_or(|(_, leaf)| leaf.removal_pending).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_revoked_with_nobody_else_online_is_gone_before_anything_more_is_said() {
    let (cluster, people, [phone, bob, cid]) = ward(["ann", "bob", "cid"]).await;
    let tablet = another(&people, &phone).await;
    let all = [&phone, &tablet, &bob, &cid];
    let (one, two) = (conversation(&all).await, conversation(&all).await);
    let mut sent = [vec![phone.say(one, "before")], vec![bob.say(two, "before")]];
    agreed(one, &all, &sent[0]).await;
    agreed(two, &all, &sent[1]).await;
    for away in [&tablet, &bob, &cid] {
        away.device.detach();
    }
    people.admin().unwrap().revoke_device(phone.user(), phone.id()).await.unwrap();
    for id in [one, two] {
        is_on_its_way_out(&cluster, id, &phone).await;
    }

    for back in [&bob, &cid, &tablet] {
        back.device.attach();
    }
    let stay = [&tablet, &bob, &cid];
    sent[0].push(bob.say(one, "without the phone"));
    sent[1].push(cid.say(two, "without the phone"));
    for (id, sent) in [one, two].into_iter().zip(&sent) {
        agreed(id, &stay, sent).await;
        for member in stay {
            member.sees_leaves(id, &stay).await;
        }
        assert_eq!(times(&phone.device, id, "without the phone"), 0);
        assert!(roster(&cluster, id).await.leaf_of(phone.user(), phone.id()).is_none());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_waits_for_the_commit_that_removes_the_revoked() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let phone = another(&people, &ann).await;
    let id = conversation(&[&ann, &phone, &bob]).await;
    let first = bob.say(id, "before");
    agreed(id, &[&ann, &phone, &bob], &[first]).await;
    bob.device.detach();
    people.admin().unwrap().revoke_device(phone.user(), phone.id()).await.unwrap();
    is_on_its_way_out(&cluster, id, &phone).await;
    let before = roster(&cluster, id).await.version();
    let second = bob.say(id, "after");
    // Detached, it can neither commit nor know the answer; nothing of it is sequenced meanwhile.
    let hand = ByHand::of(&bob.device, people.endpoints()).await;
    let refused = eventually("the refusal", async || {
        let stored = hand.messages(id, 0, 100).await.messages.pop().unwrap();
        let Some(v1::message::Body::MlsMessage(mls_message)) = stored.body else { panic!("without a body") };
        // The same envelope under a new id would not verify; the server refuses before it looks that far.
        let mut envelope = v1::Envelope::decode(stored.envelope).unwrap();
        envelope.message_id = uuid::Uuid::now_v7().to_string();
        let envelope = Bytes::from(envelope.encode_to_vec());
        hand.send(v1::Sealed { envelope, mls_message }).await.err()
    })
    .await;
    assert!(refused.reason().is_some(), "{refused}");
    assert_eq!(roster(&cluster, id).await.version(), before);
    bob.device.attach();
    agreed(id, &[&ann, &bob], &[first, second]).await;
    let after = bob.device.history(id).unwrap();
    let kinds: Vec<bool> = after.iter().rev().take(2).map(|entry| entry.content().is_some()).collect();
    assert_eq!(kinds, [true, false], "a commit, then the content");
    bob.sees_leaves(id, &[&ann, &bob]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_devices_streams_end_within_a_second_and_its_calls_are_refused() {
    let cluster = Cluster::start(2).await.unwrap();
    let people = cluster.people(0, 0);
    let [phone, bob] = members(&people, ["ann", "bob"]).await;
    let tablet = another(&people, &phone).await;
    let id = conversation(&[&phone, &tablet, &bob]).await;
    // One of a device's two streams would replace the other: the phone's own, then one by hand with the tablet's session.
    let phone_hand = ByHand::of(&phone.device, &cluster.endpoints(1)).await;
    let tablet_hand = ByHand::of(&tablet.device, &cluster.endpoints(1)).await;
    tablet.device.detach();
    let mut stream = tablet_hand.attach().await;
    stream.next().await.expect("it is open");
    let mut told = phone.device.incoming();

    bob.device.wait_active(id, PATIENCE).await.unwrap();
    let admin = people.admin().unwrap();
    admin.revoke_device(phone.user(), phone.id()).await.unwrap();
    tokio::time::timeout(AT_ONCE, async {
        loop {
            if matches!(told.recv().await.unwrap(), Incoming::Revoked) {
                return;
            }
        }
    })
    .await
    .expect("the phone's stream has ended");
    admin.revoke_device(tablet.user(), tablet.id()).await.unwrap();
    let ended = tokio::time::timeout(AT_ONCE, async {
        loop {
            if let Err(ended) = stream.next().await {
                return ended;
            }
        }
    })
    .await
    .expect("the tablet's stream at the other instance has ended");
    assert!(ended.is_some_and(|error| is(&error, Reason::DeviceRevoked)), "it is said why");

    // The sessions are good for ten minutes, the devices are not.
    for hand in [&phone_hand, &tablet_hand] {
        let request = v1::GetConversationRequest { conversation_id: id.to_string() };
        let refused = hand.ingest().get_conversation(hand.request(request)).await.map_err(wardline_client::Error::from);
        assert!(refused.is_err_and(|error| is(&error, Reason::DeviceRevoked)), "ingest still serves it");
        let request = v1::ListConversationsRequest::default();
        let refused =
            hand.presence().list_conversations(hand.request(request)).await.map_err(wardline_client::Error::from);
        assert!(refused.is_err_and(|error| is(&error, Reason::DeviceRevoked)), "presence still serves it");
    }
    for device in [&phone.device, &tablet.device] {
        assert!(device.session_token().await.is_err_and(|error| is(&error, Reason::DeviceRevoked)));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_every_conversation_though_the_directory_dies_after_its_answer() {
    let (mut cluster, people, [phone, bob]) = ward(["ann", "bob"]).await;
    let tablet = another(&people, &phone).await;
    let all = [&phone, &tablet, &bob];
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(conversation(&all).await);
    }
    people.admin().unwrap().revoke_device(phone.user(), phone.id()).await.unwrap();
    cluster.remove_node(0).await;

    let index = cluster.add_node().await.unwrap();
    // Nobody says anything: it is the directory's own follow-up that comes this far.
    for id in &ids {
        is_on_its_way_out(&cluster, *id, &phone).await;
    }
    let people = people.at(cluster.endpoints(index));
    let (tablet, bob) = (tablet.reopened(&people).await, bob.reopened(&people).await);
    for id in ids {
        let sent = [bob.say(id, "after")];
        agreed(id, &[&tablet, &bob], &sent).await;
        bob.sees_leaves(id, &[&tablet, &bob]).await;
    }
    let again = phone.reopened(&people).await;
    assert!(again.device.session_token().await.is_err_and(|error| is(&error, Reason::DeviceRevoked)));
    cluster.stop().await;
}

/// A revocation as every role reads it, from a directory that gets no further.
async fn revoked_in_the_topic_only(cluster: &Cluster, of: &Member) {
    let log = &cluster.over().log;
    let device = wire::DirectoryDevice {
        tenant_id: Bytes::copy_from_slice(TENANTS[0].as_bytes()),
        user_id: Bytes::copy_from_slice(of.user().as_bytes()),
        device_id: Bytes::copy_from_slice(of.id().as_bytes()),
        revoked: true,
        version: 100,
        at_us: cluster.over().clock.now().as_micros(),
    };
    let body = wire::directory_record::Body::Device(device);
    let payload = Bytes::from(wire::DirectoryRecord { body: Some(body) }.encode_to_vec());
    let key = Bytes::from([of.user().as_bytes().as_slice(), of.id().as_bytes()].concat());
    let permit = log.reserve(NonZeroU32::new(1024).unwrap()).unwrap();
    let to = Partition {
        topic: Topic::Directory,
        index: log.partitions(Topic::Directory).partition_of(of.user().as_bytes()),
    };
    log.append(permit, to, vec![NewRecord { key, payload, headers: Vec::new() }]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_appends_what_the_directory_has_not_come_to() {
    let mut cluster = Cluster::start(1).await.unwrap();
    let stable = Stable::before(&cluster.endpoints(0)).await;
    let people = cluster.people(0, 0).at(stable.endpoints());
    let [ann, bob] = members(&people, ["ann", "bob"]).await;
    let phone = another(&people, &ann).await;
    let id = conversation(&[&ann, &phone, &bob]).await;
    let mut sent = vec![ann.say(id, "before")];
    agreed(id, &[&ann, &phone, &bob], &sent).await;

    // From here on nobody runs the directory. Devices have their sessions.
    cluster.remove_node(0).await;
    cluster.options_mut().roles = vec![Role::Ingest, Role::Fanout, Role::Presence, Role::Receipt];
    let index = cluster.add_node().await.unwrap();
    stable.lead_to(&cluster.endpoints(index));
    revoked_in_the_topic_only(&cluster, &phone).await;

    sent.push(bob.say(id, "somebody speaks"));
    is_on_its_way_out(&cluster, id, &phone).await;
    sent.push(bob.say(id, "and again"));
    agreed(id, &[&ann, &bob], &sent).await;
    for member in [&ann, &bob] {
        member.sees_leaves(id, &[&ann, &bob]).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_user_is_out_of_every_conversation_with_all_devices() {
    let (cluster, people, [ann, bob]) = ward(["ann", "bob"]).await;
    let gone = member(&people, "cid").await;
    let gone_tablet = another(&people, &gone).await;
    let id = conversation(&[&ann, &bob, &gone, &gone_tablet]).await;
    people.admin().unwrap().deactivate_user(gone.user()).await.unwrap();
    is_on_its_way_out(&cluster, id, &gone).await;
    is_on_its_way_out(&cluster, id, &gone_tablet).await;
    let sent = [ann.say(id, "without them"), bob.say(id, "yes")];
    agreed(id, &[&ann, &bob], &sent).await;
    for member in [&ann, &bob] {
        member.sees_leaves(id, &[&ann, &bob]).await;
    }
    for device in [&gone.device, &gone_tablet.device] {
        assert!(device.session_token().await.is_err());
    }
    cluster.stop().await;
}
