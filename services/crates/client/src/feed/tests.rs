//! Devices that talk through a server that only numbers what it is given: every law that needs no network.

#![allow(clippy::unwrap_used)]

mod strangers;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openmls::prelude::OpenMlsProvider as _;
use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::prelude::{KeyPackage, MlsMessageBodyIn, MlsMessageIn, ProtocolVersion};
use wardline_domain::conversation::{chain_next, chain_start};
use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, TenantId, UserId};
use wardline_proto::reason::Reason;
use wardline_proto::v1;

use super::apply::{Applied, Body, Prepared, Stopped};
use super::message::Sequenced;
use crate::clock::Clock;
use crate::commit::Started;
use crate::content::Outgoing;
use crate::core::{Account, Core};
use crate::device::{Durability, NewConversation};
use crate::device_log::{DeviceLog, LoggedDevice};
use crate::error::Error;
use crate::failpoint::{Failpoints, Point};
use crate::outbox::Work;
use crate::store::requests::{self, Request};
use crate::view::{ConversationStatus, HistoryKind, MessageState};

/// Numbers what it is given.
struct Server {
    id: ConversationId,
    chain: Digest,
    messages: Vec<v1::Message>,
    state: v1::GroupState,
}

impl Server {
    fn sequence(&mut self, sealed: &v1::Sealed) -> v1::Message {
        let sequence = self.messages.len() as u64 + 1;
        let (envelope, mls) = (Digest::of(&sealed.envelope), Digest::of(&sealed.mls_message));
        self.chain = chain_next(self.chain, Sequence(sequence), envelope, mls);
        let message = v1::Message {
            conversation_id: self.id.to_string(),
            sequence,
            chain_hash: self.chain.as_bytes().to_vec().into(),
            envelope: sealed.envelope.clone(),
            body: Some(v1::message::Body::MlsMessage(sealed.mls_message.clone())),
            accept_time: None,
        };
        self.messages.push(message.clone());
        message
    }

    fn commit(&mut self, request: &v1::CommitRequest) -> v1::Message {
        self.state = request.group_state.clone().unwrap();
        self.sequence(request.sealed.as_ref().unwrap())
    }

    fn welcome(&self, request: &v1::CommitRequest) -> Body {
        let welcome = v1::Welcome {
            conversation_id: self.id.to_string(),
            generation: 0,
            epoch: self.state.epoch,
            sequence: self.messages.len() as u64,
            welcome: request.welcome.clone(),
            chain_hash: self.chain.as_bytes().to_vec().into(),
        };
        Body::Welcome(welcome, Some(self.state.clone()))
    }
}

thread_local! {
    /// The directory of the test at hand, as every phone reads it before a step.
    static LOGS: RefCell<BTreeMap<UserId, DeviceLog>> = RefCell::default();
}

/// Puts a device into its user's log, or changes it there.
fn log(user: UserId, device: LoggedDevice) {
    LOGS.with_borrow_mut(|logs| {
        let log = logs.entry(user).or_default();
        log.version += 1;
        log.devices.insert(device.id, device);
    });
}

/// A device and its feed.
struct Phone {
    core: Core,
    file: PathBuf,
    _folder: tempfile::TempDir,
    dies: Arc<AtomicBool>,
    cursor: u8,
}

impl Phone {
    /// A device that its user's log has.
    fn new(user: u8) -> Self {
        let phone = Self::ghost(user);
        log(phone.who().0, phone.logged(true));
        phone
    }

    /// A device that says it is the user's, and no log has it.
    fn ghost(user: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("device.sqlite");
        let dies = Arc::new(AtomicBool::new(false));
        let mut core =
            Core::create(&file, 1, Durability::Process, Clock::system(), failpoint(&dies, Point::BeforeCommit))
                .unwrap();
        let (tenant, user) = (TenantId::from_bytes([9; 16]), UserId::from_bytes([user; 16]));
        core.learn_account(Account { tenant, user }).unwrap();
        Self { core, file, _folder: folder, dies, cursor: 0 }
    }

    /// The process died; the file is opened by another one.
    fn reopen(self) -> Self {
        let Self { core, file, _folder, dies, cursor } = self;
        drop(core);
        dies.store(false, Ordering::Relaxed);
        let core = Core::open(&file, Durability::Process, Clock::system(), Failpoints::none()).unwrap();
        Self { core, file, _folder, dies, cursor }
    }

