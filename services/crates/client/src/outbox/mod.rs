//! The outbox: what waits to be sequenced, what is to be done next for a conversation, and what a refusal means.
//!
//! The rule that makes it simple: content is sequenced only in the current epoch, and the feed is in order. So once a commit
//! has ended an epoch, whatever this device sealed in it and has not seen sequenced never will be; it is sealed again, with a
//! new message id and the same content id, without asking anybody.

pub(crate) mod worker;

use rusqlite::Connection;
use wardline_domain::envelope::{Epoch, Sealed};
use wardline_domain::{ConversationId, MessageId};
use wardline_proto::convert::reject;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::get_outcome_response::Outcome;

use crate::commit::may_be_made_anew;
use crate::content::{self, ContentId, Outgoing};
use crate::core::{Identity, Step};
use crate::error::{Error, STRANGER};
use crate::store::conversations::{self, Conversation};
use crate::store::outbox::{self, Queued, Sealing, State};
use crate::store::requests::{self, Request, Waiting};
use crate::store::{messages, watermarks};
use crate::view::{ConversationStatus, Incoming, MessageState};

/// What is to be done next for a conversation.
pub(crate) enum Work {
    /// Nothing until something changes.
    Nothing,
    /// Make the CreateConversation call.
    Create(MessageId, v1::CreateConversationRequest),
    /// Make the Commit call.
    Commit(Pending),
    /// Make the Send call. `uncertain`: an earlier attempt was begun and its answer is not known.
    Send { id: i64, message: MessageId, sealed: Sealed, uncertain: bool },
    /// Commit the removal of leaves that wait for it.
    Remove,
    /// Join by an external commit.
    Rejoin,
    /// Ask the server how the conversation stands: content was refused and nothing here says why.
    Look,
}

/// A commit to be sent.
pub(crate) struct Pending {
    pub(crate) message: MessageId,
    pub(crate) request: v1::CommitRequest,
    pub(crate) external: bool,
    pub(crate) uncertain: bool,
}

