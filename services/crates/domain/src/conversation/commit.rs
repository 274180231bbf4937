//! The rules for commits (API.md, "MLS"; RFC 9420 section 12.4), and what a commit does to the roster.
//!
//! Which rule wins when several are broken, first to last:
//! 1. COMMIT_INVALID: what the commit is. It does not parse; it says another group, epoch or kind than its envelope; its
//!    authenticated data is not the envelope's digest; the group state after it is missing or of another epoch; there is a
//!    Welcome without adds or the reverse; the committer is another leaf; its new leaf has another credential or key.
//! 2. REMOVAL_REQUIRED: a member's commit leaves a leaf that waits for removal.
//! 3. COMMIT_INVALID: what it does. It removes what is not there, the committer, or one leaf twice; it adds a device or key
//!    that stays or is added already, that the record does not name, or that has another suite; a joiner removes anything
//!    but its device's old leaf, or leaves that in place.
//! 4. ROLE_REQUIRED.
//! 5. CONVERSATION_FULL.
//!
//! Deliberately absent: what needs the group's state (signatures, MACs, tree and parent hashes); devices check that.

use std::collections::{BTreeMap, BTreeSet};

use super::apply::member;
use super::{CommitEffects, Head, MAX_DEVICES, MAX_USERS, RejectReason};
use crate::Digest;
use crate::envelope::{Epoch, MessageKind};
use crate::ids::{DeviceId, UserId};
use crate::mls::{self, Form, LeafNode};
use crate::record::{ConversationKind, GroupStateRef, MembershipRule, Submission};
use crate::roster::{Audience, Leaf, Role, Roster, RosterDelta, audience_of};

/// What a commit that is in order does.
pub(super) struct Planned {
    /// The roster after it; `None` when no leaf changes.
    pub(super) roster: Option<Roster>,
    pub(super) group_state: GroupStateRef,
    pub(super) audience: Audience,
    pub(super) effects: CommitEffects,
}

/// Whether the device may join by an external commit: its user is a member, and the device does not wait for removal.
pub(super) fn may_join(roster: &Roster, submission: &Submission) -> Result<(), RejectReason> {
    let waits = roster.leaf_of_device(submission.envelope.device).is_some_and(|(_, leaf)| leaf.removal_pending);
    match active_leaf_of_user(roster, submission.envelope.sender) {
        Some(leaf) if leaf.tenant == submission.tenant && !waits => Ok(()),
        _ => Err(RejectReason::NotAMember),
    }
}

fn active_leaf_of_user(roster: &Roster, user: UserId) -> Option<&Leaf> {
    roster.leaves().values().find(|leaf| leaf.user == user && !leaf.removal_pending)
}

/// Checks a commit against every rule. The caller's duty: the sender is a member or may join, the epoch is the current one.
pub(super) fn plan(
    head: &Head,
    roster: &Roster,
    submission: &Submission,
    envelope: Digest,
) -> Result<Planned, RejectReason> {
    let (commit, epoch, group_state) = read(head, submission, envelope)?;
    let external = submission.envelope.kind == MessageKind::ExternalCommit;
    let mut change = Change::new(roster, epoch);
    if external {
        joined(&mut change, submission, &commit)?;
    } else {
        changed(head, &mut change, submission, &commit)?;
    }
    let added: Vec<Leaf> = change.added.iter().filter_map(|index| change.leaves.get(index)?.clone()).collect();
    let audience = match external {
        true => audience_of(roster.leaves().values().filter(|leaf| !leaf.removal_pending).chain(&added)),
        false => roster.audience(),
    };
    let joined = if external { Audience::default() } else { audience_of(added.iter()) };
    let delta = change.into_delta()?;
    let mut effects = CommitEffects { epoch, delta, joined, users_added: Vec::new(), users_removed: Vec::new() };
    let Some(delta) = &effects.delta else {
        return Ok(Planned { roster: None, group_state, audience, effects });
    };
    let mut after = roster.clone();
    after.apply(delta).map_err(|_| RejectReason::CommitInvalid)?;
    in_bounds(head.kind, &after)?;
    effects.users_added = after.user_set().difference(roster.user_set()).copied().collect();
    effects.users_removed = roster.user_set().difference(after.user_set()).copied().collect();
    Ok(Planned { roster: Some(after), group_state, audience, effects })
}

