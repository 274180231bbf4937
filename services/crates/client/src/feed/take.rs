//! Taking one sequenced message: order, chain, MLS, plaintext. The same for the feed and for history.

use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::prelude::{
    MlsGroup, MlsMessageIn, OpenMlsProvider as _, ProcessedMessage, ProcessedMessageContent, Sender, StagedCommit,
};
use wardline_domain::conversation::chain_next;
use wardline_domain::envelope::{Envelope, Epoch, MessageKind, Sequence};
use wardline_domain::{ConversationId, DeviceId, UserId};
use wardline_proto::reason::Reason;

use super::message::Sequenced;
use crate::content::{self, ContentId};
use crate::core::Step;
use crate::device_log::leaf::{self, Leaf, Standing, Stranger};
use crate::error::{Error, mls};
use crate::mls::group::{self, credential_of};
use crate::store::conversations::{self, Conversation};
use crate::store::messages::{self, Stored};
use crate::store::outbox;
use crate::store::requests::{self, Request};
use crate::view::{ConversationStatus, HistoryKind, Incoming};

/// Whether a message could be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    /// Yes, or it was there already.
    Done,
    /// Messages before it are missing.
    Gap,
}

/// What a commit changed.
#[derive(Default)]
struct Changed {
    added: Vec<(UserId, DeviceId)>,
    removed: Vec<(UserId, DeviceId)>,
}