    fn who(&self) -> (UserId, DeviceId) {
        (self.core.identity.account.unwrap().user, self.core.identity.device)
    }

    /// As its user's log has it, or would.
    fn logged(&self, active: bool) -> LoggedDevice {
        let me = &self.core.identity;
        let mls_keys = vec![(self.who().0, me.suite, me.signer.to_public_vec())];
        LoggedDevice { id: me.device, auth_key: me.auth.jwk(), mls_keys, active }
    }

    /// Reads all logs.
    fn learn(&mut self) {
        let logs = LOGS.with_borrow(Clone::clone);
        let save = |step: &mut crate::core::Step<'_>| {
            logs.iter().try_for_each(|(user, log)| crate::store::device_logs::save(&step.tx, *user, log))
        };
        // A phone whose failpoint is about to stop it has read them before.
        if !self.dies.load(Ordering::Relaxed) {
            self.core.step(save).unwrap();
        }
    }

    fn feed(&mut self, body: Body) -> Result<Applied, Error> {
        self.learn();
        let event = Prepared { cursor: vec![self.cursor + 1], previous: vec![self.cursor], body };
        let applied = self.core.step(|step| step.apply(&[event]))?.value;
        self.cursor += u8::try_from(applied.events).unwrap();
        Ok(applied)
    }

    fn get(&mut self, message: &v1::Message) -> Applied {
        self.feed(Body::Message(Sequenced::parse(message).unwrap())).unwrap()
    }

    fn package(&mut self) -> KeyPackage {
        let bytes = self.core.step(|step| step.make_key_package(false)).unwrap().value;
        let MlsMessageBodyIn::KeyPackage(package) =
            MlsMessageIn::tls_deserialize_exact_bytes(&bytes).unwrap().extract()
        else {
            panic!("a key package")
        };
        let provider = crate::mls::provider::Provider::new(self.core.connection());
        package.validate(provider.crypto(), ProtocolVersion::Mls10).unwrap()
    }

    fn create(&mut self) -> Server {
        let new = NewConversation::group("Ward 7", []);
        let (id, _) = self.core.step(|step| step.start_creating(&new, &[])).unwrap().value;
        let Request::Create(request) = self.request(id) else { panic!("a Create") };
        self.core.step(|step| step.created(id)).unwrap();
        Server { id, chain: chain_start(id), messages: Vec::new(), state: request.group_state.unwrap() }
    }

    fn request(&self, id: ConversationId) -> Request {
        requests::load(self.core.connection(), id).unwrap().unwrap().request
    }

    fn commit_request(&self, id: ConversationId) -> v1::CommitRequest {
        match self.request(id) {
            Request::Commit(request) | Request::External(request) => request,
            Request::Create(_) => panic!("a commit"),
        }
    }

    /// Starts adding devices.
    fn start_adding(&mut self, id: ConversationId, others: &mut [&mut Self]) -> (MessageId, v1::CommitRequest) {
        let claimed: BTreeMap<_, _> = others.iter_mut().map(|other| (other.who(), other.package())).collect();
        let started = self.core.step(|step| step.start_change(id, |step, group, row| step.adds(group, row, &claimed)));
        let Some(Started::Commit(message)) = started.unwrap().value else { panic!("a commit") };
        (message, self.commit_request(id))
    }

    /// Adds devices; all of them, and this one, take what the server makes of it.
    fn add(&mut self, server: &mut Server, others: &mut [&mut Self]) {
        let (_, request) = self.start_adding(server.id, others);
        let message = server.commit(&request);
        self.get(&message);
        for other in others {
            other.feed(server.welcome(&request)).unwrap();
        }
    }

    fn queue(&mut self, id: ConversationId, text: &str) -> crate::content::ContentId {
        self.core.step(|step| step.queue(id, &Outgoing::text(text))).unwrap().value
    }

    /// Seals what is next.
    fn next_send(&mut self, id: ConversationId) -> (MessageId, v1::Sealed) {
        let work = self.core.step(|step| step.next_work(id)).unwrap().value;
        let Work::Send { message, sealed, .. } = work else { panic!("something to send") };
        (message, v1::Sealed { envelope: sealed.envelope, mls_message: sealed.mls_message })
    }

    fn say(&mut self, server: &mut Server, text: &str) -> v1::Message {
        self.queue(server.id, text);
        let (_, sealed) = self.next_send(server.id);
        server.sequence(&sealed)
    }

    fn texts(&self, id: ConversationId) -> Vec<String> {
        self.core.history(id).unwrap().iter().filter_map(|entry| entry.text().map(str::to_owned)).collect()
    }

    fn status(&self, id: ConversationId) -> ConversationStatus {
        self.core.conversation(id).unwrap().unwrap().status
    }

    fn epoch(&self, id: ConversationId) -> Option<u64> {
        self.core.conversation(id).unwrap().unwrap().epoch
    }
}