/// Reads the commit and holds it against its envelope and what came with it. Gives the epoch it leads to, and its state.
fn read(
    head: &Head,
    submission: &Submission,
    envelope_digest: Digest,
) -> Result<(mls::Commit, Epoch, GroupStateRef), RejectReason> {
    let envelope = &submission.envelope;
    let commit = mls::commit(&submission.sealed.mls_message).map_err(|_| RejectReason::CommitInvalid)?;
    let header = &commit.header;
    let form = matches!(
        (header.form, envelope.kind),
        (Form::MemberCommit(_), MessageKind::Commit) | (Form::NewMemberCommit, MessageKind::ExternalCommit)
    );
    let declared = (envelope.conversation, envelope.generation, envelope.epoch);
    let said = (header.conversation, header.generation, header.epoch);
    let bound = header.authenticated_data == envelope_digest.as_bytes()[..];
    let welcomed = submission.welcome.is_some() != commit.adds.is_empty();
    if !form || declared != said || !bound || !welcomed {
        return Err(RejectReason::CommitInvalid);
    }
    let epoch = head.epoch.0.checked_add(1).map(Epoch).ok_or(RejectReason::CommitInvalid)?;
    match submission.group_state {
        Some(state) if (state.generation, state.epoch) == (head.generation, epoch) => Ok((commit, epoch, state)),
        _ => Err(RejectReason::CommitInvalid),
    }
}

/// A member's commit.
fn changed(
    head: &Head,
    change: &mut Change<'_>,
    submission: &Submission,
    commit: &mls::Commit,
) -> Result<(), RejectReason> {
    let roster = change.roster;
    let (own, leaf) = member(roster, submission)?;
    if commit.header.form != Form::MemberCommit(own) {
        return Err(RejectReason::CommitInvalid);
    }
    if let Some(path) = &commit.path_leaf
        && !speaks_for(path, leaf)
    {
        return Err(RejectReason::CommitInvalid);
    }
    let removes: BTreeSet<u32> = commit.removes.iter().copied().collect();
    if !roster.pending_leaves().iter().all(|index| removes.contains(index)) {
        return Err(RejectReason::RemovalRequired);
    }
    for index in &commit.removes {
        if *index == own {
            return Err(RejectReason::CommitInvalid);
        }
        change.remove(*index)?;
    }
    add_all(head, change, submission, commit)?;
    role_suffices(head, roster, change, leaf)
}

fn add_all(
    head: &Head,
    change: &mut Change<'_>,
    submission: &Submission,
    commit: &mls::Commit,
) -> Result<(), RejectReason> {
    for added in &commit.adds {
        let credential = added.leaf.credential;
        let key_hash = added.leaf.key_hash();
        let registered = submission.added_keys.iter().any(|key| {
            let named = (key.tenant, key.user, key.device, key.key_hash);
            named == (credential.tenant, credential.principal, credential.device, key_hash)
        });
        if !registered || added.suite != head.suite {
            return Err(RejectReason::CommitInvalid);
        }
        change.add(&added.leaf)?;
    }
    Ok(())
}

/// Whether a leaf node has the credential and the key that the roster has.
fn speaks_for(node: &LeafNode, leaf: &Leaf) -> bool {
    let credential = node.credential;
    (credential.tenant, credential.principal, credential.device) == (leaf.tenant, leaf.user, leaf.device)
        && node.key_hash() == leaf.key_hash
}

/// Where the policy reserves changes for admins, others may still change their own user's devices and remove what waits for
/// removal.
fn role_suffices(head: &Head, roster: &Roster, change: &Change<'_>, committer: &Leaf) -> Result<(), RejectReason> {
    if head.policy.membership == MembershipRule::Members || committer.role == Role::Admin {
        return Ok(());
    }
    let foreign = |leaf: &Leaf| leaf.user != committer.user;
    let mut removed = change.removed.iter().filter_map(|index| roster.leaves().get(index));
    let mut added = change.added.iter().filter_map(|index| change.leaves.get(index)?.as_ref());
    if removed.any(|leaf| foreign(leaf) && !leaf.removal_pending) || added.any(foreign) {
        return Err(RejectReason::RoleRequired);
    }
    Ok(())
}

/// An external commit: the device takes the lowest free leaf, and its old one goes.
fn joined(change: &mut Change<'_>, submission: &Submission, commit: &mls::Commit) -> Result<(), RejectReason> {
    let envelope = &submission.envelope;
    let node = commit.path_leaf.as_ref().ok_or(RejectReason::CommitInvalid)?;
    let credential = node.credential;
    let claimed = (credential.tenant, credential.principal, credential.device);
    if claimed != (submission.tenant, envelope.sender, envelope.device) || node.key_hash() != submission.key_hash {
        return Err(RejectReason::CommitInvalid);
    }
    let old = change.roster.leaf_of(envelope.sender, envelope.device).map(|(index, _)| index);
    for index in &commit.removes {
        if Some(*index) != old {
            return Err(RejectReason::CommitInvalid);
        }
        change.remove(*index)?;
    }
    change.add(node)
}

