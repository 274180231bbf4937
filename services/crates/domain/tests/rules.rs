//! Each rule of the state machine by itself: the record that keeps it passes, the one that breaks it gets the verdict.

mod support;

use support::forge::{self, Proposal};
use support::*;
use wardline_domain::conversation::*;
use wardline_domain::envelope::{Epoch, Generation, MessageKind, Sequence};
use wardline_domain::record::{Body, Control, ConversationKind, MembershipRule, Submission};
use wardline_domain::roster::{Recipient, Role};
use wardline_domain::{ConversationId, Digest, MessageId, Position, TenantId};

#[track_caller]
fn sequenced(outcome: Outcome) -> Sequenced {
    match outcome {
        Outcome::Sequenced(sequenced) => *sequenced,
        other => panic!("not sequenced: {other:?}"),
    }
}

#[track_caller]
fn effects(outcome: Outcome) -> CommitEffects {
    sequenced(outcome).commit.expect("it was a commit")
}

#[track_caller]
fn rejected(outcome: &Outcome) -> RejectReason {
    match outcome {
        Outcome::Rejected(rejection) => rejection.reason,
        other => panic!("not rejected: {other:?}"),
    }
}

fn head(world: &World) -> &Head {
    world.conversation.head.as_ref().expect("created")
}

fn known(draft: &Draft, position: u64) -> Prior {
    let sealed = draft.build().sealed;
    let payload = payload_digest(Digest::of(&sealed.envelope), Digest::of(&sealed.mls_message));
    Prior::Known(PriorOutcome { position: Position::from_u64(position), payload })
}

fn body(draft: &Draft) -> Body {
    Body::Submission(Box::new(draft.build()))
}

fn recipients(devices: &[u16]) -> Vec<Recipient> {
    let mut found: Vec<Recipient> = Vec::new();
    for number in devices {
        match found.iter_mut().find(|recipient| recipient.user == user_of(*number)) {
            Some(recipient) => recipient.devices.push(device(*number)),
            None => found.push(Recipient { user: user_of(*number), devices: vec![device(*number)] }),
        }
    }
    found
}

/// Feeds a draft whose submission is changed after it was built.
fn submit_with(world: &mut World, draft: &Draft, change: impl FnOnce(&mut Submission)) -> Outcome {
    let mut submission = draft.build();
    change(&mut submission);
    world.feed(Prior::None, Body::Submission(Box::new(submission)))
}

/// Feeds a draft whose MLS message is changed before it is written.
fn forge_with(world: &mut World, draft: &Draft, change: impl FnOnce(&mut forge::Commit)) -> Outcome {
    let mut forged = draft.forged();
    change(&mut forged);
    submit_with(world, draft, |submission| submission.sealed.mls_message = forged.encode())
}

#[test]
fn a_conversation_starts_with_its_creator_as_admin() {
    let world = World::new();
    let head = head(&world);
    assert_eq!((head.sequence, head.chain), (Sequence(0), chain_start(CONVERSATION)));
    assert_eq!((head.generation, head.epoch, head.epoch_winner), (Generation(0), Epoch(0), None));
    assert_eq!((head.members_version, world.conversation.roster.version()), (1, 1));
    let (index, leaf) = world.conversation.roster.leaf_of(user(1), device(0x10)).expect("the creator");
    assert_eq!((index, leaf.role, leaf.joined, leaf.removal_pending), (0, Role::Admin, Epoch(0), false));
    assert_eq!(leaf.key_hash, key_hash(0x10));
}

#[test]
fn a_create_of_a_later_epoch_or_generation_creates_nothing() {
    for (generation, epoch) in [(1, 0), (0, 1)] {
        let mut conversation = Conversation::absent(CONVERSATION);
        let mut bad = create(0x10);
        bad.group_state.generation = Generation(generation);
        bad.group_state.epoch = Epoch(epoch);
        let outcome = apply(&mut conversation, Prior::None, &record(1, START_MILLIS, Body::Create(bad)));
        assert_eq!((outcome, conversation.head), (Outcome::Ignored, None));
    }
}

#[test]
fn a_repeated_create_is_told_from_another_by_its_content() {
    let mut world = World::new();
    assert_eq!(world.feed(Prior::None, Body::Create(create(0x10))), Outcome::CreateRepeated { same: true });
    let mut others = vec![create(0x11), create(0x20)];
    others.extend((0..6).map(|change| {
        let mut other = create(0x10);
        match change {
            0 => other.kind = ConversationKind::Direct,
            1 => other.suite = 2,
            2 => other.policy.retention_days = 1,
            3 => other.tenant = TenantId::from_bytes([1; 16]),
            4 => other.key_hash = key_hash(0x11),
            _ => other.group_state.ratchet_tree = blob("other"),
        }
        other
    }));
    for other in others {
        assert_eq!(world.feed(Prior::None, Body::Create(other)), Outcome::CreateRepeated { same: false });
    }
    assert_eq!(head(&world).last, Position::from_u64(world.offset));
}

