//! Whole devices, over sockets, against a deployment that believes everything.

#![allow(clippy::unwrap_used, missing_docs)]

mod naive;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use naive::{Logs, Naive};
use wardline_client::{
    Backoff, ConversationId, ConversationStatus, Device, Durability, Endpoints, Error, Failpoints, FixedToken,
    Incoming, NewConversation, Options, Point, Reason, UserId,
};

const PATIENCE: Duration = Duration::from_secs(30);

fn user(number: u128) -> UserId {
    UserId::from_bytes(*uuid::Uuid::from_u128(number).as_bytes())
}

struct Lab {
    naive: Naive,
    endpoints: Endpoints,
    folder: tempfile::TempDir,
}

impl Lab {
    async fn new(forgets_every: u64) -> Self {
        let (naive, address) = Naive::start(forgets_every).await;
        Self { naive, endpoints: Endpoints::all_at(address), folder: tempfile::tempdir().unwrap() }
    }

    fn options(failpoints: Failpoints) -> Options {
        Options {
            durability: Durability::Process,
            backoff: Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(50) },
            key_packages: 5,
            failpoints,
            ..Options::default()
        }
    }

    fn token(of: UserId) -> Arc<FixedToken> {
        Arc::new(FixedToken::new(of.to_string()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn device(&self, name: &str, of: UserId) -> Device {
        let options = Self::options(Failpoints::none());
        let device = Device::create(self.file(name), &self.endpoints, Self::token(of), options).unwrap();
        device.enroll().await.unwrap();
        device.attach();
        device
    }

    fn reopen(&self, file: &Path, of: UserId, failpoints: Failpoints) -> Device {
        let device = Device::open(file, &self.endpoints, Self::token(of), Self::options(failpoints)).unwrap();
        device.attach();
        device
    }
}

fn texts(device: &Device, conversation: ConversationId) -> Vec<String> {
    device.history(conversation).unwrap().iter().filter_map(|entry| entry.text().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_talk_though_every_third_answer_is_lost() {
    let lab = Lab::new(3).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    let joined = bob.wait_active(id, PATIENCE).await.unwrap();
    assert_eq!(joined.title, "Ward 7");
    for number in 0..10 {
        ann.send_text(id, format!("ann {number}")).unwrap();
        bob.send_text(id, format!("bob {number}")).unwrap();
    }
    for device in [&ann, &bob] {
        device
            .wait_for("all texts", PATIENCE, |view| {
                let count = view.history(id)?.iter().filter(|entry| entry.text().is_some()).count();
                Ok((count == 20 && view.unsequenced()? == 0).then_some(()))
            })
            .await
            .unwrap();
    }
    assert_eq!(texts(&ann, id), texts(&bob, id));
    assert!(lab.naive.sends() > 20, "unanswered sends were repeated");
    bob.mark_read(id, 5).unwrap();
    while !lab.naive.has_read(&user(2).to_string(), 5) {
        tokio::task::yield_now().await;
    }
    ann.close().await;
    bob.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_away_while_more_was_committed_joins_by_its_welcome_and_reads_all() {
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let cat = lab.device("cat", user(3)).await;
    bob.detach();
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    let said = ann.send_text(id, "after the first commit").unwrap();
    ann.wait_sequenced(id, said, PATIENCE).await.unwrap();
    ann.add_users(id, &[user(3)]).await.unwrap();
    cat.wait_active(id, PATIENCE).await.unwrap();
    cat.send_text(id, "after the second").unwrap();
    cat.wait_for_text(id, "after the second", PATIENCE).await.unwrap();
    bob.attach();
    bob.wait_for_text(id, "after the second", PATIENCE).await.unwrap();
    assert_eq!(texts(&bob, id), ["after the first commit", "after the second"]);
    let titled = |view: &wardline_client::View<'_>| Ok(view.conversation(id)?.filter(|it| it.title == "Ward 7"));
    let joined = bob.wait_for("the title", PATIENCE, titled).await.unwrap();
    assert_eq!((joined.status, joined.skipped), (ConversationStatus::Active, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_sent_is_not_failed_by_a_later_refusal() {
    let lab = Lab::new(0).await;
    let ann = lab.device("ann", user(1)).await;
    let id = ann.create_conversation(NewConversation::group("Notes", [])).await.unwrap();
    // The first attempt is unanswered, and what became of it is not known while the next ones are refused.
    lab.naive.refuse_sends([Reason::Unavailable, Reason::Expired, Reason::Expired]);
    let content = ann.send_text(id, "patient").unwrap();
    ann.wait_sequenced(id, content, PATIENCE).await.unwrap();
    // A refusal of the only attempt there was is final.
    lab.naive.refuse_sends([Reason::Overloaded, Reason::Expired]);
    let content = ann.send_text(id, "too late").unwrap();
    assert!(matches!(ann.wait_sequenced(id, content, PATIENCE).await, Err(Error::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_view_of_the_members_costs_no_group() {
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    bob.wait_active(id, PATIENCE).await.unwrap();
    let device = bob.id().to_string();
    bob.close().await;
    for cut in 0..2 {
        let content = ann.send_text(id, format!("away {cut}")).unwrap();
        ann.wait_sequenced(id, content, PATIENCE).await.unwrap();
        lab.naive.cut_feed(&user(2).to_string(), &device);
        // First the list has nothing, then history is refused, once for good and once for a reason of its own.
        lab.naive
            .refuse_reads([Reason::NotAMember, Reason::PageTokenInvalid].into_iter().take(2 * cut), 1 - cut as u32);
        let bob = lab.reopen(&lab.file("bob"), user(2), Failpoints::none());
        ann.send_text(id, format!("back {cut}")).unwrap();
        bob.wait_for_text(id, &format!("back {cut}"), PATIENCE).await.unwrap();
        bob.close().await;
    }
    let bob = lab.reopen(&lab.file("bob"), user(2), Failpoints::none());
    assert_eq!(texts(&bob, id), ["away 0", "back 0", "away 1", "back 1"]);
    assert_eq!(bob.conversations().unwrap()[0].skipped, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_that_wait_keep_no_other_from_sending() {
    let lab = Lab::new(0).await;
    let ann = lab.device("ann", user(1)).await;
    // More than may make calls at once.
    for _ in 0..40 {
        let id = ann.create_conversation(NewConversation::group("Held", [])).await.unwrap();
        lab.naive.hold(id);
        ann.send_text(id, "held").unwrap();
    }
    let id = ann.create_conversation(NewConversation::group("Free", [])).await.unwrap();
    let content = ann.send_text(id, "free").unwrap();
    ann.wait_sequenced(id, content, PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_one_call_is_not_the_end_of_its_conversation() {
    let lab = Lab::new(0).await;
    let ann = lab.device("ann", user(1)).await;
    let id = ann.create_conversation(NewConversation::group("Notes", [])).await.unwrap();
    ann.close().await;
    let panics = AtomicU32::new(0);
    let hook = move |point| {
        let first = point == Point::BeforeSend && panics.fetch_add(1, Ordering::Relaxed) == 0;
        assert!(!first, "the test's panic");
        false
    };
    let ann = lab.reopen(&lab.file("ann"), user(1), Failpoints::new(hook));
    let content = ann.send_text(id, "still").unwrap();
    ann.wait_sequenced(id, content, PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_device_is_vouched_for_and_joins_where_the_first_one_is() {
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    let options = Lab::options(Failpoints::none());
    let second = Device::create(lab.file("ann 2"), &lab.endpoints, Lab::token(user(1)), options).unwrap();
    let request = second.enrollment_request().await.unwrap();
    let vouch = ann.vouch_for(&request).await.unwrap();
    second.enroll_with(&request, &vouch).await.unwrap();
    second.attach();
    assert_eq!(bob.verify_device_log(user(1)).await.unwrap().devices.len(), 2);
    ann.sync_own_devices(id).await.unwrap();
    second.wait_active(id, PATIENCE).await.unwrap();
    bob.wait_active(id, PATIENCE).await.unwrap();
    bob.send_attachment(id, "ecg.txt", "text/plain", vec![1, 2, 3]).unwrap();
    bob.send_text(id, "to all of ann's").unwrap();
    second.wait_for_text(id, "to all of ann's", PATIENCE).await.unwrap();
    ann.remove_device(id, second.id()).await.unwrap();
    second
        .wait_for("the removal", PATIENCE, |view| {
            Ok(view.conversation(id)?.filter(|view| view.status == ConversationStatus::Removed))
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_at_every_point_loses_nothing_and_doubles_nothing() {
    use Point::{AfterAcknowledge, AfterCommit, AfterSend, BeforeAcknowledge, BeforeCommit, BeforeSend};
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    bob.wait_active(id, PATIENCE).await.unwrap();
    bob.close().await;
    let file = lab.file("bob");
    let points = [BeforeCommit, AfterCommit, BeforeSend, AfterSend, BeforeAcknowledge, AfterAcknowledge];
    let mut said = 0;
    for point in points {
        for at in [1_u32, 2, 4] {
            let passed = AtomicU32::new(0);
            let hook = move |now| now == point && passed.fetch_add(1, Ordering::Relaxed) + 1 == at;
            let bob = lab.reopen(&file, user(2), Failpoints::new(hook));
            if bob.send_text(id, format!("bob {point:?} {at}")).is_ok() {
                said += 1;
            }
            ann.send_text(id, format!("ann {point:?} {at}")).unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(300), bob.stopped()).await;
            bob.close().await;
        }
    }
    let bob = lab.reopen(&file, user(2), Failpoints::none());
    bob.send_text(id, "the last").unwrap();
    ann.wait_for_text(id, "the last", PATIENCE).await.unwrap();
    let wanted = texts(&ann, id);
    bob.wait_for("all texts", PATIENCE, |view| {
        let count = view.history(id)?.iter().filter(|entry| entry.text().is_some()).count();
        Ok((count >= wanted.len() && view.unsequenced()? == 0).then_some(()))
    })
    .await
    .unwrap();
    let mut got = texts(&bob, id);
    assert_eq!(got, texts(&ann, id));
    let all = got.len();
    got.sort();
    got.dedup();
    assert_eq!(got.len(), all, "nothing is there twice");
    assert_eq!(got.iter().filter(|text| text.starts_with("ann")).count(), 18);
    // A send whose answer was "stopped" may have been saved just before: at least those that were confirmed are there.
    assert!(got.iter().filter(|text| text.starts_with("bob ")).count() >= said);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_feed_the_history_is_read_and_a_lost_group_rejoined() {
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    bob.wait_active(id, PATIENCE).await.unwrap();
    let device = bob.id().to_string();
    bob.close().await;
    for number in 0..5 {
        let content = ann.send_text(id, format!("away {number}")).unwrap();
        ann.wait_sequenced(id, content, PATIENCE).await.unwrap();
    }
    lab.naive.cut_feed(&user(2).to_string(), &device);
    let bob = lab.reopen(&lab.file("bob"), user(2), Failpoints::none());
    bob.wait_for_text(id, "away 4", PATIENCE).await.unwrap();
    assert_eq!(texts(&bob, id), texts(&ann, id));

    bob.rejoin(id).await.unwrap();
    bob.send_text(id, "back").unwrap();
    ann.wait_for_text(id, "back", PATIENCE).await.unwrap();
    assert_eq!(ann.members(id).unwrap().len(), 2);
}

async fn epoch(device: &Device, conversation: ConversationId, epoch: u64) {
    device
        .wait_for("an epoch", PATIENCE, |view| {
            Ok(view.conversation(conversation)?.filter(|view| view.epoch == Some(epoch)).map(|_| ()))
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_device_logs_of_those_it_adds() {
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let _cat = lab.device("cat", user(3)).await;
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    epoch(&bob, id, 1).await;
    let reader = user(2).to_string();
    lab.naive.keep_from_logs(&reader, Some(Logs::Unavailable));
    ann.add_users(id, &[user(3)]).await.unwrap();
    // More than one call asks for by itself: the feed has started anew since.
    while lab.naive.asked_for_logs(&reader) < 8 {
        tokio::task::yield_now().await;
    }
    let view = bob.view(|view| view.conversation(id)).unwrap().unwrap();
    assert_eq!((view.epoch, view.status), (Some(1), ConversationStatus::Active), "neither merged nor given up");
    lab.naive.keep_from_logs(&reader, None);
    epoch(&bob, id, 2).await;
    bob.send_text(id, "welcome").unwrap();
    ann.wait_for_text(id, "welcome", PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_no_log_has_ends_the_conversation_here_and_no_other() {
    let lab = Lab::new(0).await;
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let cat = lab.device("cat", user(3)).await;
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    let other = ann.create_conversation(NewConversation::group("Ward 8", [user(2)])).await.unwrap();
    epoch(&bob, id, 1).await;
    epoch(&bob, other, 1).await;
    let mut told = bob.incoming();
    let reader = user(2).to_string();
    lab.naive.keep_from_logs(&reader, Some(Logs::Empty));
    ann.add_users(id, &[user(3)]).await.unwrap();
    let stranger = loop {
        if let Incoming::Untrusted { conversation, user, device } = told.recv().await.unwrap() {
            assert_eq!(conversation, id);
            break (user, device);
        }
    };
    assert_eq!(stranger, (user(3), cat.id()));
    assert!(matches!(bob.send_text(id, "to whom?"), Err(Error::Untrusted(_))));
    ann.send_text(other, "and here?").unwrap();
    bob.wait_for_text(other, "and here?", PATIENCE).await.unwrap();

    // The same leaf is in the tree that the server would have it rejoin.
    assert!(matches!(bob.rejoin(id).await, Err(Error::Untrusted(_))));
    assert!(matches!(bob.add_users(id, &[user(3)]).await, Err(Error::Untrusted(_))));
    lab.naive.keep_from_logs(&reader, None);
    bob.rejoin(id).await.unwrap();
    bob.send_text(id, "back").unwrap();
    cat.wait_for_text(id, "back", PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_than_the_first_is_refused_unless_it_is_configured() {
    let lab = Lab::new(0).await;
    lab.naive.set_authority(&[[1; 32]]);
    let (ann, bob) = (lab.device("ann", user(1)).await, lab.device("bob", user(2)).await);
    let id = ann.create_conversation(NewConversation::group("Ward 7", [user(2)])).await.unwrap();
    bob.wait_active(id, PATIENCE).await.unwrap();
    ann.close().await;

    lab.naive.set_authority(&[[1; 32], [2; 32]]);
    let file = lab.file("ann");
    let ann = lab.reopen(&file, user(1), Failpoints::none());
    assert!(matches!(ann.verify_device_log(user(2)).await, Err(Error::Untrusted(_))));
    let created = ann.create_conversation(NewConversation::group("Ward 8", [])).await;
    assert!(matches!(created, Err(Error::Untrusted(_))));
    bob.send_text(id, "as before").unwrap();
    ann.wait_for_text(id, "as before", PATIENCE).await.unwrap();
    ann.close().await;

    let configured = |keys: &[[u8; 32]]| {
        let authority_keys = Some(keys.to_vec());
        let options = Options { authority_keys, ..Lab::options(Failpoints::none()) };
        Device::open(&file, &lab.endpoints, Lab::token(user(1)), options).unwrap()
    };
    let ann = configured(&[[3; 32]]);
    assert!(matches!(ann.verify_device_log(user(2)).await, Err(Error::Untrusted(_))));
    ann.close().await;
    let ann = configured(&[[2; 32], [1; 32]]);
    ann.verify_device_log(user(2)).await.unwrap();
    ann.close().await;
    let ann = lab.reopen(&file, user(1), Failpoints::none());
    ann.verify_device_log(user(2)).await.unwrap();
}