impl Step<'_> {
    /// Takes one message.
    ///
    /// # Errors
    /// [`Error::Untrusted`] when the chain does not hold: the server shows another history than before.
    pub(crate) fn take(&mut self, message: &Sequenced) -> Result<Took, Error> {
        let Some(mut row) = conversations::load(&self.tx, message.conversation)? else {
            return self.take_unknown(message).map(|()| Took::Done);
        };
        if message.sequence <= row.sequence {
            return Ok(Took::Done);
        }
        let follows = message.sequence == row.sequence + 1;
        if !follows && row.status == ConversationStatus::Active {
            return Ok(Took::Gap);
        }
        if follows && !follows_chain(&row, message) {
            return Err(Error::Untrusted("a conversation's chain does not hold"));
        }
        if !follows {
            self.skip(&row, row.sequence + 1, message.sequence - 1)?;
        }
        row.sequence = message.sequence;
        row.chain = message.chain;
        conversations::save(&self.tx, &row)?;
        match &message.envelope {
            Some(envelope) if envelope.device == self.me.device => self.take_own(&row, message, envelope)?,
            Some(envelope) if row.status == ConversationStatus::Active => self.take_others(&row, message, envelope)?,
            None if row.status == ConversationStatus::Active => self.keep(message, Stored::Unreadable)?,
            _ => self.skip(&row, message.sequence, message.sequence)?,
        }
        Ok(Took::Done)
    }

    /// The device has a leaf in a conversation that it knows nothing of.
    fn take_unknown(&mut self, message: &Sequenced) -> Result<(), Error> {
        let mut row = unknown(message.conversation, self.me.suite);
        row.sequence = message.sequence;
        row.chain = message.chain;
        if let Some(envelope) = &message.envelope {
            row.generation = envelope.generation;
        }
        conversations::save(&self.tx, &row)
    }

    fn skip(&mut self, row: &Conversation, first: u64, last: u64) -> Result<(), Error> {
        if first > last || row.status == ConversationStatus::Removed {
            return Ok(());
        }
        self.told.push(Incoming::Skipped { conversation: row.id, first, last });
        conversations::skip(&self.tx, row.id, first, last)
    }

    /// A message of this device: never decrypted, its plaintext was kept.
    fn take_own(&mut self, row: &Conversation, message: &Sequenced, envelope: &Envelope) -> Result<(), Error> {
        match envelope.kind {
            MessageKind::Application => self.take_own_content(row, message, envelope),
            // The group is given up; the person decides about rejoining.
            _ if row.status == ConversationStatus::Untrusted => self.keep(message, Stored::Commit),
            MessageKind::Commit => {
                self.take_own_commit(row, envelope)?;
                self.keep(message, Stored::Commit)
            }
            MessageKind::ExternalCommit => {
                self.take_own_external(row, envelope)?;
                self.keep(message, Stored::Commit)
            }
        }
    }

    fn take_own_content(&mut self, row: &Conversation, message: &Sequenced, envelope: &Envelope) -> Result<(), Error> {
        let queued = outbox::by_message(&self.tx, row.id, envelope.message)?;
        let ours = queued.filter(|queued| {
            queued.sealing.as_ref().is_some_and(|sealing| sealing.sealed.mls_message == message.mls_message)
        });
        match ours {
            Some(queued) => {
                outbox::remove(&self.tx, queued.id)?;
                self.keep_content(message, queued.content_id, queued.content)
            }
            None => self.keep(message, Stored::Unreadable),
        }
    }

    fn take_own_commit(&mut self, row: &Conversation, envelope: &Envelope) -> Result<(), Error> {
        let waiting = requests::load(&self.tx, row.id)?.filter(|waiting| waiting.message == envelope.message);
        let Some(_) = waiting.filter(|_| row.status == ConversationStatus::Active) else {
            return self.broken(row.id);
        };
        let mut group = self.group(row)?;
        let changed = group.pending_commit().map(|staged| changes(&group, staged)).unwrap_or_default();
        if group.merge_pending_commit(&self.provider()).is_err() {
            return self.broken(row.id);
        }
        requests::remove(&self.tx, row.id)?;
        self.epoch_began(row, &group, changed)
    }

    /// The external commit won: the group that was made with it is the group.
    fn take_own_external(&mut self, row: &Conversation, envelope: &Envelope) -> Result<(), Error> {
        let waiting = requests::load(&self.tx, row.id)?.filter(|waiting| waiting.message == envelope.message);
        let Some(_) = waiting.filter(|_| row.status == ConversationStatus::Joining) else {
            return self.broken(row.id);
        };
        requests::remove(&self.tx, row.id)?;
        self.set_status(row.id, ConversationStatus::Active)?;
        let group = self.group(row)?;
        self.told.push(Incoming::Joined(row.id));
        self.epoch_began(row, &group, Changed::default())
    }

    fn take_others(&mut self, row: &Conversation, message: &Sequenced, envelope: &Envelope) -> Result<(), Error> {
        let mut group = self.group(row)?;
        let processed = self.process(&mut group, message, envelope);
        if envelope.kind == MessageKind::Application {
            return match processed.map(ProcessedMessage::into_content) {
                Ok(ProcessedMessageContent::ApplicationMessage(plain)) => {
                    let plain = plain.into_bytes();
                    match content::id_of(&plain) {
                        Some(id) => self.keep_content(message, id, plain),
                        None => self.keep(message, Stored::Unreadable),
                    }
                }
                _ => self.keep(message, Stored::Unreadable),
            };
        }
        self.keep(message, Stored::Commit)?;
        let processed = match processed {
            Ok(processed) => processed,
            Err(error) => {
                tracing::warn!(%error, "a commit could not be processed; the device rejoins");
                return self.broken(row.id);
            }
        };
        let sender = processed.sender().clone();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return self.broken(row.id);
        };
        match self.stranger_of(&group, &sender, &staged)? {
            Some(stranger) => self.untrusted(row.id, stranger),
            None => {
                let joiner = matches!(sender, Sender::NewMemberCommit).then_some((envelope.sender, envelope.device));
                self.merge(row, &mut group, *staged, joiner)
            }
        }
    }

    /// A leaf that a commit would put into the tree without its user's device log vouching for it.
    fn stranger_of(&self, group: &MlsGroup, sender: &Sender, staged: &StagedCommit) -> Result<Option<Stranger>, Error> {
        // Out of the group, one gets no secrets that a stranger could share.
        if staged.self_removed() {
            return Ok(None);
        }
        let added = staged.add_proposals().map(|add| Leaf::of(add.add_proposal().key_package().leaf_node()));
        let mut joining: Vec<Leaf> = added.collect();
        let path = staged.update_path_leaf_node().map(Leaf::of);
        match (sender, path) {
            (Sender::Member(index), Some(path)) => {
                if !group.member_at(*index).is_some_and(|member| path.is(&member)) {
                    return Ok(Some(path.claimant()));
                }
            }
            (Sender::Member(_), None) => {}
            (_, path) => joining.extend(path),
        }
        // Ours make none, and it could change a leaf's key.
        if let Some(update) = staged.update_proposals().next() {
            return Ok(Some(Leaf::of(update.update_proposal().leaf_node()).claimant()));
        }
        leaf::stranger(&self.tx, self.me, u16::from(group.ciphersuite()), Standing::Joins, &joining)
    }

    /// Decrypts and verifies; the MLS message must carry the envelope and be by its sender.
    fn process(
        &self,
        group: &mut MlsGroup,
        message: &Sequenced,
        envelope: &Envelope,
    ) -> Result<ProcessedMessage, Error> {
        let wire = MlsMessageIn::tls_deserialize_exact_bytes(&message.mls_message).map_err(mls)?;
        let protocol = wire.try_into_protocol_message().map_err(mls)?;
        let processed = group.process_message(&self.provider(), protocol).map_err(mls)?;
        if processed.aad() != message.envelope_digest.as_bytes() {
            return Err(Error::Untrusted("an MLS message that does not carry its envelope"));
        }
        let by = credential_of(processed.credential());
        if by.is_none_or(|by| by.principal != envelope.sender || by.device != envelope.device) {
            return Err(Error::Untrusted("an MLS message by another than its envelope says"));
        }
        Ok(processed)
    }

    fn merge(
        &mut self,
        row: &Conversation,
        group: &mut MlsGroup,
        staged: StagedCommit,
        joiner: Option<(UserId, DeviceId)>,
    ) -> Result<(), Error> {
        let mut changed = changes(group, &staged);
        changed.added.extend(joiner);
        let gone = staged.self_removed();
        let provider = self.provider();
        group.clear_pending_commit(provider.storage()).map_err(mls)?;
        group.merge_staged_commit(&provider, staged).map_err(mls)?;
        self.lose_own(row)?;
        if gone {
            return self.removed(row.id);
        }
        self.epoch_began(row, group, changed)
    }

    /// Another commit won: one's own that waits is lost.
    fn lose_own(&mut self, row: &Conversation) -> Result<(), Error> {
        let Some(waiting) = requests::load(&self.tx, row.id)? else { return Ok(()) };
        if matches!(waiting.request, Request::Commit(_)) {
            requests::remove(&self.tx, row.id)?;
            self.lost.push((waiting.message, Reason::EpochConflict));
            self.told.push(Incoming::CommitLost { conversation: row.id, reason: Reason::EpochConflict });
        }
        Ok(())
    }

    /// After a merge: what was sealed before is to be sealed again, and removals that happened are no longer waited for.
    fn epoch_began(&mut self, row: &Conversation, group: &MlsGroup, changed: Changed) -> Result<(), Error> {
        outbox::requeue_before(&self.tx, row.id, row.generation, Epoch(group.epoch().as_u64()))?;
        let there = group::devices(group);
        let mut pending = conversations::pending_removals(&self.tx, row.id)?;
        pending.retain(|who| there.contains(who));
        conversations::set_pending_removals(&self.tx, row.id, &pending)?;
        let Changed { added, removed } = changed;
        if !added.is_empty() || !removed.is_empty() {
            self.told.push(Incoming::MembersChanged { conversation: row.id, added, removed });
        }
        Ok(())
    }

    /// Keeps content once: what this device's sender already said is a repeat.
    fn keep_content(&mut self, message: &Sequenced, id: ContentId, plain: Vec<u8>) -> Result<(), Error> {
        let device = message.envelope.as_ref().map(|envelope| envelope.device);
        let known = device.map(|device| messages::sequence_of_content(&self.tx, message.conversation, device, id));
        match known.transpose()?.flatten() {
            Some(_) => self.keep(message, Stored::Repeat(id)),
            None => self.keep(message, Stored::Content(id, plain)),
        }
    }

    fn keep(&mut self, message: &Sequenced, stored: Stored) -> Result<(), Error> {
        let kind = match &stored {
            Stored::Content(id, plain) => HistoryKind::Content { id: *id, body: content::decode(plain) },
            Stored::Repeat(id) => HistoryKind::Repeat { id: *id },
            Stored::Commit => HistoryKind::Commit,
            Stored::Unreadable => HistoryKind::Unreadable,
        };
        let tell = matches!(stored, Stored::Content(..) | Stored::Unreadable);
        let entry = message.entry(kind);
        messages::insert(&self.tx, &entry, &stored)?;
        if tell {
            self.told.push(Incoming::Message(std::sync::Arc::new(entry)));
        }
        Ok(())
    }
}