#[test]
fn records_of_other_conversations_change_nothing() {
    let mut world = World::new();
    let before = world.conversation.clone();
    let used = world.content(0x10);
    world.submit(&used);
    let before = Conversation { head: world.conversation.head.clone(), ..before };
    let mut other = record(9, world.millis, body(&used));
    other.conversation = ConversationId::from_bytes([1; 16]);
    assert_eq!(world.conversation.lookup(&other), None);
    assert_eq!(apply(&mut world.conversation, Prior::None, &other), Outcome::Ignored);
    assert_eq!(world.conversation, before);
    // An envelope that names another conversation than its record.
    let draft = world.content(0x10);
    let foreign = |submission: &mut Submission| submission.envelope.conversation = ConversationId::from_bytes([1; 16]);
    assert_eq!(submit_with(&mut world, &draft, foreign), Outcome::Ignored);
    assert_eq!(head(&world).sequence, Sequence(1));
    let mut submission = used.build();
    foreign(&mut submission);
    let again = record(9, world.millis, Body::Submission(Box::new(submission)));
    assert_eq!(world.conversation.lookup(&again), None);
}

#[test]
fn what_is_at_or_below_the_head_is_replayed_without_change() {
    let mut world = World::new();
    let draft = world.content(0x10);
    world.submit(&draft);
    let before = world.conversation.clone();
    for offset in [0, 1, 2] {
        let old = record(offset, world.millis, body(&world.content(0x10)));
        assert_eq!(world.conversation.lookup(&old), None);
        assert_eq!(apply(&mut world.conversation, Prior::None, &old), Outcome::Replayed);
    }
    assert_eq!(world.conversation, before);
}

#[test]
fn content_takes_the_next_sequence_and_extends_the_chain() {
    let mut world = World::new();
    world.add(&[0x20, 0x21]);
    for number in 2..5 {
        let draft = world.content(0x20);
        let (previous, sealed) = (head(&world).chain, draft.build().sealed);
        let (envelope, message) = (Digest::of(&sealed.envelope), Digest::of(&sealed.mls_message));
        let done = sequenced(world.submit(&draft));
        assert_eq!(done.sequence, Sequence(number));
        assert_eq!(done.chain, chain_next(previous, Sequence(number), envelope, message));
        assert_eq!(done.payload, payload_digest(envelope, message));
        assert_eq!(done.audience.to_vec(), recipients(&[0x10, 0x20, 0x21]));
        assert_eq!(done.commit, None);
        assert_eq!((head(&world).sequence, head(&world).chain), (done.sequence, done.chain));
        assert_eq!(head(&world).last_digest, Digest::of(&world.offset.to_be_bytes()));
    }
}

#[test]
fn content_of_another_epoch_or_generation_is_stale() {
    let mut world = World::new();
    world.add(&[0x20]);
    for (generation, epoch) in [(0, 0), (0, 2), (1, 1), (1, 0)] {
        let draft = Draft { generation, epoch, ..world.content(0x10) };
        let outcome = world.submit(&draft);
        assert_eq!(rejected(&outcome), RejectReason::StaleEpoch);
        let Outcome::Rejected(rejection) = outcome else { unreachable!("checked above") };
        assert_eq!((rejection.generation, rejection.epoch, rejection.winner), (Generation(0), Epoch(1), None));
    }
}

#[test]
fn a_late_commit_conflicts_and_the_latest_winner_is_named() {
    let mut world = World::new();
    let (first, second) = (world.commit(0x10), Draft { tag: 1, ..world.commit(0x10) });
    let second = Draft { message: message(world.millis + 1, 9), ..second };
    sequenced(world.submit(&first));
    let Outcome::Rejected(lost) = world.submit(&second) else { panic!("two commits won one epoch") };
    assert_eq!((lost.reason, lost.winner, lost.epoch), (RejectReason::EpochConflict, Some(first.message), Epoch(1)));
    let third = world.commit(0x10);
    sequenced(world.submit(&third));
    let older = Draft { epoch: 0, ..world.commit(0x10) };
    let Outcome::Rejected(lost) = world.submit(&older) else { panic!("an old commit won") };
    assert_eq!((lost.reason, lost.winner), (RejectReason::EpochConflict, None));
    let joiner = Draft { epoch: 1, ..world.external(0x11) };
    let Outcome::Rejected(lost) = world.submit(&joiner) else { panic!("an old external commit won") };
    assert_eq!((lost.reason, lost.winner), (RejectReason::EpochConflict, Some(third.message)));
    // Of the future, or of another generation: nobody has won against it.
    let future = Draft { epoch: 3, ..world.commit(0x10) };
    assert_eq!(rejected(&world.submit(&future)), RejectReason::StaleEpoch);
    let other_group = Draft { generation: 1, epoch: 1, ..world.commit(0x10) };
    let Outcome::Rejected(lost) = world.submit(&other_group) else { panic!("another group's commit won") };
    assert_eq!((lost.reason, lost.winner), (RejectReason::StaleEpoch, None));
}

