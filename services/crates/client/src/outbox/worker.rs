//! The outbox worker: one task that lets each conversation with work make one call at a time.
//!
//! Deliberately absent: decisions about what a refusal means; those are steps.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use wardline_domain::ConversationId;
use wardline_domain::MessageId;
use wardline_domain::envelope::Sealed;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::get_outcome_response::Outcome;

use super::{Pending, Work};
use crate::device::Inner;
use crate::device_log::{follow, leaf};
use crate::error::Error;
use crate::failpoint::Point;
use crate::store::{conversations, outbox, requests};

/// How many conversations make calls at once.
const CONCURRENCY: usize = 32;
/// How long to wait for the outcome of what was refused after an unanswered attempt.
const OUTCOME_WAIT: Duration = Duration::from_secs(5);

/// Works until the device stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut running = JoinSet::new();
    let mut busy = HashSet::new();
    loop {
        let woken = inner.work.notified();
        start_all(&inner, &mut running, &mut busy);
        tokio::select! {
            () = inner.stop.cancelled() => return,
            Some(ended) = running.join_next() => {
                if let Ok(conversation) = ended {
                    busy.remove(&conversation);
                }
            }
            () = woken => {}
        }
    }
}

fn start_all(inner: &Arc<Inner>, running: &mut JoinSet<ConversationId>, busy: &mut HashSet<ConversationId>) {
    let waiting = inner.read(|core| {
        if core.identity.account.is_none() { Ok(Vec::new()) } else { conversations::with_work(core.connection()) }
    });
    for conversation in waiting.unwrap_or_default() {
        if busy.len() < CONCURRENCY && has_work(inner, conversation) && busy.insert(conversation) {
            let inner = Arc::clone(inner);
            running.spawn(async move {
                work_off(&inner, conversation).await;
                conversation
            });
        }
    }
}

/// Cheap: without sealing anything, so that a conversation that only waits is not started over and over.
fn has_work(inner: &Arc<Inner>, conversation: ConversationId) -> bool {
    inner.read(|core| crate::outbox::worker::may_work(core.connection(), conversation)).unwrap_or(false)
}

fn may_work(connection: &rusqlite::Connection, conversation: ConversationId) -> Result<bool, Error> {
    use crate::view::ConversationStatus::{Creating, Joining, Untrusted};
    if let Some(waiting) = requests::load(connection, conversation)? {
        return Ok(waiting.to_send);
    }
    let row = conversations::load(connection, conversation)?;
    Ok(row.is_some_and(|row| !matches!(row.status, Creating | Joining | Untrusted)))
}

