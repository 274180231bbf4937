//! The fold itself. Every owner of a partition computes the same outcome from the same records.
//!
//! Which verdict wins when several apply, first to last:
//! 1. Ignored: another conversation's record. Replayed: at or below the head.
//! 2. Repeat, Conflict: the key has an outcome from a record before this one. (An outcome row at this record's position or
//!    above was written by an owner that was here before, and says nothing.)
//! 3. MESSAGE_ID_TIME, EXPIRED: from the record alone.
//! 4. CONVERSATION_UNKNOWN, QUARANTINED.
//! 5. NOT_A_MEMBER: the device has no leaf, or one that waits for removal; for an external commit, as [`super::commit`] says.
//! 6. STALE_EPOCH, EPOCH_CONFLICT: content in another (generation, epoch) is stale, and so is a commit in a later one; a
//!    commit in an earlier one has lost against the commit that ended it, which is named if it is the latest.
//! 7. REMOVAL_REQUIRED for content; for commits the order in [`super::commit`].
//!
//! Every submission that gets here past 2 has its id noted, so that a rejected one repeats as surely as a sequenced one.
//!
//! Deliberately absent: clocks, stores, the directory, signatures; a Create's or an application message's MLS bytes, which
//! ingest has read; whether an id is a UUIDv7 beyond its time.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::{self, Planned};
use super::{
    Conversation, Head, MESSAGE_ID_MAX_AGE_MILLIS, MESSAGE_ID_MAX_LEAD_MILLIS, Outcome, OutcomeKey, Prior,
    RejectReason, Rejection, Sequenced, chain_next, chain_start, duplicates, payload_digest,
};
use crate::Digest;
use crate::codec::Encoder;
use crate::envelope::{Envelope, Epoch, Generation, MessageKind, Sealed, Sequence};
use crate::ids::MessageId;
use crate::record::{Body, Control, Create, Record, Submission};
use crate::roster::{Leaf, Role, Roster, RosterDelta};

impl Conversation {
    /// The outcome that must be read before the record is applied; `None` when the head proves that it is new (or the record
    /// needs none).
    ///
    /// The caller's duty: ask right before [`apply`], since every record before this one may change the answer.
    pub fn lookup(&self, record: &Record) -> Option<OutcomeKey> {
        let Body::Submission(submission) = &record.body else { return None };
        if record.conversation != self.id || submission.envelope.conversation != self.id {
            return None;
        }
        let Envelope { device, message, .. } = submission.envelope;
        let key = OutcomeKey { conversation: self.id, device, message };
        match &self.head {
            Some(head) if record.position <= head.last || duplicates::is_new(head, device, message) => None,
            Some(_) | None => Some(key),
        }
    }
}

/// Applies one record. Reads nothing but its arguments; never panics; a record of another conversation is `Ignored`.
///
/// The caller's duty: records in log order; `prior` from a quorum read and the current batch's overlay whenever
/// [`Conversation::lookup`] asks for it.
pub fn apply(conversation: &mut Conversation, prior: Prior, record: &Record) -> Outcome {
    if record.conversation != conversation.id {
        return Outcome::Ignored;
    }
    if conversation.head.as_ref().is_some_and(|head| record.position <= head.last) {
        return Outcome::Replayed;
    }
    let outcome = match &record.body {
        Body::Create(create) => created(conversation, record, create),
        Body::Submission(submission) => submitted(conversation, &prior, record, submission),
        Body::Control(control) => controlled(conversation, control),
        Body::LogEnd => Outcome::Ignored,
    };
    if let Some(head) = &mut conversation.head {
        head.last = record.position;
        head.last_digest = record.digest;
    }
    outcome
}

fn created(conversation: &mut Conversation, record: &Record, create: &Create) -> Outcome {
    let create_digest = create_digest(create);
    if let Some(head) = &conversation.head {
        return Outcome::CreateRepeated { same: head.create_digest == create_digest };
    }
    let state = &create.group_state;
    if (state.generation, state.epoch) != (Generation(0), Epoch(0)) {
        return Outcome::Ignored;
    }
    let leaf = Leaf {
        tenant: create.tenant,
        user: create.user,
        device: create.device,
        key_hash: create.key_hash,
        role: Role::Admin,
        joined: Epoch(0),
        removal_pending: false,
    };
    let roster = Roster::new(1, BTreeMap::from([(0, leaf.clone())]));
    let delta = RosterDelta { to: roster.version(), leaves: BTreeMap::from([(0, Some(leaf))]) };
    conversation.head = Some(Head {
        last: record.position,
        last_digest: record.digest,
        created: record.position,
        create_digest,
        tenant: create.tenant,
        kind: create.kind,
        suite: create.suite,
        sequence: Sequence(0),
        chain: chain_start(conversation.id),
        generation: state.generation,
        epoch: state.epoch,
        epoch_winner: None,
        members_version: roster.version(),
        policy: create.policy,
        group_state: *state,
        quarantined: None,
        newest: BTreeMap::new(),
        floor: Some(duplicates::first_floor(record.accepted_at)),
    });
    conversation.roster = Arc::new(roster);
    Outcome::Created { delta }
}