#[test]
fn a_message_id_is_judged_by_its_age_at_acceptance() {
    assert_eq!((MESSAGE_ID_MAX_AGE_MILLIS, MESSAGE_ID_MAX_LEAD_MILLIS), (604_800_000, 300_000));
    let mut world = World::new();
    let accepted = START_MILLIS + 100 * MESSAGE_ID_MAX_AGE_MILLIS;
    let cases = [
        (accepted - MESSAGE_ID_MAX_AGE_MILLIS, true),
        (accepted - MESSAGE_ID_MAX_AGE_MILLIS - 1, false),
        (accepted + MESSAGE_ID_MAX_LEAD_MILLIS, true),
        (accepted + MESSAGE_ID_MAX_LEAD_MILLIS + 1, false),
    ];
    for (made, fits) in cases {
        world.millis = accepted - 1;
        let draft = Draft::content(0x10, message(made, 0), 0);
        let outcome = world.submit(&draft);
        match fits {
            true => drop(sequenced(outcome)),
            false => assert_eq!(rejected(&outcome), RejectReason::MessageIdTime),
        }
    }
}

#[test]
fn what_is_accepted_after_its_expiry_is_rejected() {
    let mut world = World::new();
    let on_time = Draft { expires_at: Some(at(world.millis + 1)), ..world.content(0x10) };
    sequenced(world.submit(&on_time));
    let late = Draft { expires_at: Some(at(world.millis)), ..world.content(0x10) };
    assert_eq!(rejected(&world.submit(&late)), RejectReason::Expired);
}

#[test]
fn who_has_no_leaf_is_no_member() {
    let mut world = World::new();
    world.add(&[0x20]);
    for draft in [world.content(0x30), world.commit(0x30), world.external(0x30), world.content(0x21)] {
        let draft = Draft { message: world.fresh(), ..draft };
        assert_eq!(rejected(&world.submit(&draft)), RejectReason::NotAMember);
    }
    let draft = world.content(0x10);
    let elsewhere = |submission: &mut Submission| submission.tenant = TenantId::from_bytes([1; 16]);
    assert_eq!(rejected(&submit_with(&mut world, &draft, elsewhere)), RejectReason::NotAMember);
    let draft = world.external(0x11);
    assert_eq!(rejected(&submit_with(&mut world, &draft, elsewhere)), RejectReason::NotAMember);
    assert!(head(&world).newest.keys().all(|sender| *sender == device(0x10)), "an outsider entered the head");
}

#[test]
fn a_conversation_that_does_not_exist_rejects() {
    let mut conversation = Conversation::absent(CONVERSATION);
    let draft = Draft::content(0x10, message(START_MILLIS, 0), 0);
    let first = record(1, START_MILLIS, body(&draft));
    let key = OutcomeKey { conversation: CONVERSATION, device: device(0x10), message: draft.message };
    assert_eq!(conversation.lookup(&first), Some(key));
    let outcome = apply(&mut conversation, Prior::None, &first);
    assert_eq!(rejected(&outcome), RejectReason::ConversationUnknown);
    let again = record(2, START_MILLIS, body(&draft));
    assert_eq!(apply(&mut conversation, known(&draft, 1), &again), Outcome::Repeat);
    let left = record(3, START_MILLIS, Body::Control(Control::UserLeft { user: user(1) }));
    assert_eq!(apply(&mut conversation, Prior::None, &left), Outcome::Ignored);
    // Created now, and the key is still known to have been used.
    apply(&mut conversation, Prior::None, &record(4, START_MILLIS, Body::Create(create(0x10))));
    assert_eq!(conversation.lookup(&record(5, START_MILLIS, body(&draft))), Some(key));
}

#[test]
fn a_repeat_is_told_from_a_conflict_and_from_its_own_earlier_run() {
    let mut world = World::new();
    let draft = world.content(0x10);
    sequenced(world.submit(&draft));
    assert_eq!(world.feed(known(&draft, 2), body(&draft)), Outcome::Repeat);
    let other = Draft { tag: 1, ..draft.clone() };
    let Outcome::Conflict(conflict) = world.feed(known(&draft, 2), body(&other)) else { panic!("other bytes passed") };
    let sealed = other.build().sealed;
    let payload = payload_digest(Digest::of(&sealed.envelope), Digest::of(&sealed.mls_message));
    assert_eq!((conflict.reason, conflict.payload), (RejectReason::MessageIdReused, payload));
    assert_eq!(head(&world).sequence, Sequence(1));
    // A row at the record's own position was written by a run that died before the head.
    let next = world.content(0x10);
    let own = known(&next, world.offset + 1);
    assert_eq!(sequenced(world.feed(own, body(&next))).sequence, Sequence(2));
}

#[test]
fn repeats_are_found_before_anything_else_is_judged() {
    let mut world = World::new();
    let draft = Draft { expires_at: Some(at(world.millis + 1)), ..world.content(0x10) };
    sequenced(world.submit(&draft));
    world.control(Control::Quarantine { reason: "test".into() });
    world.millis += 30 * 24 * 3600 * 1000;
    assert_eq!(world.feed(known(&draft, 2), body(&draft)), Outcome::Repeat);
    let fresh = world.content(0x10);
    assert_eq!(rejected(&world.submit(&fresh)), RejectReason::Quarantined);
}