fn in_bounds(kind: ConversationKind, after: &Roster) -> Result<(), RejectReason> {
    let users = match kind {
        ConversationKind::Group | ConversationKind::Inbox => MAX_USERS,
        ConversationKind::Direct => 2,
        ConversationKind::SelfNotes => 1,
    };
    let fits = after.user_set().len() <= users && after.leaves().len() <= MAX_DEVICES;
    if fits { Ok(()) } else { Err(RejectReason::ConversationFull) }
}

/// Leaves as a commit changes them, one proposal after another: Removes first, then Adds.
struct Change<'a> {
    roster: &'a Roster,
    epoch: Epoch,
    /// The leaves that change, as they are after it.
    leaves: BTreeMap<u32, Option<Leaf>>,
    removed: Vec<u32>,
    added: Vec<u32>,
    /// No leaf below it is free.
    free_from: u32,
    /// Of the first add, computed once: who stays.
    staying: Option<Staying>,
}

/// What an added leaf is held against.
struct Staying {
    devices: BTreeSet<DeviceId>,
    keys: BTreeSet<Digest>,
    /// The roles of users with a leaf that does not wait for removal, before the commit.
    roles: BTreeMap<UserId, Role>,
}

impl<'a> Change<'a> {
    fn new(roster: &'a Roster, epoch: Epoch) -> Self {
        Self {
            roster,
            epoch,
            leaves: BTreeMap::new(),
            removed: Vec::new(),
            added: Vec::new(),
            free_from: 0,
            staying: None,
        }
    }

    fn remove(&mut self, index: u32) -> Result<(), RejectReason> {
        if !self.roster.leaves().contains_key(&index) || self.leaves.insert(index, None).is_some() {
            return Err(RejectReason::CommitInvalid);
        }
        self.removed.push(index);
        Ok(())
    }

    /// Gives the lowest free leaf to a device that has none yet.
    fn add(&mut self, node: &LeafNode) -> Result<(), RejectReason> {
        let (credential, key_hash) = (node.credential, node.key_hash());
        let (roster, removed) = (self.roster, &self.leaves);
        let staying = self.staying.get_or_insert_with(|| Staying::of(roster, removed));
        if !staying.devices.insert(credential.device) || !staying.keys.insert(key_hash) {
            return Err(RejectReason::CommitInvalid);
        }
        let role = staying.roles.get(&credential.principal).copied().unwrap_or(Role::Member);
        let leaf = Leaf {
            tenant: credential.tenant,
            user: credential.principal,
            device: credential.device,
            key_hash,
            role,
            joined: self.epoch,
            removal_pending: false,
        };
        let index = self.next_free();
        self.leaves.insert(index, Some(leaf));
        self.added.push(index);
        Ok(())
    }

    fn next_free(&mut self) -> u32 {
        let taken = |index: u32| match self.leaves.get(&index) {
            Some(changed) => changed.is_some(),
            None => self.roster.leaves().contains_key(&index),
        };
        let mut index = self.free_from;
        while taken(index) {
            // A roster is far smaller than its index space, so a free leaf comes before the end.
            index = index.saturating_add(1);
        }
        self.free_from = index.saturating_add(1);
        index
    }

    fn into_delta(self) -> Result<Option<RosterDelta>, RejectReason> {
        if self.leaves.is_empty() {
            return Ok(None);
        }
        let to = self.roster.version().checked_add(1).ok_or(RejectReason::CommitInvalid)?;
        Ok(Some(RosterDelta { to, leaves: self.leaves }))
    }
}

impl Staying {
    fn of(roster: &Roster, removed: &BTreeMap<u32, Option<Leaf>>) -> Self {
        let staying = || roster.leaves().iter().filter(|(index, _)| !removed.contains_key(index)).map(|(_, leaf)| leaf);
        let active = roster.leaves().values().filter(|leaf| !leaf.removal_pending);
        Self {
            devices: staying().map(|leaf| leaf.device).collect(),
            keys: staying().map(|leaf| leaf.key_hash).collect(),
            roles: active.map(|leaf| (leaf.user, leaf.role)).collect(),
        }
    }
}