fn failpoint(dies: &Arc<AtomicBool>, at: Point) -> Failpoints {
    let dies = Arc::clone(dies);
    Failpoints::new(move |point| point == at && dies.load(Ordering::Relaxed))
}

/// Two devices in a conversation.
fn pair() -> (Server, Phone, Phone) {
    let (mut ann, mut bob) = (Phone::new(1), Phone::new(2));
    let mut server = ann.create();
    ann.add(&mut server, &mut [&mut bob]);
    (server, ann, bob)
}

#[test]
fn what_one_says_the_other_reads_and_both_have_one_history() {
    let (mut server, mut ann, mut bob) = pair();
    assert_eq!(bob.status(server.id), ConversationStatus::Active);
    assert_eq!(bob.core.conversation(server.id).unwrap().unwrap().title, "Ward 7");
    for _ in 0..3 {
        let message = ann.say(&mut server, "from ann");
        ann.get(&message);
        bob.get(&message);
        let message = bob.say(&mut server, "from bob");
        bob.get(&message);
        ann.get(&message);
    }
    assert_eq!(ann.texts(server.id).len(), 6);
    assert_eq!(ann.texts(server.id), bob.texts(server.id));
    let chain = |phone: &Phone| phone.core.history(server.id).unwrap().last().unwrap().chain;
    assert_eq!(chain(&ann), chain(&bob));
    assert_eq!(ann.core.unsequenced().unwrap(), 0);
}

#[test]
fn dying_between_decrypt_and_save_loses_nothing() {
    let (mut server, mut ann, mut bob) = pair();
    let message = ann.say(&mut server, "once");
    bob.dies.store(true, Ordering::Relaxed);
    let died = bob.feed(Body::Message(Sequenced::parse(&message).unwrap()));
    assert!(matches!(died, Err(Error::Stopped)));
    assert!(matches!(bob.core.step(|_| Ok(())), Err(Error::Stopped)), "a stopped device writes nothing more");

    let mut bob = bob.reopen();
    assert!(bob.texts(server.id).is_empty());
    bob.get(&message);
    assert_eq!(bob.texts(server.id), ["once"]);
}

#[test]
fn dying_between_seal_and_save_sends_once_under_one_content() {
    let (mut server, mut ann, mut bob) = pair();
    ann.queue(server.id, "kept");
    ann.dies.store(true, Ordering::Relaxed);
    assert!(matches!(ann.core.step(|step| step.next_work(server.id).map(|_| ())), Err(Error::Stopped)));
    let mut ann = ann.reopen();
    let (first, sealed) = ann.next_send(server.id);
    let ann = ann.reopen();
    let mut ann = ann;
    let (again, repeated) = ann.next_send(server.id);
    assert_eq!((first, sealed.clone()), (again, repeated), "what was saved is sent again with the same bytes");
    let message = server.sequence(&sealed);
    bob.get(&message);
    ann.get(&message);
    assert_eq!(bob.texts(server.id), ["kept"]);
    assert_eq!(ann.texts(server.id), ["kept"], "one's own plaintext is kept, for it never decrypts");
}

#[test]
fn dying_between_send_and_answer_is_known_afterwards() {
    let (server, mut ann, _bob) = pair();
    ann.queue(server.id, "once");
    let uncertain = |phone: &mut Phone| match phone.core.step(|step| step.next_work(server.id)).unwrap().value {
        Work::Send { uncertain, .. } => uncertain,
        _ => panic!("something to send"),
    };
    assert!(!uncertain(&mut ann), "nothing was tried before");
    let mut ann = ann.reopen();
    assert!(uncertain(&mut ann));
}