#[test]
fn quarantine_stops_submissions_and_not_revocations() {
    let mut world = World::new();
    world.add(&[0x20]);
    let set_aside = world.control(Control::Quarantine { reason: "chain".into() });
    assert_eq!(set_aside, Outcome::Changed { delta: None, audience: recipients(&[0x10, 0x20]).into() });
    assert_eq!(world.control(Control::Quarantine { reason: "again".into() }), Outcome::Ignored);
    assert_eq!(head(&world).quarantined.as_deref(), Some("chain"));
    let commit = world.commit(0x10);
    assert_eq!(rejected(&world.submit(&commit)), RejectReason::Quarantined);
    let left = world.control(Control::UserLeft { user: user(2) });
    assert!(matches!(left, Outcome::Changed { delta: Some(_), .. }));
}

#[test]
fn a_revoked_device_waits_for_removal_and_content_waits_for_it() {
    let mut world = World::new();
    world.add(&[0x20, 0x21]);
    let revoked = Control::DeviceRevoked { user: user(2), device: device(0x20) };
    let Outcome::Changed { delta: Some(delta), audience } = world.control(revoked.clone()) else { panic!("no change") };
    assert_eq!(audience.to_vec(), recipients(&[0x10, 0x21]));
    assert_eq!((delta.to, delta.leaves.len()), (3, 1));
    assert_eq!(delta.leaves[&1].as_ref().map(|leaf| leaf.removal_pending), Some(true));
    assert_eq!((head(&world).members_version, world.conversation.roster.version()), (3, 3));
    assert_eq!(world.control(revoked), Outcome::Ignored, "it waits already");
    let stranger = Control::DeviceRevoked { user: user(1), device: device(0x21) };
    assert_eq!(world.control(stranger), Outcome::Ignored, "another user's device");
    assert_eq!(world.conversation.roster.removal_pending(), vec![(user(2), device(0x20))]);

    let (content, own, update) = (world.content(0x10), world.content(0x20), world.commit(0x10));
    assert_eq!(rejected(&world.submit(&content)), RejectReason::RemovalRequired);
    assert_eq!(rejected(&world.submit(&own)), RejectReason::NotAMember);
    assert_eq!(rejected(&world.submit(&update)), RejectReason::RemovalRequired);
    let rejoin = world.external(0x20);
    assert_eq!(rejected(&world.submit(&rejoin)), RejectReason::NotAMember);
    let join = world.external(0x22);
    let done = sequenced(world.submit(&join));
    assert_eq!(done.audience.to_vec(), recipients(&[0x10, 0x21, 0x22]));
    let removal = world.commit(0x21).removing(&[1]);
    let done = sequenced(world.submit(&removal));
    assert_eq!(done.audience.to_vec(), recipients(&[0x10, 0x21, 0x22]));
    let content = world.content(0x10);
    sequenced(world.submit(&content));
}

#[test]
fn all_pending_leaves_are_removed_at_once_and_a_gone_user_may_not_join() {
    let mut world = World::new();
    world.add(&[0x20, 0x21, 0x30]);
    let Outcome::Changed { delta: Some(delta), audience } = world.control(Control::UserLeft { user: user(2) }) else {
        panic!("no change")
    };
    assert_eq!((delta.leaves.len(), audience.to_vec()), (2, recipients(&[0x10, 0x30])));
    assert!(!world.conversation.roster.has_user(user(2)));
    let join = world.external(0x22);
    assert_eq!(rejected(&world.submit(&join)), RejectReason::NotAMember);
    let half = world.commit(0x10).removing(&[1]);
    assert_eq!(rejected(&world.submit(&half)), RejectReason::RemovalRequired);
    let whole = world.commit(0x10).removing(&[2, 1]);
    let done = effects(world.submit(&whole));
    assert_eq!((done.users_removed, done.users_added), (vec![user(2)], vec![]));
    assert_eq!(world.control(Control::UserLeft { user: user(2) }), Outcome::Ignored);
}

#[test]
fn adds_take_the_lowest_free_leaves_after_the_removes() {
    let mut world = World::new();
    world.add(&[0x20, 0x30, 0x31, 0x40]);
    let draft = world.commit(0x10).removing(&[3, 1]).adding(&[0x50, 0x60, 0x32]);
    let done = sequenced(world.submit(&draft));
    assert_eq!(done.audience.to_vec(), recipients(&[0x10, 0x20, 0x30, 0x31, 0x40]), "those before it");
    let done = done.commit.expect("a commit");
    assert_eq!(done.joined.to_vec(), recipients(&[0x32, 0x50, 0x60]));
    assert_eq!((done.users_added, done.users_removed), (vec![user(5), user(6)], vec![user(2)]));
    assert_eq!(done.epoch, Epoch(2));
    let leaves: Vec<_> = [0x10, 0x50, 0x30, 0x60, 0x40, 0x32].iter().map(|number| world.leaf(*number)).collect();
    assert_eq!(leaves, (0..6).map(Some).collect::<Vec<_>>());
    let delta = done.delta.expect("leaves changed");
    assert_eq!(delta.leaves.keys().copied().collect::<Vec<_>>(), vec![1, 3, 5]);
    let (_, leaf) = world.conversation.roster.leaf_of(user(5), device(0x50)).expect("added");
    assert_eq!((leaf.joined, leaf.role), (Epoch(2), Role::Member));
    assert_eq!(head(&world).epoch_winner, Some(draft.message));
    assert_eq!(head(&world).group_state, group_state(2));
}