impl Step<'_> {
    /// Saves content to be sent.
    pub(crate) fn queue(&mut self, conversation: ConversationId, outgoing: &Outgoing) -> Result<ContentId, Error> {
        let row = conversations::load(&self.tx, conversation)?.ok_or(Error::Invalid("no such conversation here"))?;
        match row.status {
            ConversationStatus::Removed => return Err(Error::Invalid("the device is no longer in the conversation")),
            ConversationStatus::Untrusted => return Err(Error::Untrusted(STRANGER)),
            _ => {}
        }
        let plain = content::encode(self.next_content(), self.clock.now(), &outgoing.body)?;
        outbox::queue(&self.tx, conversation, &plain, outgoing)?;
        Ok(plain.id)
    }

    /// What is to be done next. Seals content when its turn has come, so that the bytes are saved before they are sent; saved
    /// with them is that an attempt begins, so that dying before its answer is known.
    pub(crate) fn next_work(&mut self, conversation: ConversationId) -> Result<Work, Error> {
        let Some(row) = conversations::load(&self.tx, conversation)? else { return Ok(Work::Nothing) };
        if let Some(waiting) = requests::load(&self.tx, conversation)? {
            if waiting.to_send {
                requests::set_uncertain(&self.tx, conversation, true)?;
            }
            return Ok(request_work(waiting));
        }
        match row.status {
            ConversationStatus::Broken => Ok(Work::Rejoin),
            ConversationStatus::Removed => self.fail_all(conversation),
            ConversationStatus::Active => self.next_content_work(&row),
            ConversationStatus::Creating | ConversationStatus::Joining | ConversationStatus::Untrusted => {
                Ok(Work::Nothing)
            }
        }
    }

    fn next_content_work(&mut self, row: &Conversation) -> Result<Work, Error> {
        let Some(queued) = outbox::next(&self.tx, row.id)? else { return Ok(Work::Nothing) };
        if !conversations::pending_removals(&self.tx, row.id)?.is_empty() {
            return Ok(Work::Remove);
        }
        match (queued.state, &queued.sealing) {
            (State::Sealed, Some(sealing)) => {
                outbox::set_uncertain(&self.tx, queued.id, true)?;
                Ok(Work::Send {
                    id: queued.id,
                    message: sealing.message,
                    sealed: sealing.sealed.clone(),
                    uncertain: queued.uncertain,
                })
            }
            _ => self.seal_queued(row, &queued),
        }
    }

    fn seal_queued(&mut self, row: &Conversation, queued: &Queued) -> Result<Work, Error> {
        let mut group = self.group(row)?;
        let epoch = Epoch(group.epoch().as_u64());
        let refused_here = queued
            .sealing
            .as_ref()
            .is_some_and(|sealing| sealing.generation == row.generation && sealing.epoch >= epoch);
        if refused_here {
            return Ok(Work::Look);
        }
        let (message, sealed) = self.seal(row, &mut group, &queued.content, |envelope| {
            envelope.urgency = queued.urgency;
            envelope.respond_by = queued.respond_by;
            envelope.expires_at = queued.expires_at;
        })?;
        let sealing = Sealing { message, sealed, generation: row.generation, epoch };
        outbox::seal(&self.tx, queued.id, &sealing)?;
        Ok(Work::Send { id: queued.id, message, sealed: sealing.sealed, uncertain: false })
    }

    /// A device without a leaf sends nothing more.
    fn fail_all(&mut self, conversation: ConversationId) -> Result<Work, Error> {
        while let Some(queued) = outbox::next(&self.tx, conversation)? {
            outbox::set_state(&self.tx, queued.id, State::Failed)?;
            let (content, reason) = (queued.content_id, Reason::NotAMember);
            self.told.push(Incoming::Failed { conversation, content, reason });
        }
        Ok(Work::Nothing)
    }

    /// What a refusal after an attempt without answer means, given what became of that attempt.
    pub(crate) fn content_refused_later(
        &mut self,
        conversation: ConversationId,
        message: MessageId,
        reason: Reason,
        outcome: Option<Outcome>,
    ) -> Result<Settled, Error> {
        let reason = match fate(outcome) {
            Fate::Sequenced => {
                if let Some(queued) = outbox::by_message(&self.tx, conversation, message)? {
                    outbox::set_accepted(&self.tx, queued.id, message)?;
                }
                return Ok(Settled::Yes);
            }
            Fate::Rejected(reason) => reason,
            // Sealed again under the same content id it is safe either way: receivers drop a repeat.
            Fate::Open if verdict(reason) == Verdict::Anew => reason,
            Fate::Open => return Ok(Settled::NotYet),
        };
        self.content_refused(conversation, message, reason)?;
        Ok(Settled::Yes)
    }

    /// The same for a commit. Until the outcome is known it is neither lost nor won, unless the server has come to a later
    /// epoch without it: outcomes are written before the epoch moves, and no commit wins afterwards.
    pub(crate) fn commit_refused_later(
        &mut self,
        conversation: ConversationId,
        message: MessageId,
        reason: Reason,
        outcome: Option<Outcome>,
    ) -> Result<Settled, Error> {
        let reason = match fate(outcome) {
            Fate::Sequenced => {
                requests::set_sent(&self.tx, conversation, message)?;
                return Ok(Settled::Yes);
            }
            Fate::Rejected(reason) => reason,
            Fate::Open if may_be_made_anew(reason) => reason,
            Fate::Open => return Ok(Settled::NotYet),
        };
        self.abandon(conversation, message, reason)?;
        Ok(Settled::Yes)
    }

    /// Content was refused, or accepted and then rejected, for good as far as this message id goes.
    pub(crate) fn content_refused(
        &mut self,
        conversation: ConversationId,
        message: MessageId,
        reason: Reason,
    ) -> Result<(), Error> {
        let Some(queued) = outbox::by_message(&self.tx, conversation, message)? else { return Ok(()) };
        match verdict(reason) {
            // It keeps its sealing, so that it is not sealed again before the epoch has changed.
            Verdict::AfterCommit if queued.state == State::Failed => Ok(()),
            Verdict::AfterCommit => outbox::set_state(&self.tx, queued.id, State::Waiting),
            Verdict::Anew => outbox::unseal(&self.tx, queued.id),
            Verdict::Final => {
                self.told.push(Incoming::Failed { conversation, content: queued.content_id, reason });
                outbox::set_state(&self.tx, queued.id, State::Failed)
            }
        }
    }

    /// The server's view of the conversation, asked for after a refusal.
    pub(crate) fn looked(&mut self, answer: &v1::Conversation, conversation: ConversationId) -> Result<bool, Error> {
        let pending = crate::feed::apply::device_refs(&answer.removal_pending);
        conversations::set_pending_removals(&self.tx, conversation, &pending)?;
        let Some(row) = conversations::load(&self.tx, conversation)? else { return Ok(false) };
        if row.status != ConversationStatus::Active {
            return Ok(false);
        }
        let epoch = self.group(&row)?.epoch().as_u64();
        let level = answer.generation == row.generation.0 && answer.epoch == epoch;
        if level
            && pending.is_empty()
            && let Some(queued) = outbox::next(&self.tx, conversation)?
        {
            outbox::unseal(&self.tx, queued.id)?;
        }
        Ok(level)
    }
}