/// Does what there is to do, until there is nothing or a call failed for good.
async fn work_off(inner: &Arc<Inner>, conversation: ConversationId) {
    let mut attempt = 0;
    loop {
        let done = tokio::select! {
            () = inner.stop.cancelled() => return,
            done = work_once(inner, conversation) => done,
        };
        match done {
            Ok(true) => attempt = 0,
            Ok(false) | Err(Error::Stopped) => return,
            Err(error) => {
                tracing::debug!(%error, attempt, "a conversation's call waits for its next attempt");
                let delay = inner.options.backoff.delay(attempt, error.retry_after());
                attempt = attempt.saturating_add(1);
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }
}

/// One piece of work; `false` when there was none. An error means: again, later.
async fn work_once(inner: &Arc<Inner>, conversation: ConversationId) -> Result<bool, Error> {
    match inner.step(|step| step.next_work(conversation))? {
        Work::Nothing => return Ok(false),
        Work::Create(message, request) => create(inner, conversation, message, request).await?,
        Work::Commit(pending) => commit(inner, conversation, pending).await?,
        Work::Send { id, message, sealed, uncertain } => {
            send(inner, conversation, id, message, sealed, uncertain).await?;
        }
        Work::Remove => inner.step(|step| step.commit_removals(conversation))?,
        Work::Rejoin => rejoin(inner, conversation).await?,
        Work::Look => look(inner, conversation).await?,
    }
    Ok(true)
}

async fn create(
    inner: &Arc<Inner>,
    conversation: ConversationId,
    message: MessageId,
    request: v1::CreateConversationRequest,
) -> Result<(), Error> {
    inner.dies_at(Point::BeforeSend)?;
    let answer = inner.rpc.create_conversation(request).await;
    inner.dies_at(Point::AfterSend)?;
    match answer {
        Ok(()) => inner.step(|step| step.created(conversation)),
        Err(error) if error.passes() => Err(error),
        Err(error) => {
            let reason = error.reason().unwrap_or(Reason::Internal);
            inner.step(|step| step.abandon(conversation, message, reason))
        }
    }
}

async fn commit(inner: &Arc<Inner>, conversation: ConversationId, pending: Pending) -> Result<(), Error> {
    let Pending { message, request, external, uncertain } = pending;
    inner.dies_at(Point::BeforeSend)?;
    let answer = inner.rpc.commit(request).await;
    inner.dies_at(Point::AfterSend)?;
    let error = match answer {
        Ok(()) => return inner.step(|step| requests::set_sent(&step.tx, conversation, message)),
        Err(error) => error,
    };
    if error.passes() {
        if matches!(error, Error::Unknown(_)) {
            inner.step(|step| requests::set_uncertain(&step.tx, conversation))?;
        }
        return Err(error);
    }
    let reason = error.reason().unwrap_or(Reason::Internal);
    if reason == Reason::NotAMember && !external {
        return Err(error);
    }
    // Another commit ended the epoch, or our own did: the feed will bring whichever it was.
    let feed_tells = !external && matches!(reason, Reason::EpochConflict | Reason::StaleEpoch);
    if feed_tells || (uncertain && was_sequenced(inner, conversation, message).await?) {
        return inner.step(|step| requests::set_sent(&step.tx, conversation, message));
    }
    inner.step(|step| step.abandon(conversation, message, reason))?;
    if reason == Reason::RemovalRequired { look(inner, conversation).await } else { Ok(()) }
}

async fn send(
    inner: &Arc<Inner>,
    conversation: ConversationId,
    id: i64,
    message: MessageId,
    sealed: Sealed,
    uncertain: bool,
) -> Result<(), Error> {
    inner.dies_at(Point::BeforeSend)?;
    let sealed = v1::Sealed { envelope: sealed.envelope, mls_message: sealed.mls_message };
    let answer = inner.rpc.send(sealed).await;
    inner.dies_at(Point::AfterSend)?;
    let error = match answer {
        Ok(()) => return inner.step(|step| outbox::set_accepted(&step.tx, id, message)),
        Err(error) => error,
    };
    if error.passes() {
        if matches!(error, Error::Unknown(_)) {
            inner.step(|step| outbox::set_uncertain(&step.tx, id))?;
        }
        return Err(error);
    }
    let reason = error.reason().unwrap_or(Reason::Internal);
    // The server's view of the members may lag behind the Welcome. If the device is out, its feed says so.
    if reason == Reason::NotAMember {
        return Err(error);
    }
    let feed_tells = matches!(reason, Reason::EpochConflict | Reason::StaleEpoch | Reason::RemovalRequired);
    if uncertain && !feed_tells && was_sequenced(inner, conversation, message).await? {
        return inner.step(|step| outbox::set_accepted(&step.tx, id, message));
    }
    inner.step(|step| step.content_refused(conversation, message, reason))
}

/// A refusal after an unanswered attempt says nothing about that attempt: ask for its outcome.
async fn was_sequenced(inner: &Arc<Inner>, conversation: ConversationId, message: MessageId) -> Result<bool, Error> {
    match inner.rpc.outcome(conversation, message, OUTCOME_WAIT).await {
        Ok(outcome) => Ok(matches!(outcome, Some(Outcome::Sequenced(_)))),
        Err(error) if error.passes() => Err(error),
        Err(_) => Ok(false),
    }
}

async fn rejoin(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    match inner.rpc.group_state_patiently(conversation, None).await {
        Ok(state) => {
            if let Ok(tree) = crate::mls::join::tree(&state) {
                follow::learn(inner, &leaf::of_tree(&tree)).await?;
            }
            inner.step(|step| step.commit_external(conversation, &state))
        }
        Err(error) if error.passes() => Err(error),
        Err(error) => {
            tracing::info!(%error, "a conversation cannot be rejoined");
            inner.step(|step| step.removed(conversation))
        }
    }
}

/// Asks how the conversation stands; an error when it stands further than here, so that the feed gets time.
async fn look(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    let answer = inner.rpc.conversation(conversation).await?;
    let level = inner.step(|step| step.looked(&answer, conversation))?;
    if level || !answer.removal_pending.is_empty() { Ok(()) } else { Err(Error::TimedOut("the feed to catch up")) }
}