#[test]
fn a_commit_without_changes_of_leaves_keeps_the_roster_version() {
    let mut world = World::new();
    let update = world.commit(0x10);
    let done = effects(world.submit(&update));
    assert_eq!((done.delta, done.epoch, done.joined.len()), (None, Epoch(1), 0));
    assert_eq!(world.conversation.roster.version(), 1);
    assert_eq!((head(&world).epoch, head(&world).epoch_winner), (Epoch(1), Some(update.message)));
}

#[test]
fn a_commit_that_is_not_what_its_envelope_says_is_invalid() {
    type Change = fn(&mut forge::Commit);
    let changes: [Change; 12] = [
        |commit| commit.conversation = ConversationId::from_bytes([1; 16]),
        |commit| commit.generation = 1,
        |commit| commit.epoch = 0,
        |commit| commit.authenticated_data = vec![0; 32],
        |commit| commit.authenticated_data.truncate(31),
        |commit| commit.sender = Some(1),
        |commit| {
            commit.sender = None;
            commit.proposals = vec![Proposal::ExternalInit];
        },
        |commit| commit.path = Some(forge::leaf_node(&credential(0x11), &key(0x10), forge::Source::Commit)),
        |commit| commit.path = Some(forge::leaf_node(&credential(0x10), &key(0x11), forge::Source::Commit)),
        |commit| commit.path = Some(forge::leaf_node(&credential(0x10), &key(0x10), forge::Source::Update)),
        |commit| commit.path = None,
        |commit| commit.proposals = vec![Proposal::Reference],
    ];
    for change in changes {
        let mut world = World::new();
        world.add(&[0x20]);
        let update = world.commit(0x10);
        let before = world.conversation.roster.clone();
        assert_eq!(rejected(&forge_with(&mut world, &update, change)), RejectReason::CommitInvalid);
        assert_eq!((head(&world).epoch, &world.conversation.roster), (Epoch(1), &before));
    }
}

#[test]
fn a_credential_must_name_tenant_user_and_device() {
    let mut world = World::new();
    world.add(&[0x20]);
    for change in 0..3 {
        let mut other = credential(0x10);
        match change {
            0 => other.tenant = TenantId::from_bytes([1; 16]),
            1 => other.principal = user(2),
            _ => other.device = device(0x11),
        }
        let path = forge::leaf_node(&other, &key(0x10), forge::Source::Commit);
        for draft in [world.commit(0x10), world.external(0x10)] {
            let draft = Draft { message: world.fresh(), ..draft };
            let outcome = forge_with(&mut world, &draft, |commit| commit.path = Some(path.clone()));
            assert_eq!(rejected(&outcome), RejectReason::CommitInvalid);
        }
    }
}

#[test]
fn a_commit_brings_the_group_after_it_and_a_welcome_for_its_adds_only() {
    type Change = fn(&mut Submission);
    let changes: [Change; 5] = [
        |submission| submission.group_state = None,
        |submission| submission.group_state = Some(group_state(2)),
        |submission| submission.group_state = Some(group_state(0)),
        |submission| submission.group_state.as_mut().expect("a commit").generation = Generation(1),
        |submission| submission.welcome = submission.welcome.xor(Some(blob("welcome"))),
    ];
    for change in changes {
        for adds in [&[][..], &[0x20]] {
            let mut world = World::new();
            let draft = world.commit(0x10).adding(adds);
            assert_eq!(rejected(&submit_with(&mut world, &draft, change)), RejectReason::CommitInvalid);
        }
    }
}

#[test]
fn removes_name_leaves_that_are_there_once_and_not_the_committer() {
    let mut world = World::new();
    world.add(&[0x20]);
    for leaves in [&[2][..], &[1, 1], &[0], &[1, 0]] {
        let draft = world.commit(0x10).removing(leaves);
        assert_eq!(rejected(&world.submit(&draft)), RejectReason::CommitInvalid);
    }
    let draft = world.commit(0x10).removing(&[1]);
    assert_eq!(effects(world.submit(&draft)).users_removed, vec![user(2)]);
}

