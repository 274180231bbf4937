//! Whoever controls the server may bring any leaf before a device; only those that device logs vouch for get in.

use openmls::prelude::{CredentialWithKey, NewSignerBundle};
use openmls_basic_credential::SignatureKeyPair;
use wardline_domain::envelope::{Epoch, MessageKind};
use wardline_proto::convert::envelope;

use super::super::take::unknown;
use super::*;
use crate::mls::{config, group};
use crate::view::Incoming;

impl Phone {
    /// Takes a message; answers what was told.
    fn told(&mut self, body: Body) -> Vec<Incoming> {
        self.learn();
        let event = Prepared { cursor: vec![self.cursor + 1], previous: vec![self.cursor], body };
        let stepped = self.core.step(|step| step.apply(&[event])).unwrap();
        assert_eq!(stepped.value.events, 1, "the feed goes on whatever came");
        self.cursor += 1;
        stepped.told
    }

    /// Makes an external commit into the group as the server has it, knowing nothing of it but its id.
    fn intrude(&mut self, server: &Server) -> v1::CommitRequest {
        self.learn();
        self.core.step(|step| crate::store::conversations::save(&step.tx, &unknown(server.id, 1))).unwrap();
        self.core.step(|step| step.commit_external(server.id, &server.state)).unwrap();
        self.commit_request(server.id)
    }

    /// Asserts that the message was not merged, that the stranger was named, and that nothing is sealed for it any more.
    fn refuses(&mut self, server: &Server, body: Body, stranger: (UserId, DeviceId)) {
        let told = self.told(body);
        let named = told.iter().any(|told| {
            matches!(told, Incoming::Untrusted { conversation, user, device }
                if *conversation == server.id && (*user, *device) == stranger)
        });
        assert!(named, "{told:?}");
        assert_eq!((self.status(server.id), self.epoch(server.id)), (ConversationStatus::Untrusted, None));
        let queued = self.core.step(|step| step.queue(server.id, &Outgoing::text("to whom?")));
        assert!(matches!(queued, Err(Error::Untrusted(_))));
        assert!(matches!(self.core.step(|step| step.next_work(server.id)).unwrap().value, Work::Nothing));
    }
}

fn message(message: &v1::Message) -> Body {
    Body::Message(Sequenced::parse(message).unwrap())
}

fn added(told: &[Incoming]) -> Vec<(UserId, DeviceId)> {
    let added = told.iter().filter_map(|told| match told {
        Incoming::MembersChanged { added, .. } => Some(added.clone()),
        _ => None,
    });
    added.flatten().collect()
}

#[test]
fn an_external_commit_by_a_key_that_no_log_has_is_refused_and_others_go_on() {
    let (mut server, mut ann, mut bob) = pair();
    let mut other = ann.create();
    ann.add(&mut other, &mut [&mut bob]);
    let mut ghost = Phone::ghost(1);
    let forged = server.commit(&ghost.intrude(&server));
    bob.refuses(&server, message(&forged), ghost.who());
    ann.refuses(&server, message(&forged), ghost.who());

    // What comes after it in the conversation is passed over; the other conversation is as before.
    let more = ghost.core.step(|step| step.broken(server.id)).map(|_| server.commit(&ghost.intrude(&server))).unwrap();
    assert!(matches!(bob.told(message(&more))[..], [Incoming::Skipped { first: 3, last: 3, .. }]));
    let hello = ann.say(&mut other, "hello");
    bob.get(&hello);
    assert_eq!(bob.texts(other.id), ["hello"]);
}

#[test]
fn a_key_other_than_the_logs_is_refused_whoever_it_claims_to_be() {
    let (mut server, ann, mut bob) = pair();
    // The device is known, the key is not its own.
    let mut ghost = Phone::ghost(1);
    log(ghost.who().0, LoggedDevice { id: ghost.who().1, ..ann.logged(true) });
    let forged = server.commit(&ghost.intrude(&server));
    bob.refuses(&server, message(&forged), ghost.who());
}

#[test]
fn a_device_of_another_tenant_is_refused() {
    let (mut server, mut ann, mut bob) = pair();
    let mut stranger = Phone::new(3);
    stranger.learn();
    stranger.core.identity.account.as_mut().unwrap().tenant = TenantId::from_bytes([8; 16]);
    let built = stranger.core.step(|step| {
        crate::store::conversations::save(&step.tx, &unknown(server.id, 1))?;
        step.commit_external(server.id, &server.state)
    });
    assert!(built.is_ok());
    assert_eq!(stranger.status(server.id), ConversationStatus::Untrusted, "nor does it believe the others");

    let (_, request) = bob.start_adding(server.id, &mut [&mut stranger]);
    let forged = server.commit(&request);
    ann.refuses(&server, message(&forged), stranger.who());
}