fn follows_chain(row: &Conversation, message: &Sequenced) -> bool {
    let expected = chain_next(row.chain, Sequence(message.sequence), message.envelope_digest, message.mls_digest);
    expected == message.chain
}

/// A conversation the device must rejoin: nothing of it is known but its id.
pub(super) fn unknown(id: ConversationId, suite: u16) -> Conversation {
    Conversation {
        id,
        kind: wardline_domain::record::ConversationKind::Group,
        suite,
        generation: wardline_domain::envelope::Generation(0),
        status: ConversationStatus::Broken,
        title: String::new(),
        sequence: 0,
        chain: wardline_domain::conversation::chain_start(id),
        read: 0,
    }
}

/// Who comes and who goes with a commit.
fn changes(group: &MlsGroup, staged: &StagedCommit) -> Changed {
    let who = |credential: &openmls::prelude::Credential| {
        credential_of(credential).map(|credential| (credential.principal, credential.device))
    };
    let added = staged
        .add_proposals()
        .filter_map(|proposal| who(proposal.add_proposal().key_package().leaf_node().credential()))
        .collect();
    let removed = staged
        .remove_proposals()
        .filter_map(|proposal| who(group.member(proposal.remove_proposal().removed())?))
        .collect();
    Changed { added, removed }
}