/// The digest of what a Create asks: not of when it was accepted, so that a repeated Create is told from another one.
pub fn create_digest(create: &Create) -> Digest {
    let mut out = Encoder::with_capacity(256);
    out.raw(create.tenant.as_bytes()).u8(create.kind as u8).u16(create.suite);
    super::head::write_policy(&mut out, &create.policy);
    out.raw(create.user.as_bytes()).raw(create.device.as_bytes()).raw(create.key_hash.as_bytes());
    super::head::write_group_state(&mut out, &create.group_state);
    Digest::of(&out.into_vec())
}

fn controlled(conversation: &mut Conversation, control: &Control) -> Outcome {
    let Some(head) = &mut conversation.head else { return Outcome::Ignored };
    match control {
        Control::Quarantine { .. } if head.quarantined.is_some() => Outcome::Ignored,
        Control::Quarantine { reason } => {
            head.quarantined = Some(reason.clone());
            Outcome::Changed { delta: None, audience: conversation.roster.audience() }
        }
        Control::DeviceRevoked { user, device } => {
            suspend(conversation, |leaf| leaf.user == *user && leaf.device == *device)
        }
        Control::UserLeft { user } => suspend(conversation, |leaf| leaf.user == *user),
    }
}

/// Lets leaves wait for removal. Done in a quarantined conversation too: it is about who may receive.
fn suspend(conversation: &mut Conversation, concerned: impl Fn(&Leaf) -> bool) -> Outcome {
    let waiting = |leaf: &Leaf| Some(Leaf { removal_pending: true, ..leaf.clone() });
    let leaves = conversation.roster.leaves().iter();
    let leaves: BTreeMap<u32, Option<Leaf>> = leaves
        .filter(|(_, leaf)| !leaf.removal_pending && concerned(leaf))
        .map(|(index, leaf)| (*index, waiting(leaf)))
        .collect();
    let Some(to) = conversation.roster.version().checked_add(1).filter(|_| !leaves.is_empty()) else {
        return Outcome::Ignored;
    };
    let delta = RosterDelta { to, leaves };
    if Arc::make_mut(&mut conversation.roster).apply(&delta).is_err() {
        return Outcome::Ignored;
    }
    if let Some(head) = &mut conversation.head {
        head.members_version = to;
        duplicates::forget_former(head, &conversation.roster);
    }
    Outcome::Changed { delta: Some(delta), audience: conversation.roster.audience() }
}

/// The digests of a submission's bytes.
pub(super) struct Digests {
    pub(super) envelope: Digest,
    pub(super) mls_message: Digest,
    pub(super) payload: Digest,
}

impl Digests {
    fn of(sealed: &Sealed) -> Self {
        let (envelope, mls_message) = (Digest::of(&sealed.envelope), Digest::of(&sealed.mls_message));
        Self { envelope, mls_message, payload: payload_digest(envelope, mls_message) }
    }
}

fn submitted(conversation: &mut Conversation, prior: &Prior, record: &Record, submission: &Submission) -> Outcome {
    let envelope = &submission.envelope;
    if envelope.conversation != conversation.id {
        return Outcome::Ignored;
    }
    let digests = Digests::of(&submission.sealed);
    let reject = |head: Option<&Head>, reason| rejection(head, reason, envelope, digests.payload);
    if let Prior::Known(first) = prior
        && first.position < record.position
    {
        return match first.payload == digests.payload {
            true => Outcome::Repeat,
            false => Outcome::Conflict(reject(conversation.head.as_ref(), RejectReason::MessageIdReused)),
        };
    }
    let verdict = judge(conversation, record, submission, &digests);
    let outcome = match (verdict, &mut conversation.head) {
        (Ok(planned), Some(head)) => sequence(head, &mut conversation.roster, envelope.message, &digests, planned),
        (Ok(_), None) => Outcome::Rejected(reject(None, RejectReason::ConversationUnknown)),
        (Err(reason), head) => Outcome::Rejected(reject(head.as_ref(), reason)),
    };
    if let Some(head) = &mut conversation.head {
        duplicates::note(head, &conversation.roster, envelope.device, envelope.message, record.position);
    }
    outcome
}