#[test]
fn adds_are_registered_new_and_of_the_suite() {
    let mut world = World::new();
    world.add(&[0x20]);
    for devices in [&[0x20][..], &[0x30, 0x30]] {
        let draft = world.commit(0x10).adding(devices);
        assert_eq!(rejected(&world.submit(&draft)), RejectReason::CommitInvalid);
    }
    type Change = fn(&mut Submission);
    let changes: [Change; 5] = [
        |submission| submission.added_keys.clear(),
        |submission| submission.added_keys[0].key_hash = key_hash(0x31),
        |submission| submission.added_keys[0].user = user(4),
        |submission| submission.added_keys[0].device = device(0x31),
        |submission| submission.added_keys[0].tenant = TenantId::from_bytes([1; 16]),
    ];
    for change in changes {
        let draft = world.commit(0x10).adding(&[0x30]);
        assert_eq!(rejected(&submit_with(&mut world, &draft, change)), RejectReason::CommitInvalid);
    }
    let draft = world.commit(0x10).adding(&[0x30]);
    let other_suite = forge::key_package(2, &credential(0x30), &key(0x30), false);
    let outcome = forge_with(&mut world, &draft, |commit| commit.proposals = vec![Proposal::Add(other_suite)]);
    assert_eq!(rejected(&outcome), RejectReason::CommitInvalid);
    // Another device with a key that a member has.
    let draft = world.commit(0x10).adding(&[0x30]);
    let mut submission = draft.build();
    submission.added_keys[0].key_hash = key_hash(0x20);
    let mut forged = draft.forged();
    forged.proposals = vec![Proposal::Add(forge::key_package(1, &credential(0x30), &key(0x20), false))];
    submission.sealed.mls_message = forged.encode();
    let outcome = world.feed(Prior::None, Body::Submission(Box::new(submission)));
    assert_eq!(rejected(&outcome), RejectReason::CommitInvalid);
    // A device that is removed may come back by the same commit, and keys of others may stand in the record.
    let draft = world.commit(0x10).removing(&[1]).adding(&[0x20]);
    let outcome = submit_with(&mut world, &draft, |submission| {
        submission
            .added_keys
            .insert(0, Draft::commit(0x10, 0, draft.message, 0).adding(&[0x40]).build().added_keys[0].clone());
    });
    let done = effects(outcome);
    assert_eq!((done.users_added, done.users_removed), (vec![], vec![]));
    assert_eq!(done.delta.expect("a new leaf").leaves[&1].as_ref().map(|leaf| leaf.joined), Some(Epoch(2)));
}

#[test]
fn a_device_of_a_member_joins_by_itself() {
    let mut world = World::new();
    world.add(&[0x20, 0x30]);
    let draft = world.commit(0x10).removing(&[1]);
    world.submit(&draft);
    let join = world.external(0x11);
    let done = sequenced(world.submit(&join));
    assert_eq!(done.audience.to_vec(), recipients(&[0x10, 0x11, 0x30]));
    let done = done.commit.expect("a commit");
    assert_eq!((done.joined.len(), done.users_added, done.users_removed), (0, vec![], vec![]));
    let (index, leaf) = world.conversation.roster.leaf_of(user(1), device(0x11)).expect("joined");
    assert_eq!((index, leaf.role, leaf.joined), (1, Role::Admin, Epoch(3)), "the user's role");
    // Its old leaf goes when it comes again.
    let rejoin = world.external(0x11);
    assert_eq!(rejoin.removes, vec![1]);
    let done = sequenced(world.submit(&rejoin));
    assert_eq!(done.audience.to_vec(), recipients(&[0x10, 0x11, 0x30]));
    assert_eq!(world.conversation.roster.leaves().len(), 3);
}

#[test]
fn a_joiner_removes_its_old_leaf_and_no_other() {
    let mut world = World::new();
    world.add(&[0x20, 0x11]);
    let cases = [
        Draft { removes: vec![1], ..world.external(0x12) },
        Draft { removes: vec![2], ..world.external(0x12) },
        Draft { removes: vec![], ..world.external(0x11) },
        Draft { removes: vec![7], ..world.external(0x11) },
        Draft { removes: vec![2, 1], ..world.external(0x11) },
        Draft { path: false, ..world.external(0x12) },
        Draft { adds: vec![0x13], ..world.external(0x12) },
    ];
    for draft in cases {
        let draft = Draft { message: world.fresh(), ..draft };
        assert_eq!(rejected(&world.submit(&draft)), RejectReason::CommitInvalid, "{draft:?}");
    }
    let draft = world.external(0x12);
    let other_key = |submission: &mut Submission| submission.key_hash = key_hash(0x11);
    assert_eq!(rejected(&submit_with(&mut world, &draft, other_key)), RejectReason::CommitInvalid);
    // A joiner's commit under a member's envelope, and the reverse.
    let draft = Draft { kind: MessageKind::Commit, ..world.external(0x11) };
    let outcome = forge_with(&mut world, &draft, |commit| {
        commit.sender = None;
        commit.proposals = vec![Proposal::ExternalInit];
    });
    assert_eq!(rejected(&outcome), RejectReason::CommitInvalid);
    let draft = world.external(0x12);
    let outcome = forge_with(&mut world, &draft, |commit| {
        commit.sender = Some(0);
        commit.proposals.clear();
    });
    assert_eq!(rejected(&outcome), RejectReason::CommitInvalid);
}

#[test]
fn another_users_device_does_not_join_over_a_members_leaf() {
    let mut world = World::new();
    world.add(&[0x20]);
    let draft = world.external(0x11);
    // The device of user 2 under the name of user 1, with a key of its own: the roster has it under user 2.
    let mut stolen = credential(0x11);
    stolen.device = device(0x20);
    let mut forged = draft.forged();
    forged.path = Some(forge::leaf_node(&stolen, &key(0x11), forge::Source::Commit));
    let outcome = submit_with(&mut world, &draft, |submission| {
        submission.envelope.device = device(0x20);
        submission.sealed.mls_message = forged.encode();
    });
    assert_eq!(rejected(&outcome), RejectReason::CommitInvalid);
}