#[test]
fn a_welcome_is_enough_to_join_and_the_title_comes_with_a_later_epoch() {
    let (mut ann, mut bob, mut cat) = (Phone::new(1), Phone::new(2), Phone::new(3));
    let mut server = ann.create();
    let (_, request) = ann.start_adding(server.id, &mut [&mut bob]);
    ann.get(&server.commit(&request));
    let Body::Welcome(welcome, Some(early)) = server.welcome(&request) else { panic!("a Welcome") };
    ann.add(&mut server, &mut [&mut cat]);
    bob.feed(Body::Welcome(welcome, None)).unwrap();
    assert_eq!((bob.status(server.id), bob.epoch(server.id)), (ConversationStatus::Active, Some(1)));
    bob.core.step(|step| step.learn_title(server.id, &server.state)).unwrap();
    assert_eq!(bob.core.conversation(server.id).unwrap().unwrap().title, "", "of another epoch than the device is in");
    bob.get(&server.messages.last().unwrap().clone());
    bob.core.step(|step| step.learn_title(server.id, &early)).unwrap();
    assert_eq!(crate::store::conversations::untitled(bob.core.connection()).unwrap(), [server.id]);
    bob.core.step(|step| step.learn_title(server.id, &server.state)).unwrap();
    assert_eq!(bob.core.conversation(server.id).unwrap().unwrap().title, "Ward 7");
    assert!(crate::store::conversations::untitled(bob.core.connection()).unwrap().is_empty());
    let info = &server.state.group_info;
    assert!(info.len() < server.state.ratchet_tree.len() + 500, "the GroupInfo does not carry the tree again");
}

#[test]
fn repeats_are_dropped_by_sequence_and_by_content() {
    let (mut server, mut ann, mut bob) = pair();
    let message = ann.say(&mut server, "one");
    bob.get(&message);
    bob.get(&message);
    assert_eq!(bob.texts(server.id), ["one"]);

    // The same content under another message id, after a loss that the sender only believed in.
    let content = bob.core.history(server.id).unwrap()[0].content().unwrap().0;
    ann.get(&message);
    let plain = crate::content::encode(
        content,
        wardline_domain::Timestamp::default(),
        &crate::content::Body::Text { text: "one".into(), reply_to: None },
    )
    .unwrap();
    ann.core.step(|step| crate::store::outbox::queue(&step.tx, server.id, &plain, &Outgoing::text("one"))).unwrap();
    let (_, sealed) = ann.next_send(server.id);
    let repeat = server.sequence(&sealed);
    bob.get(&repeat);
    assert_eq!(bob.texts(server.id), ["one"]);
    let last = bob.core.history(server.id).unwrap().pop().unwrap();
    assert_eq!((last.sequence, last.kind), (3, HistoryKind::Repeat { id: content }));
}

#[test]
fn of_two_commits_one_wins_and_the_loser_starts_again_from_it() {
    let (mut server, mut ann, mut bob) = pair();
    let (mut cat, mut dan) = (Phone::new(3), Phone::new(4));
    let (_, by_ann) = ann.start_adding(server.id, &mut [&mut cat]);
    let (lost, _) = bob.start_adding(server.id, &mut [&mut dan]);
    assert_eq!(
        (ann.epoch(server.id), bob.epoch(server.id)),
        (Some(1), Some(1)),
        "nobody merges before the feed says so"
    );

    let message = server.commit(&by_ann);
    ann.get(&message);
    bob.get(&message);
    cat.feed(server.welcome(&by_ann)).unwrap();
    assert_eq!(bob.core.lost_commits.get(&lost), Some(&Reason::EpochConflict));
    bob.add(&mut server, &mut [&mut dan]);
    let second = server.messages.last().unwrap().clone();
    ann.get(&second);
    cat.get(&second);
    assert_eq!(ann.core.members(server.id).unwrap().len(), 4);

    let hello = dan.say(&mut server, "hello");
    for phone in [&mut ann, &mut bob, &mut cat] {
        phone.get(&hello);
        assert_eq!(phone.texts(server.id), ["hello"]);
    }
}