#[test]
fn an_add_of_a_key_that_no_log_has_is_refused() {
    let (mut server, mut ann, mut bob) = pair();
    let mut ghost = Phone::ghost(2);
    let (_, request) = ann.start_adding(server.id, &mut [&mut ghost]);
    let forged = server.commit(&request);
    bob.refuses(&server, message(&forged), ghost.who());
}

#[test]
fn a_revoked_device_may_stay_until_it_is_removed_and_may_not_come_in() {
    let (mut server, mut ann, mut bob) = pair();
    let (mut cat, mut dan) = (Phone::new(3), Phone::new(4));
    ann.add(&mut server, &mut [&mut cat]);
    bob.get(&server.messages.last().unwrap().clone());
    log(cat.who().0, cat.logged(false));
    ann.add(&mut server, &mut [&mut dan]);
    assert_eq!(dan.status(server.id), ConversationStatus::Active, "the tree has a revoked leaf still");
    bob.get(&server.messages.last().unwrap().clone());
    assert_eq!(bob.status(server.id), ConversationStatus::Active);

    cat.core.step(|step| step.broken(server.id)).unwrap();
    cat.core.step(|step| step.commit_external(server.id, &server.state)).unwrap();
    let again = server.commit(&cat.commit_request(server.id));
    bob.refuses(&server, message(&again), cat.who());
}

#[test]
fn a_welcome_into_a_group_with_a_ghost_is_refused() {
    let (mut server, mut ann, _bob) = pair();
    let (mut ghost, mut cat) = (Phone::ghost(2), Phone::new(3));
    ann.add(&mut server, &mut [&mut ghost]);
    let (_, request) = ann.start_adding(server.id, &mut [&mut cat]);
    server.commit(&request);
    let told_of = ghost.who();
    cat.refuses(&server, server.welcome(&request), told_of);
}

#[test]
fn one_does_not_rejoin_a_group_with_a_ghost_and_may_once_it_is_gone() {
    let (mut server, mut ann, mut bob) = pair();
    let mut ghost = Phone::ghost(2);
    ann.add(&mut server, &mut [&mut ghost]);
    bob.get(&server.messages.last().unwrap().clone());
    assert_eq!(bob.status(server.id), ConversationStatus::Untrusted);
    let told = bob.core.step(|step| {
        step.broken(server.id)?;
        step.commit_external(server.id, &server.state)
    });
    assert!(matches!(told.unwrap().told[..], [Incoming::Untrusted { device, .. }] if device == ghost.who().1));
    assert_eq!(bob.status(server.id), ConversationStatus::Untrusted);
    assert!(requests::load(bob.core.connection(), server.id).unwrap().is_none(), "no commit goes out");
    assert!(
        group::load(&crate::mls::provider::Provider::new(bob.core.connection()), server.id, Default::default())
            .unwrap()
            .is_none()
    );

    let gone = ghost.who();
    let picks = move |user, device| (user, device) == gone;
    ann.core.step(|step| step.start_change(server.id, |step, group, row| step.removes(group, row, &picks))).unwrap();
    let removal = server.commit(&ann.commit_request(server.id));
    ann.get(&removal);
    bob.get(&removal);
    bob.core.step(|step| step.broken(server.id)).unwrap();
    bob.core.step(|step| step.commit_external(server.id, &server.state)).unwrap();
    let back = server.commit(&bob.commit_request(server.id));
    assert_eq!(added(&ann.told(message(&back))), [bob.who()], "whoever joins by itself is told of");
    bob.get(&back);
    let hello = bob.say(&mut server, "hello");
    ann.get(&hello);
    assert_eq!(ann.texts(server.id), ["hello"]);
}

#[test]
fn a_member_may_not_change_its_key() {
    let (mut server, mut ann, mut bob) = pair();
    let row = crate::store::conversations::load(ann.core.connection(), server.id).unwrap().unwrap();
    let forged = ann.core.step(|step| {
        let mut group = step.group(&row)?;
        let clear = step.envelope(&row, Epoch(group.epoch().as_u64()), MessageKind::Commit)?;
        let bytes = envelope::encode(&clear);
        group.set_aad(Digest::of(&bytes).as_bytes().to_vec());
        let signer = SignatureKeyPair::new(config::suite(1)?.signature_algorithm()).unwrap();
        let credential = config::credential(step.me)?.credential;
        let credential_with_key = CredentialWithKey { credential, signature_key: signer.to_public_vec().into() };
        let provider = step.provider();
        let bundle = group
            .commit_builder()
            .load_psks(provider.storage())
            .unwrap()
            .build_with_new_signer(
                provider.rand(),
                provider.crypto(),
                &step.me.signer,
                NewSignerBundle { signer: &signer, credential_with_key },
                |_| true,
            )
            .unwrap()
            .stage_commit(&provider)
            .unwrap();
        Ok(v1::Sealed { envelope: bytes, mls_message: group::encode(bundle.commit())? })
    });
    let forged = server.sequence(&forged.unwrap().value);
    bob.refuses(&server, message(&forged), ann.who());
}