fn rejection(head: Option<&Head>, reason: RejectReason, envelope: &Envelope, payload: Digest) -> Rejection {
    let (generation, epoch) = head.map(|head| (head.generation, head.epoch)).unwrap_or_default();
    let latest_lost = envelope.generation == generation && envelope.epoch.0.checked_add(1) == Some(epoch.0);
    let winner =
        head.and_then(|head| head.epoch_winner).filter(|_| latest_lost && reason == RejectReason::EpochConflict);
    Rejection { reason, payload, generation, epoch, winner }
}

/// Decides on a submission that is no repeat, changing nothing: what a commit would do, or why there is no sequence.
fn judge(
    conversation: &Conversation,
    record: &Record,
    submission: &Submission,
    digests: &Digests,
) -> Result<Option<Planned>, RejectReason> {
    in_time(record, &submission.envelope)?;
    let head = conversation.head.as_ref().ok_or(RejectReason::ConversationUnknown)?;
    if head.quarantined.is_some() || head.sequence.0 == u64::MAX {
        return Err(RejectReason::Quarantined);
    }
    let roster = &conversation.roster;
    if submission.envelope.kind == MessageKind::ExternalCommit {
        commit::may_join(roster, submission)?;
    } else {
        member(roster, submission)?;
    }
    in_epoch(head, &submission.envelope)?;
    if submission.envelope.kind == MessageKind::Application {
        return if roster.pending_leaves().is_empty() { Ok(None) } else { Err(RejectReason::RemovalRequired) };
    }
    commit::plan(head, roster, submission, digests.envelope).map(Some)
}

/// What the record alone decides.
fn in_time(record: &Record, envelope: &Envelope) -> Result<(), RejectReason> {
    let (made, accepted) = (envelope.message.unix_millis(), record.accepted_at.as_millis());
    let too_old = accepted.saturating_sub(made) > MESSAGE_ID_MAX_AGE_MILLIS;
    let too_new = made.saturating_sub(accepted) > MESSAGE_ID_MAX_LEAD_MILLIS;
    if too_old || too_new {
        return Err(RejectReason::MessageIdTime);
    }
    match envelope.expires_at {
        Some(expiry) if record.accepted_at > expiry => Err(RejectReason::Expired),
        _ => Ok(()),
    }
}

/// The sender's leaf. One that waits for removal is none.
pub(super) fn member<'a>(roster: &'a Roster, submission: &Submission) -> Result<(u32, &'a Leaf), RejectReason> {
    roster
        .leaf_of(submission.envelope.sender, submission.envelope.device)
        .filter(|(_, leaf)| leaf.tenant == submission.tenant && !leaf.removal_pending)
        .ok_or(RejectReason::NotAMember)
}

fn in_epoch(head: &Head, envelope: &Envelope) -> Result<(), RejectReason> {
    let (current, claimed) = ((head.generation, head.epoch), (envelope.generation, envelope.epoch));
    match (claimed.cmp(&current), envelope.kind) {
        (Ordering::Equal, _) => Ok(()),
        (Ordering::Less, MessageKind::Commit | MessageKind::ExternalCommit) => Err(RejectReason::EpochConflict),
        _ => Err(RejectReason::StaleEpoch),
    }
}

/// Gives the next sequence, and makes a commit's changes.
fn sequence(
    head: &mut Head,
    roster: &mut Arc<Roster>,
    message: MessageId,
    digests: &Digests,
    planned: Option<Planned>,
) -> Outcome {
    // `judge` has refused at the greatest sequence.
    head.sequence = Sequence(head.sequence.0.saturating_add(1));
    head.chain = chain_next(head.chain, head.sequence, digests.envelope, digests.mls_message);
    let (audience, commit) = match planned {
        None => (roster.audience(), None),
        Some(planned) => {
            head.epoch = planned.effects.epoch;
            head.epoch_winner = Some(message);
            head.group_state = planned.group_state;
            if let Some(after) = planned.roster {
                head.members_version = after.version();
                *roster = Arc::new(after);
                duplicates::forget_former(head, roster);
            }
            (planned.audience, Some(planned.effects))
        }
    };
    let (sequence, chain, payload) = (head.sequence, head.chain, digests.payload);
    Outcome::Sequenced(Box::new(Sequenced { sequence, chain, payload, audience, commit }))
}