#[test]
fn content_of_an_epoch_that_ended_is_sealed_again_with_the_same_content_id() {
    let (mut server, mut ann, mut bob) = pair();
    let mut cat = Phone::new(3);
    let content = bob.queue(server.id, "late");
    let (stale, _) = bob.next_send(server.id);
    ann.add(&mut server, &mut [&mut cat]);
    bob.get(&server.messages.last().unwrap().clone());
    let (fresh, sealed) = bob.next_send(server.id);
    assert!(fresh > stale, "ids of a device rise");
    let message = server.sequence(&sealed);
    for phone in [&mut ann, &mut bob, &mut cat] {
        phone.get(&message);
        assert_eq!(phone.texts(server.id), ["late"]);
        assert_eq!(phone.core.history(server.id).unwrap().last().unwrap().content().unwrap().0, content);
    }
    assert_eq!(bob.core.message_state(server.id, content).unwrap(), Some(MessageState::Sequenced(3)));
}

#[test]
fn refused_as_stale_it_waits_for_the_commit() {
    let (server, _ann, mut bob) = pair();
    let content = bob.queue(server.id, "early");
    let (message, _) = bob.next_send(server.id);
    bob.core.step(|step| step.content_refused(server.id, message, Reason::StaleEpoch)).unwrap();
    assert!(matches!(bob.core.step(|step| step.next_work(server.id)).unwrap().value, Work::Look));
    assert_eq!(bob.core.message_state(server.id, content).unwrap(), Some(MessageState::Queued));
    bob.core.step(|step| step.content_refused(server.id, message, Reason::Expired)).unwrap();
    assert_eq!(bob.core.message_state(server.id, content).unwrap(), Some(MessageState::Failed));
}

#[test]
fn removals_that_wait_are_committed_before_content() {
    let (mut server, mut ann, mut bob) = pair();
    let mut cat = Phone::new(3);
    ann.add(&mut server, &mut [&mut cat]);
    bob.get(&server.messages.last().unwrap().clone());
    let (user, device) = cat.who();
    let changed = v1::ConversationChanged {
        conversation_id: server.id.to_string(),
        removal_pending: vec![v1::DeviceRef { user_id: user.to_string(), device_id: device.to_string() }],
    };
    bob.feed(Body::ConversationChanged(changed.clone())).unwrap();
    bob.queue(server.id, "without cat");
    assert!(matches!(bob.core.step(|step| step.next_work(server.id)).unwrap().value, Work::Remove));
    bob.core.step(|step| step.commit_removals(server.id)).unwrap();
    let message = server.commit(&bob.commit_request(server.id));
    bob.get(&message);
    ann.get(&message);
    let (_, sealed) = bob.next_send(server.id);
    let text = server.sequence(&sealed);
    ann.get(&text);
    assert_eq!(ann.texts(server.id), ["without cat"]);
    assert_eq!(ann.core.members(server.id).unwrap().len(), 2);

    cat.feed(Body::ConversationChanged(changed)).unwrap();
    assert_eq!(cat.status(server.id), ConversationStatus::Removed);
}

#[test]
fn a_device_without_its_group_rejoins_and_records_what_it_missed() {
    let (mut server, mut ann, mut bob) = pair();
    bob.core.step(|step| step.broken(server.id)).unwrap();
    let missed = ann.say(&mut server, "missed");
    ann.get(&missed);
    assert!(matches!(bob.core.step(|step| step.next_work(server.id)).unwrap().value, Work::Rejoin));
    bob.core.step(|step| step.commit_external(server.id, &server.state)).unwrap();
    assert_eq!(bob.status(server.id), ConversationStatus::Joining);
    bob.get(&missed);
    let mut bob = bob.reopen();
    let joined = server.commit(&bob.commit_request(server.id));
    ann.get(&joined);
    bob.get(&joined);
    assert_eq!(bob.status(server.id), ConversationStatus::Active);
    assert_eq!(ann.core.members(server.id).unwrap().len(), 2, "the old leaf is gone");
    assert_eq!(bob.core.conversation(server.id).unwrap().unwrap().skipped, [(2, 2)]);

    let after = ann.say(&mut server, "after");
    bob.get(&after);
    let back = bob.say(&mut server, "back");
    ann.get(&after);
    ann.get(&back);
    bob.get(&back);
    assert_eq!(bob.texts(server.id), ["after", "back"]);
    assert_eq!(ann.texts(server.id), ["missed", "after", "back"]);
}

