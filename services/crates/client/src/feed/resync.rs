//! After the feed was cut: read from history what it would have brought, and rejoin where that is not enough.

use std::sync::Arc;
use std::time::Duration;

use wardline_domain::ConversationId;
use wardline_domain::envelope::Generation;
use wardline_proto::convert::{ids, reject};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::get_outcome_response::Outcome;

use super::stream::with_body;
use super::take::{Took, unknown};
use crate::core::Step;
use crate::device::Inner;
use crate::error::Error;
use crate::store::{self, conversations, outbox};
use crate::view::ConversationStatus;

/// Brings every conversation to where the server is, then says so in the file.
pub(super) async fn run(inner: &Arc<Inner>) -> Result<(), Error> {
    let mut token = String::new();
    let mut listed = Vec::new();
    loop {
        let page = inner.rpc.conversations(token).await?;
        for one in page.conversations {
            if let Some(id) = bring_up(inner, &one).await? {
                listed.push(id);
            }
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    for id in inner.read(|core| unlisted(core.connection(), &listed))? {
        // The list may lag. A group that is deleted cannot be had back.
        if !inner.rpc.is_member(id).await? {
            inner.step(|step| step.removed(id))?;
        }
    }
    inner.step(|step| {
        let place = store::feed::load(&step.tx)?;
        store::feed::save(&step.tx, &store::feed::Place { resync: false, ..place })
    })
}

/// Conversations that the device is in and the server's list has not.
fn unlisted(connection: &rusqlite::Connection, listed: &[ConversationId]) -> Result<Vec<ConversationId>, Error> {
    use ConversationStatus::{Active, Broken, Untrusted};
    let mut unlisted = Vec::new();
    for id in conversations::ids(connection)?.into_iter().filter(|id| !listed.contains(id)) {
        let row = conversations::load(connection, id)?;
        if row.is_some_and(|row| matches!(row.status, Active | Broken | Untrusted)) {
            unlisted.push(id);
        }
    }
    Ok(unlisted)
}

/// One conversation of the server's list.
async fn bring_up(inner: &Arc<Inner>, one: &v1::ListedConversation) -> Result<Option<ConversationId>, Error> {
    let Some(theirs) = one.conversation.as_ref() else { return Ok(None) };
    let Ok(id) = ids::conversation(&theirs.id, "") else { return Ok(None) };
    inner.step(|step| step.listed(id, theirs, one.device_is_member))?;
    catch_up(inner, id, Some(theirs.sequence)).await?;
    settle(inner, id).await?;
    Ok(Some(id))
}

/// Reads history from where the device is, up to `wanted` or to what there is. What cannot be read is skipped by rejoining.
pub(super) async fn catch_up(inner: &Arc<Inner>, id: ConversationId, wanted: Option<u64>) -> Result<(), Error> {
    loop {
        let row = inner.read(|core| conversations::load(core.connection(), id))?;
        let Some(row) = row.filter(|row| row.status == ConversationStatus::Active) else { return Ok(()) };
        if wanted.is_some_and(|wanted| row.sequence >= wanted) {
            return Ok(());
        }
        let page = match inner.rpc.messages(id, row.sequence).await {
            Ok(page) => page,
            Err(error) if error.reason() == Some(Reason::NotAMember) && !inner.rpc.is_member(id).await? => {
                return inner.step(|step| step.removed(id));
            }
            Err(error) => return Err(error),
        };
        let Some(last) = page.messages.last().map(|message| message.sequence) else {
            // Nothing where something should be: retention has removed it.
            return if page.last_sequence > row.sequence { inner.step(|step| step.broken(id)) } else { Ok(()) };
        };
        let mut messages = Vec::with_capacity(page.messages.len());
        for message in page.messages {
            messages.push(with_body(inner, message).await?);
        }
        inner.step(|step| {
            for message in &messages {
                if step.take(message)? == Took::Gap {
                    return step.broken(id);
                }
            }
            Ok(())
        })?;
        if wanted.is_none() && last >= page.last_sequence {
            return Ok(());
        }
    }
}

/// Asks for the outcome of what was accepted and has not come: its event may have been among those that are gone.
async fn settle(inner: &Arc<Inner>, id: ConversationId) -> Result<(), Error> {
    for message in inner.read(|core| outbox::accepted(core.connection(), id))? {
        let outcome = match inner.rpc.outcome(id, message, Duration::ZERO).await {
            Ok(outcome) => outcome,
            Err(error) if error.passes() => return Err(error),
            Err(_) => continue,
        };
        let Some(Outcome::Rejected(rejected)) = outcome else { continue };
        if let Some(reason) = reject::from_number(rejected.reason).map(reject::to_reason) {
            inner.step(|step| step.content_refused(id, message, reason))?;
        }
    }
    let request = inner.read(|core| store::requests::load(core.connection(), id))?;
    let Some(waiting) = request.filter(|waiting| !waiting.to_send) else { return Ok(()) };
    if let Some(Outcome::Rejected(rejected)) = inner.rpc.outcome(id, waiting.message, Duration::ZERO).await?
        && let Some(reason) = reject::from_number(rejected.reason).map(reject::to_reason)
    {
        inner.step(|step| step.abandon(id, waiting.message, reason))?;
    }
    Ok(())
}

impl Step<'_> {
    /// What the server's list says against what the device has.
    fn listed(&mut self, id: ConversationId, theirs: &v1::Conversation, member: bool) -> Result<(), Error> {
        let pending = super::apply::device_refs(&theirs.removal_pending);
        let row = conversations::load(&self.tx, id)?;
        // A list that is behind this device may not know yet that it joined.
        if row.as_ref().is_some_and(|row| theirs.sequence < row.sequence) {
            return Ok(());
        }
        let gone = !member || pending.iter().any(|(_, device)| *device == self.me.device);
        match row {
            // Not (yet) added by anybody: nothing to join with but an external commit, which a member user may make.
            None if gone => return Ok(()),
            None => {
                let mut row = unknown(id, self.me.suite);
                row.generation = Generation(theirs.generation);
                row.suite = u16::try_from(theirs.suite).unwrap_or(row.suite);
                row.sequence = theirs.sequence;
                row.chain = wardline_domain::Digest::try_from(theirs.chain_hash.as_ref()).unwrap_or(row.chain);
                conversations::save(&self.tx, &row)?;
            }
            Some(row) => match row.status {
                ConversationStatus::Active | ConversationStatus::Broken | ConversationStatus::Untrusted if gone => {
                    return self.removed(id);
                }
                ConversationStatus::Active if row.generation.0 != theirs.generation => self.broken(id)?,
                ConversationStatus::Removed if !gone => self.set_status(id, ConversationStatus::Broken)?,
                _ => {}
            },
        }
        conversations::set_pending_removals(&self.tx, id, &pending)
    }
}