fn admins_only() -> World {
    let mut create = create(0x10);
    create.policy.membership = MembershipRule::Admins;
    let mut world = World::with(&create);
    world.add(&[0x20, 0x21, 0x30, 0x11]);
    world
}

#[test]
fn where_admins_decide_others_change_their_own_devices_only() {
    let mut world = admins_only();
    for draft in [
        world.commit(0x20).adding(&[0x40]),
        world.commit(0x20).adding(&[0x31]),
        world.commit(0x20).removing(&[3]),
        world.commit(0x20).adding(&[0x22, 0x40]),
        world.commit(0x20).removing(&[2, 3]),
    ] {
        let draft = Draft { message: world.fresh(), ..draft };
        assert_eq!(rejected(&world.submit(&draft)), RejectReason::RoleRequired, "{draft:?}");
    }
    let own = world.commit(0x20).removing(&[2]).adding(&[0x22]);
    effects(world.submit(&own));
    world.control(Control::UserLeft { user: user(3) });
    let pending = world.commit(0x22).removing(&[3]);
    assert_eq!(effects(world.submit(&pending)).users_removed, vec![user(3)]);
    // The admin's other device has the role too.
    let admin = world.commit(0x11).adding(&[0x40]);
    assert_eq!(effects(world.submit(&admin)).users_added, vec![user(4)]);
    let update = world.commit(0x20);
    effects(world.submit(&update));
}

#[test]
fn a_role_is_the_users_and_ends_with_the_users_last_active_leaf() {
    let mut world = World::new();
    world.add(&[0x20, 0x11]);
    let role = |world: &World, number: u16| {
        world.conversation.roster.leaf_of(user_of(number), device(number)).map(|(_, leaf)| leaf.role)
    };
    assert_eq!((role(&world, 0x20), role(&world, 0x11)), (Some(Role::Member), Some(Role::Admin)));
    world.control(Control::UserLeft { user: user(1) });
    let back = world.commit(0x20).removing(&[0, 2]).adding(&[0x12]);
    effects(world.submit(&back));
    assert_eq!(role(&world, 0x12), Some(Role::Member));
}

#[test]
fn kinds_bound_the_number_of_users() {
    for (kind, users) in [(ConversationKind::Direct, 2), (ConversationKind::SelfNotes, 1)] {
        let mut create = create(0x10);
        create.kind = kind;
        let mut world = World::with(&create);
        let others: Vec<u16> = (2..=users).map(|number| number << 4).collect();
        if !others.is_empty() {
            world.add(&others);
        }
        world.add(&[0x11, 0x12]);
        let more = world.commit(0x10).adding(&[0x90]);
        assert_eq!(rejected(&world.submit(&more)), RejectReason::ConversationFull);
        let join = world.external(0x13);
        effects(world.submit(&join));
    }
}

#[test]
fn two_thousand_users_and_five_thousand_devices_fit_and_no_more() {
    let mut create = create(0x10);
    create.kind = ConversationKind::Inbox;
    let mut world = World::with(&create);
    let mut next: Vec<u16> = (2..=2_000).map(|number| number << 4).collect();
    next.extend((1..=1_000).flat_map(|number| [(number << 4) + 1, (number << 4) + 2, (number << 4) + 3]));
    for chunk in next.chunks(128) {
        world.add(chunk);
    }
    let roster = &world.conversation.roster;
    assert_eq!((roster.users().len(), roster.leaves().len()), (2_000, 5_000));
    let one_more_device = world.commit(0x10).adding(&[0x14]);
    assert_eq!(rejected(&world.submit(&one_more_device)), RejectReason::ConversationFull);
    let joiner = world.external(0x14);
    assert_eq!(rejected(&world.submit(&joiner)), RejectReason::ConversationFull);
    let gone = world.leaf(0x11).expect("added");
    let one_more_user = world.commit(0x10).removing(&[gone]).adding(&[2_001 << 4]);
    assert_eq!(rejected(&world.submit(&one_more_user)), RejectReason::ConversationFull);
    let instead = world.commit(0x10).removing(&[gone]).adding(&[0x14]);
    effects(world.submit(&instead));
    assert_eq!(world.leaf(0x14), Some(gone));
}

#[test]
fn the_order_of_verdicts_is_the_documented_one() {
    let mut world = admins_only();
    world.control(Control::DeviceRevoked { user: user(3), device: device(0x30) });
    // Each row breaks the rule of its verdict and every rule after it.
    let late = Some(at(world.millis));
    let old = message(START_MILLIS - 2 * MESSAGE_ID_MAX_AGE_MILLIS, 0);
    let base = Draft { adds: vec![0x40], removes: vec![9], ..world.commit(0x20) };
    let rows = [
        (Draft { message: old, expires_at: late, device: 0x50, epoch: 0, ..base.clone() }, RejectReason::MessageIdTime),
        (Draft { expires_at: late, device: 0x50, epoch: 0, ..base.clone() }, RejectReason::Expired),
        (Draft { device: 0x50, epoch: 0, ..base.clone() }, RejectReason::NotAMember),
        (Draft { epoch: 0, leaf: 7, ..base.clone() }, RejectReason::EpochConflict),
        (Draft { epoch: 9, leaf: 7, ..base.clone() }, RejectReason::StaleEpoch),
        (Draft { leaf: 7, ..base.clone() }, RejectReason::CommitInvalid),
        (base.clone(), RejectReason::RemovalRequired),
        (Draft { removes: vec![9, 3], ..base.clone() }, RejectReason::CommitInvalid),
        (Draft { removes: vec![3], ..base.clone() }, RejectReason::RoleRequired),
    ];
    for (draft, reason) in rows {
        let fresh = world.fresh();
        let message = if draft.message == old { old } else { fresh };
        let draft = Draft { message, ..draft };
        assert_eq!(rejected(&world.submit(&draft)), reason, "{draft:?}");
    }
}