#[test]
fn an_external_commit_that_lost_is_made_again() {
    let (mut server, mut ann, mut bob) = pair();
    let mut cat = Phone::new(3);
    bob.core.step(|step| step.broken(server.id)).unwrap();
    bob.core.step(|step| step.commit_external(server.id, &server.state)).unwrap();
    let message = requests::load(bob.core.connection(), server.id).unwrap().unwrap().message;
    ann.add(&mut server, &mut [&mut cat]);
    bob.get(&server.messages.last().unwrap().clone());
    bob.core.step(|step| step.abandon(server.id, message, Reason::EpochConflict)).unwrap();
    assert_eq!(bob.status(server.id), ConversationStatus::Broken);
    bob.core.step(|step| step.commit_external(server.id, &server.state)).unwrap();
    let joined = server.commit(&bob.commit_request(server.id));
    for phone in [&mut ann, &mut bob, &mut cat] {
        phone.get(&joined);
        assert_eq!(phone.epoch(server.id), Some(3));
    }
}

#[test]
fn a_gap_in_a_conversation_or_in_the_feed_stops_the_batch() {
    let (mut server, mut ann, mut bob) = pair();
    let first = ann.say(&mut server, "first");
    ann.get(&first);
    let second = ann.say(&mut server, "second");
    assert_eq!(bob.get(&second).stopped, Some(Stopped::Missing(server.id)));
    bob.core.step(|step| step.take(&Sequenced::parse(&first).unwrap())).unwrap();
    assert_eq!(bob.get(&second).stopped, None);
    assert_eq!(bob.texts(server.id), ["first", "second"]);

    let event = Prepared { cursor: vec![99], previous: vec![98], body: Body::Nothing };
    let applied = bob.core.step(|step| step.apply(&[event])).unwrap().value;
    assert_eq!((applied.events, applied.stopped), (0, Some(Stopped::FeedGap)));
}

#[test]
fn another_history_than_before_is_not_believed() {
    let (mut server, mut ann, mut bob) = pair();
    let mut message = ann.say(&mut server, "true");
    message.chain_hash = vec![0; 32].into();
    let forged = Sequenced::parse(&message).unwrap();
    assert!(matches!(bob.feed(Body::Message(forged)), Err(Error::Untrusted(_))));
    assert!(bob.texts(server.id).is_empty());
}

#[test]
fn an_envelope_that_the_mls_message_does_not_carry_is_not_shown() {
    let (mut server, mut ann, mut bob) = pair();
    ann.queue(server.id, "urgent?");
    let (_, mut sealed) = ann.next_send(server.id);
    let mut envelope = wardline_proto::convert::envelope::decode(&sealed.envelope).unwrap();
    envelope.urgency = wardline_domain::envelope::Urgency::Stat;
    sealed.envelope = wardline_proto::convert::envelope::encode(&envelope);
    let message = server.sequence(&sealed);
    bob.get(&message);
    assert_eq!(bob.core.history(server.id).unwrap().pop().unwrap().kind, HistoryKind::Unreadable);
}

#[test]
fn watermarks_move_forward_only_and_decide_what_is_delivered() {
    let (mut server, mut ann, bob) = pair();
    let content = ann.queue(server.id, "read me");
    let (_, sealed) = ann.next_send(server.id);
    let message = server.sequence(&sealed);
    ann.get(&message);
    let (user, device) = bob.who();
    let mark = |delivered, read| v1::Watermark {
        conversation_id: server.id.to_string(),
        user_id: user.to_string(),
        device_id: device.to_string(),
        delivered,
        read,
        skipped: Vec::new(),
        when: None,
    };
    let state = |ann: &Phone| ann.core.message_state(server.id, content).unwrap().unwrap();
    assert_eq!(state(&ann), MessageState::Sequenced(2));
    ann.core.step(|step| step.merge_watermarks(&[mark(2, 0)])).unwrap();
    assert_eq!(state(&ann), MessageState::Delivered(2));
    ann.core.step(|step| step.merge_watermarks(&[mark(2, 2), mark(1, 1)])).unwrap();
    assert_eq!(state(&ann), MessageState::Read(2));
}

#[test]
fn the_file_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let phone = Phone::new(1);
    assert_eq!(std::fs::metadata(&phone.file).unwrap().permissions().mode() & 0o777, 0o600);
}
