//! The outbox worker: one task that lets each conversation with work make one call at a time.
//!
//! Deliberately absent: decisions about what a refusal means; those are steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;
use wardline_domain::ConversationId;
use wardline_domain::MessageId;
use wardline_domain::envelope::Sealed;
use wardline_proto::reason::Reason;
use wardline_proto::v1;

use super::{Pending, Settled, Work};
use crate::commit::may_be_made_anew;
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
    let mut desk = Desk::default();
    loop {
        let woken = inner.work.notified();
        let now = Instant::now();
        desk.start_all(&inner, now);
        let resumed = desk.next_resumption(now);
        tokio::select! {
            () = inner.stop.cancelled() => return,
            Some(ended) = desk.running.join_next_with_id() => desk.ended(&inner, ended),
            () = tokio::time::sleep_until(resumed.unwrap_or(now)), if resumed.is_some() => {}
            () = woken => {}
        }
    }
}

/// Conversations at work and those that wait before their next call. Who waits holds no place among the former.
#[derive(Default)]
struct Desk {
    running: JoinSet<Ended>,
    busy: HashMap<task::Id, ConversationId>,
    pauses: HashMap<ConversationId, Pause>,
}

/// A conversation makes no call for a while.
struct Pause {
    until: Instant,
    /// How many in a row have gone before it.
    attempt: u32,
}

/// How a conversation's work ended.
enum Ended {
    /// There is nothing to do until something changes.
    Idle,
    /// A call is to be made again, not before what the server asked for. `progressed`: others were answered before it.
    Again { at_least: Option<Duration>, progressed: bool },
}

impl Desk {
    fn start_all(&mut self, inner: &Arc<Inner>, now: Instant) {
        let waiting = inner.read(|core| {
            if core.identity.account.is_none() { Ok(Vec::new()) } else { conversations::with_work(core.connection()) }
        });
        for conversation in waiting.unwrap_or_default() {
            if self.busy.len() >= CONCURRENCY {
                return;
            }
            let paused = self.pauses.get(&conversation).is_some_and(|pause| pause.until > now);
            let busy = self.busy.values().any(|busy| *busy == conversation);
            if !paused && !busy && has_work(inner, conversation) {
                let inner = Arc::clone(inner);
                let task = self.running.spawn(async move { work_off(&inner, conversation).await });
                self.busy.insert(task.id(), conversation);
            }
        }
    }

    /// When the next pause ends that was not over at `now`, the time of the last start.
    fn next_resumption(&self, now: Instant) -> Option<Instant> {
        self.pauses.values().map(|pause| pause.until).filter(|until| *until > now).min()
    }