fn asks(world: &World, sender: u16, id: MessageId) -> bool {
    let draft = Draft::content(sender, id, 0);
    world.conversation.lookup(&record(world.offset + 1, world.millis, body(&draft))).is_some()
}

#[test]
fn an_id_above_the_senders_newest_needs_no_read() {
    let mut world = World::new();
    let first = world.content(0x10);
    assert!(!asks(&world, 0x10, first.message));
    world.submit(&first);
    assert!(asks(&world, 0x10, first.message));
    assert!(asks(&world, 0x10, message(START_MILLIS, 0)));
    assert!(!asks(&world, 0x10, world.fresh()));
    // A rejected id has an outcome row too.
    let stale = Draft { epoch: 7, ..world.content(0x10) };
    assert_eq!(rejected(&world.submit(&stale)), RejectReason::StaleEpoch);
    assert!(asks(&world, 0x10, stale.message));
    // A lower id that turned out to be new does not lower the bound.
    let lower = Draft::content(0x10, message(START_MILLIS, 1), 0);
    sequenced(world.submit(&lower));
    assert!(asks(&world, 0x10, stale.message));
    let control = record(99, world.millis, Body::Control(Control::UserLeft { user: user(1) }));
    assert_eq!(world.conversation.lookup(&control), None);
}

#[test]
fn the_head_keeps_the_most_recent_senders_and_the_floor_covers_the_rest() {
    let mut world = World::new();
    let senders: Vec<u16> = (2..=RECENT_SENDERS as u16 + 2).map(|number| number << 4).collect();
    world.add(&senders);
    let mut used = Vec::new();
    for sender in &senders {
        let draft = Draft { epoch: 1, ..world.content(*sender) };
        sequenced(world.submit(&draft));
        used.push((*sender, draft.message));
    }
    let head = head(&world);
    assert_eq!(head.newest.len(), RECENT_SENDERS);
    // The creator's commit and the first sender were evicted, the latter's id being the greater.
    assert_eq!(head.floor, Some(used[0].1));
    assert!(!head.newest.contains_key(&device(used[0].0)) && head.newest.contains_key(&device(used[1].0)));
    assert!(used.iter().all(|(sender, id)| asks(&world, *sender, *id)));
    // Back with a lower id than the floor, it stands at the floor, below which its older ids may lie.
    let lower = Draft { message: message(START_MILLIS + 1, 9), epoch: 1, ..world.content(senders[0]) };
    sequenced(world.submit(&lower));
    assert!(asks(&world, senders[0], used[0].1));
}

#[test]
fn ids_used_before_joining_or_after_leaving_are_remembered() {
    let mut world = World::new();
    let early = world.content(0x20);
    assert_eq!(rejected(&world.submit(&early)), RejectReason::NotAMember);
    world.add(&[0x20, 0x30]);
    assert!(asks(&world, 0x20, early.message), "before it was added");
    let draft = world.content(0x20);
    sequenced(world.submit(&draft));
    world.control(Control::DeviceRevoked { user: user(2), device: device(0x20) });
    assert!(!head(&world).newest.contains_key(&device(0x20)), "no member any more");
    assert!(asks(&world, 0x20, draft.message));
    let waiting = world.content(0x20);
    assert_eq!(rejected(&world.submit(&waiting)), RejectReason::NotAMember);
    let swap = world.commit(0x10).removing(&[1]).adding(&[0x20]);
    effects(world.submit(&swap));
    assert!(asks(&world, 0x20, waiting.message), "while it waited");
    let removal = world.commit(0x10).removing(&[2]);
    effects(world.submit(&removal));
    let removed = world.content(0x30);
    assert_eq!(rejected(&world.submit(&removed)), RejectReason::NotAMember);
    assert!(asks(&world, 0x30, removed.message));
}

#[test]
fn numbers_that_cannot_grow_end_in_a_rejection() {
    let mut world = World::new();
    world.conversation.head.as_mut().expect("created").sequence = Sequence(u64::MAX);
    let content = world.content(0x10);
    assert_eq!(rejected(&world.submit(&content)), RejectReason::Quarantined);
    let mut world = World::new();
    world.conversation.head.as_mut().expect("created").epoch = Epoch(u64::MAX);
    let commit = world.commit(0x10);
    assert_eq!(rejected(&world.submit(&commit)), RejectReason::CommitInvalid);
}
