//! The steps of membership changes.

use openmls::prelude::{MlsGroup, OpenMlsProvider as _};
use wardline_domain::conversation::chain_start;
use wardline_domain::envelope::{Epoch, Generation};
use wardline_domain::{ConversationId, DeviceId, MessageId, UserId};
use wardline_proto::reason::Reason;
use wardline_proto::v1;

use super::{Claimed, Started};
use crate::core::Step;
use crate::device::NewConversation;
use crate::device_log::leaf::Stranger;
use crate::error::{Error, mls};
use crate::mls::group::{self, Change};
use crate::store::conversations::{self, Conversation};
use crate::store::requests::{self, Request};
use crate::view::{ConversationStatus, Incoming};

impl Step<'_> {
    /// Makes the group and the request that creates the conversation.
    pub(crate) fn start_creating(
        &mut self,
        new: &NewConversation,
        authority: &[[u8; 32]],
    ) -> Result<(ConversationId, MessageId), Error> {
        let message = self.next_message();
        let id = ConversationId::from_bytes(*uuid::Uuid::new_v4().as_bytes());
        let row = Conversation {
            id,
            kind: new.kind,
            suite: self.me.suite,
            generation: Generation(0),
            status: ConversationStatus::Creating,
            title: new.title.clone(),
            sequence: 0,
            chain: chain_start(id),
            read: 0,
        };
        let state = self.create_group(&row, authority)?;
        let rule = if new.admins_only { v1::MembershipRule::Admins } else { v1::MembershipRule::Members };
        let request = v1::CreateConversationRequest {
            conversation_id: id.to_string(),
            kind: new.kind as i32,
            suite: u32::from(row.suite),
            policy: Some(v1::ConversationPolicy { membership: rule as i32, retention_days: new.retention_days }),
            group_state: Some(state),
        };
        conversations::save(&self.tx, &row)?;
        requests::insert(&self.tx, id, message, &Request::Create(request), Epoch(0))?;
        Ok((id, message))
    }

    /// The server has the conversation.
    pub(crate) fn created(&mut self, conversation: ConversationId) -> Result<(), Error> {
        requests::remove(&self.tx, conversation)?;
        self.set_status(conversation, ConversationStatus::Active)
    }

    pub(crate) fn set_status(&mut self, conversation: ConversationId, status: ConversationStatus) -> Result<(), Error> {
        if let Some(mut row) = conversations::load(&self.tx, conversation)? {
            row.status = status;
            conversations::save(&self.tx, &row)?;
        }
        Ok(())
    }

    /// The device has no leaf any more, or the conversation was never made.
    pub(crate) fn removed(&mut self, conversation: ConversationId) -> Result<(), Error> {
        let Some(row) = conversations::load(&self.tx, conversation)? else { return Ok(()) };
        group::delete(&self.provider(), conversation, row.generation)?;
        requests::remove(&self.tx, conversation)?;
        conversations::set_pending_removals(&self.tx, conversation, &[])?;
        self.set_status(conversation, ConversationStatus::Removed)?;
        self.told.push(Incoming::Removed(conversation));
        Ok(())
    }

    /// The local group is of no use: the worker rejoins.
    pub(crate) fn broken(&mut self, conversation: ConversationId) -> Result<(), Error> {
        let Some(row) = conversations::load(&self.tx, conversation)? else { return Ok(()) };
        group::delete(&self.provider(), conversation, row.generation)?;
        if let Some(waiting) = requests::load(&self.tx, conversation)? {
            self.lost.push((waiting.message, Reason::EpochConflict));
            requests::remove(&self.tx, conversation)?;
        }
        self.set_status(conversation, ConversationStatus::Broken)
    }

    /// The group has, or would have, a leaf that no device log vouches for. It is given up, and not rejoined by itself: the
    /// server would lead back to the same leaf.
    pub(crate) fn untrusted(&mut self, conversation: ConversationId, stranger: Stranger) -> Result<(), Error> {
        tracing::warn!("a conversation has a device that no device log vouches for; it is not trusted any more");
        self.broken(conversation)?;
        self.set_status(conversation, ConversationStatus::Untrusted)?;
        let Stranger { user, device } = stranger;
        self.told.push(Incoming::Untrusted { conversation, user, device });
        Ok(())
    }

    /// Starts a commit of what `build` asks for and of the removals that wait; `None` when there is nothing to change.
    pub(crate) fn start_change(
        &mut self,
        conversation: ConversationId,
        build: impl Fn(&mut Self, &mut MlsGroup, &Conversation) -> Result<Option<Change>, Error>,
    ) -> Result<Option<Started>, Error> {
        let row = conversations::load(&self.tx, conversation)?.ok_or(Error::Invalid("no such conversation here"))?;
        if row.status != ConversationStatus::Active || requests::load(&self.tx, conversation)?.is_some() {
            return Ok(Some(Started::Busy));
        }
        let mut group = self.group(&row)?;
        let Some(change) = build(self, &mut group, &row)? else { return Ok(None) };
        self.commit_change(&row, &mut group, change).map(|message| Some(Started::Commit(message)))
    }

    fn commit_change(
        &mut self,
        row: &Conversation,
        group: &mut MlsGroup,
        mut change: Change,
    ) -> Result<MessageId, Error> {
        let pending = conversations::pending_removals(&self.tx, row.id)?;
        for (leaf, user, device) in group::leaves(group) {
            if pending.contains(&(user, device)) && device != self.me.device && !change.removes.contains(&leaf) {
                change.removes.push(leaf);
            }
        }
        let built = self.build_commit(row, group, change)?;
        requests::insert(&self.tx, row.id, built.message, &Request::Commit(built.request), built.epoch)?;
        Ok(built.message)
    }

    /// Adds of those who are not in the group yet.
    pub(crate) fn adds(
        &mut self,
        group: &MlsGroup,
        _: &Conversation,
        claimed: &Claimed,
    ) -> Result<Option<Change>, Error> {
        let there = group::devices(group);
        let adds: Vec<_> =
            claimed.iter().filter(|(who, _)| !there.contains(who)).map(|(_, package)| package.clone()).collect();
        Ok((!adds.is_empty()).then(|| Change { adds, removes: Vec::new() }))
    }

    /// Removes of the leaves that `picks` picks; never one's own.
    pub(crate) fn removes(
        &mut self,
        group: &MlsGroup,
        _: &Conversation,
        picks: &impl Fn(UserId, DeviceId) -> bool,
    ) -> Result<Option<Change>, Error> {
        let own = self.me.device;
        let removes: Vec<_> = group::leaves(group)
            .filter(|(_, user, device)| *device != own && picks(*user, *device))
            .map(|(leaf, ..)| leaf)
            .collect();
        Ok((!removes.is_empty()).then(|| Change { adds: Vec::new(), removes }))
    }

    /// Commits the removals that wait, so that content can go on.
    pub(crate) fn commit_removals(&mut self, conversation: ConversationId) -> Result<(), Error> {
        let Some(row) = conversations::load(&self.tx, conversation)? else { return Ok(()) };
        let mut group = self.group(&row)?;
        let pending = conversations::pending_removals(&self.tx, conversation)?;
        if pending.iter().any(|(_, device)| *device == self.me.device) {
            return self.removed(conversation);
        }
        if !pending.iter().any(|who| group::devices(&group).contains(who)) {
            return conversations::set_pending_removals(&self.tx, conversation, &[]);
        }
        self.commit_change(&row, &mut group, Change::default()).map(|_| ())
    }

    /// Joins at `state` by an external commit, which the worker then sends.
    pub(crate) fn commit_external(
        &mut self,
        conversation: ConversationId,
        state: &v1::GroupState,
    ) -> Result<(), Error> {
        let Some(mut row) = conversations::load(&self.tx, conversation)? else { return Ok(()) };
        if row.status != ConversationStatus::Broken {
            return Ok(());
        }
        group::delete(&self.provider(), conversation, row.generation)?;
        row.generation = Generation(state.generation);
        row.status = ConversationStatus::Joining;
        let built = match self.build_external(&row, state)? {
            Ok(built) => built,
            Err(stranger) => {
                // The generation is the one the refused group lies under.
                conversations::save(&self.tx, &row)?;
                return self.untrusted(conversation, stranger);
            }
        };
        requests::insert(&self.tx, conversation, built.message, &Request::External(built.request), built.epoch)?;
        conversations::save(&self.tx, &row)
    }

    /// A request of this device came to nothing.
    pub(crate) fn abandon(
        &mut self,
        conversation: ConversationId,
        message: MessageId,
        reason: Reason,
    ) -> Result<(), Error> {
        let Some(waiting) = requests::load(&self.tx, conversation)?.filter(|waiting| waiting.message == message) else {
            return Ok(());
        };
        requests::remove(&self.tx, conversation)?;
        self.lost.push((message, reason));
        match waiting.request {
            Request::Create(_) => return self.removed(conversation),
            Request::External(_) if reason == Reason::NotAMember => self.removed(conversation)?,
            Request::External(_) => self.broken(conversation)?,
            Request::Commit(_) => self.clear_pending(conversation)?,
        }
        self.told.push(Incoming::CommitLost { conversation, reason });
        Ok(())
    }

    fn clear_pending(&mut self, conversation: ConversationId) -> Result<(), Error> {
        let Some(row) = conversations::load(&self.tx, conversation)? else { return Ok(()) };
        let provider = self.provider();
        match group::load(&provider, conversation, row.generation)? {
            Some(mut group) => group.clear_pending_commit(provider.storage()).map_err(mls),
            None => Ok(()),
        }
    }
}

/// Whether a commit that was refused can be made anew: its epoch is over, or its id is of no use.
pub(crate) const fn may_be_made_anew(reason: Reason) -> bool {
    matches!(reason, Reason::EpochConflict | Reason::StaleEpoch | Reason::MessageIdTime | Reason::MessageIdReused)
}