/// Whether it is known what became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    /// Ask again later.
    NotYet,
}

/// What an outcome says.
enum Fate {
    Sequenced,
    Rejected(Reason),
    /// Nothing yet; or a reason that this version does not know.
    Open,
}

fn fate(outcome: Option<Outcome>) -> Fate {
    match outcome {
        Some(Outcome::Sequenced(_)) => Fate::Sequenced,
        Some(Outcome::Rejected(rejected)) => {
            reject::from_number(rejected.reason).map_or(Fate::Open, |reason| Fate::Rejected(reject::to_reason(reason)))
        }
        Some(Outcome::Pending(_)) | None => Fate::Open,
    }
}

fn request_work(waiting: Waiting) -> Work {
    let Waiting { message, request, uncertain, .. } = waiting;
    match request {
        _ if !waiting.to_send => Work::Nothing,
        Request::Create(request) => Work::Create(message, request),
        Request::Commit(request) => Work::Commit(Pending { message, request, external: false, uncertain }),
        Request::External(request) => Work::Commit(Pending { message, request, external: true, uncertain }),
    }
}

/// What a refusal of content means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Seal again once a commit has ended the epoch.
    AfterCommit,
    /// Seal again at once.
    Anew,
    /// Never.
    Final,
}

const fn verdict(reason: Reason) -> Verdict {
    match reason {
        Reason::StaleEpoch | Reason::EpochConflict | Reason::RemovalRequired => Verdict::AfterCommit,
        Reason::MessageIdReused | Reason::MessageIdTime => Verdict::Anew,
        _ => Verdict::Final,
    }
}

/// Where a message of this device stands.
pub(crate) fn state(
    connection: &Connection,
    me: &Identity,
    conversation: ConversationId,
    content: ContentId,
) -> Result<Option<MessageState>, Error> {
    if let Some(state) = outbox::state_of(connection, conversation, content)? {
        return Ok(Some(match state {
            State::Waiting | State::Sealed => MessageState::Queued,
            State::Accepted => MessageState::Accepted,
            State::Failed => MessageState::Failed,
        }));
    }
    let Some(at) = messages::sequence_of_content(connection, conversation, me.device, content)? else {
        return Ok(None);
    };
    let own = me.account.map(|account| account.user);
    let others: std::collections::BTreeSet<_> = crate::mls::group::members(connection, conversation)?
        .into_iter()
        .map(|member| member.user)
        .filter(|user| Some(*user) != own)
        .collect();
    let marks = watermarks::all(connection, conversation)?;
    let got = |mark: &crate::view::ReceiptView| {
        mark.delivered >= at && !mark.skipped.iter().any(|(first, last)| (*first..=*last).contains(&at))
    };
    let all = |has: &dyn Fn(&crate::view::ReceiptView) -> bool| {
        !others.is_empty() && others.iter().all(|user| marks.iter().any(|mark| mark.user == *user && has(mark)))
    };
    Ok(Some(if all(&|mark| mark.read >= at) {
        MessageState::Read(at)
    } else if all(&got) {
        MessageState::Delivered(at)
    } else {
        MessageState::Sequenced(at)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_verdict_that_its_remedy_asks_for() {
        for reason in Reason::ALL {
            let expected = match reason {
                Reason::StaleEpoch | Reason::EpochConflict | Reason::RemovalRequired => Verdict::AfterCommit,
                Reason::MessageIdReused | Reason::MessageIdTime => Verdict::Anew,
                _ => Verdict::Final,
            };
            assert_eq!(verdict(*reason), expected, "{}", reason.as_str());
        }
    }
}