    fn ended(&mut self, inner: &Arc<Inner>, ended: Result<(task::Id, Ended), JoinError>) {
        let (task, ended) = match ended {
            Ok((task, ended)) => (task, ended),
            Err(error) => {
                tracing::error!("a conversation's work panicked; it is tried again later");
                (error.id(), Ended::Again { at_least: None, progressed: false })
            }
        };
        let Some(conversation) = self.busy.remove(&task) else { return };
        match ended {
            Ended::Idle => {
                self.pauses.remove(&conversation);
            }
            Ended::Again { at_least, progressed } => {
                let before = self.pauses.get(&conversation).filter(|_| !progressed);
                let attempt = before.map_or(0, |pause| pause.attempt.saturating_add(1));
                let until = Instant::now() + inner.options.backoff.delay(attempt, at_least);
                self.pauses.insert(conversation, Pause { until, attempt });
            }
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

/// Does what there is to do, until there is nothing or a call is to be made again.
async fn work_off(inner: &Arc<Inner>, conversation: ConversationId) -> Ended {
    let mut progressed = false;
    loop {
        let done = tokio::select! {
            () = inner.stop.cancelled() => return Ended::Idle,
            done = work_once(inner, conversation) => done,
        };
        match done {
            Ok(Done::Something) => {}
            Ok(Done::Call) => progressed = true,
            Ok(Done::Nothing) | Err(Error::Stopped) => return Ended::Idle,
            Ok(Done::Joining) => return Ended::Again { at_least: None, progressed },
            Err(error) => {
                tracing::debug!(%error, "a conversation's call waits for its next attempt");
                return Ended::Again { at_least: error.retry_after(), progressed };
            }
        }
    }
}

/// What one piece of work was.
enum Done {
    Nothing,
    /// Something that leads to a call.
    Something,
    /// A call was answered.
    Call,
    /// An external commit is on its way. Should it be rejected, the next one is made after a pause that grows.
    Joining,
}

/// One piece of work. An error means: again, later.
async fn work_once(inner: &Arc<Inner>, conversation: ConversationId) -> Result<Done, Error> {
    match inner.step(|step| step.next_work(conversation))? {
        Work::Nothing => return Ok(Done::Nothing),
        Work::Create(message, request) => create(inner, conversation, message, request).await?,
        Work::Commit(pending) if pending.external => {
            commit(inner, conversation, pending).await?;
            return Ok(Done::Joining);
        }
        Work::Commit(pending) => commit(inner, conversation, pending).await?,
        Work::Send { id, message, sealed, uncertain } => {
            send(inner, conversation, id, message, sealed, uncertain).await?;
        }
        Work::Remove => {
            inner.step(|step| step.commit_removals(conversation))?;
            return Ok(Done::Something);
        }
        Work::Rejoin => {
            rejoin(inner, conversation).await?;
            return Ok(Done::Something);
        }
        Work::Look => look(inner, conversation).await?,
    }
    Ok(Done::Call)
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
    let reason = match &error {
        Error::Refused(refusal) => refusal.reason.unwrap_or(Reason::Internal),
        _ => return Err(error),
    };
    // Whether the device is out, its feed says, or GetConversation; the view of who answers may lag.
    let out = external && reason == Reason::NotAMember && !inner.rpc.is_member(conversation).await?;
    let again =
        error.passes() || (reason == Reason::NotAMember && !out) || (external && !may_be_made_anew(reason) && !out);
    if again {
        if !uncertain {
            inner.step(|step| requests::set_uncertain(&step.tx, conversation, false))?;
        }
        return Err(error);
    }
    // Another commit ended the epoch, or our own did: the feed will bring whichever it was.
    if !external && matches!(reason, Reason::EpochConflict | Reason::StaleEpoch) {
        return inner.step(|step| requests::set_sent(&step.tx, conversation, message));
    }
    if uncertain && !out {
        let outcome = inner.rpc.outcome(conversation, message, OUTCOME_WAIT).await?;
        return settled(inner.step(|step| step.commit_refused_later(conversation, message, reason, outcome))?);
    }
    inner.step(|step| step.abandon(conversation, message, reason))?;
    if reason == Reason::RemovalRequired { look(inner, conversation).await } else { Ok(()) }
}

/// An outcome that is not known yet is asked for again.
fn settled(settled: Settled) -> Result<(), Error> {
    match settled {
        Settled::Yes => Ok(()),
        Settled::NotYet => Err(Error::TimedOut("the outcome of an attempt that was not answered")),
    }
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
    let reason = match &error {
        Error::Refused(refusal) => refusal.reason.unwrap_or(Reason::Internal),
        _ => return Err(error),
    };
    // The server's view of the members may lag behind the Welcome. If the device is out, its feed says so.
    if error.passes() || reason == Reason::NotAMember {
        if !uncertain {
            inner.step(|step| outbox::set_uncertain(&step.tx, id, false))?;
        }
        return Err(error);
    }
    // A refusal after an unanswered attempt says nothing about that attempt.
    let feed_tells = matches!(reason, Reason::EpochConflict | Reason::StaleEpoch | Reason::RemovalRequired);
    if uncertain && !feed_tells {
        let outcome = inner.rpc.outcome(conversation, message, OUTCOME_WAIT).await?;
        return settled(inner.step(|step| step.content_refused_later(conversation, message, reason, outcome))?);
    }
    inner.step(|step| step.content_refused(conversation, message, reason))
}

async fn rejoin(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    match inner.rpc.group_state_patiently(conversation, None).await {
        Ok(state) => {
            if let Ok(tree) = crate::mls::join::tree(&state) {
                follow::learn(inner, &leaf::of_tree(&tree)).await?;
            }
            inner.step(|step| step.commit_external(conversation, &state))
        }
        // It was asked for several times.
        Err(error) if error.reason() == Some(Reason::NotAMember) => inner.step(|step| step.removed(conversation)),
        Err(error) => Err(error),
    }
}

/// Asks how the conversation stands; an error when it stands further than here, so that the feed gets time.
async fn look(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    let answer = inner.rpc.conversation(conversation).await?;
    let level = inner.step(|step| step.looked(&answer, conversation))?;
    if level || !answer.removal_pending.is_empty() { Ok(()) } else { Err(Error::TimedOut("the feed to catch up")) }
}
