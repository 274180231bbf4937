//! Changes of the members. Each is a commit that counts when it comes back in the feed; when another won, what is still
//! needed is asked for again, from the group as it is then.
//!
//! Deliberately absent: a saved intention. After a restart a commit that was made is sent again and may win; one that lost
//! meanwhile is only told (`Incoming::CommitLost`).

mod steps;

pub(crate) use self::steps::may_be_made_anew;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use wardline_domain::{ConversationId, DeviceId, MessageId, UserId};
use wardline_proto::reason::Reason;
use wardline_proto::v1;

use crate::device::{Inner, NewConversation};
use crate::device_log::DeviceLog;
use crate::device_log::follow::LOGS_AT_ONCE;
use crate::error::{Error, STRANGER};
use crate::mls::group;
use crate::mls::key_packages;
use crate::mls::provider::Provider;
use crate::store::{conversations, messages, requests};
use crate::view::ConversationStatus;

/// How often a change is tried before giving up.
const ATTEMPTS: u32 = 16;
/// The most users in one commit, so that it stays below 128 adds in the common case.
const USERS_PER_COMMIT: usize = 64;

/// Creates a conversation, then adds the members.
pub(crate) async fn create_conversation(inner: &Arc<Inner>, new: NewConversation) -> Result<ConversationId, Error> {
    let own = inner.read(|core| core.identity.account())?.user;
    let authority = crate::device_log::authority::confirmed(inner).await?;
    let (id, message) = inner.step(|step| step.start_creating(&new, &authority))?;
    let outcome = inner
        .wait_for("the conversation's creation", inner.options.commit_timeout, |core| {
            if let Some(reason) = core.lost_commits.get(&message) {
                return Ok(Some(Err(Error::Rejected(*reason))));
            }
            let row = conversations::load(core.connection(), id)?;
            Ok(row.filter(|row| row.status != ConversationStatus::Creating).map(|_| Ok(())))
        })
        .await?;
    outcome?;
    let mut users = new.members;
    if follow_own(inner, own).await? > 1 {
        users.push(own);
    }
    if !users.is_empty() {
        add_users(inner, id, &users).await?;
    }
    Ok(id)
}

/// How many active devices one's own user has.
async fn follow_own(inner: &Arc<Inner>, own: UserId) -> Result<usize, Error> {
    let log = crate::device_log::follow::verify(inner, own).await?;
    Ok(log.devices.values().filter(|device| device.active).count())
}

/// Adds users with all their devices.
pub(crate) async fn add_users(inner: &Arc<Inner>, conversation: ConversationId, users: &[UserId]) -> Result<(), Error> {
    for users in users.chunks(USERS_PER_COMMIT) {
        let mut claimed = claim(inner, conversation, users).await?;
        let mut tries = 0;
        loop {
            match change(inner, conversation, |step, group, row| step.adds(group, row, &claimed)).await {
                Ok(()) => break,
                Err(error) if tries < ATTEMPTS && wants_new_packages(&error) => {
                    tries += 1;
                    claimed = claim(inner, conversation, users).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn wants_new_packages(error: &Error) -> bool {
    matches!(error.reason(), Some(Reason::DevicesMissing | Reason::KeyPackageNotServed | Reason::KeyPackageInvalid))
}

/// Key packages that were claimed and checked.
pub(crate) type Claimed = BTreeMap<(UserId, DeviceId), openmls::prelude::KeyPackage>;

/// Claims a key package for each device of the users, and checks each against its user's device log.
async fn claim(inner: &Arc<Inner>, conversation: ConversationId, users: &[UserId]) -> Result<Claimed, Error> {
    let suite = inner
        .read(|core| conversations::load(core.connection(), conversation))?
        .ok_or(Error::Invalid("no such conversation here"))?
        .suite;
    let request = v1::ClaimKeyPackagesRequest {
        request_id: uuid::Uuid::new_v4().to_string(),
        user_ids: users.iter().map(ToString::to_string).collect(),
        suite: u32::from(suite),
    };
    let answer = inner.rpc.claim_key_packages(request).await?;
    let logs: Vec<Result<(UserId, DeviceLog), Error>> = futures::stream::iter(users.to_vec())
        .map(|user| async move { Ok((user, crate::device_log::follow::verify(inner, user).await?)) })
        .buffer_unordered(LOGS_AT_ONCE)
        .collect()
        .await;
    let logs: BTreeMap<UserId, DeviceLog> = logs.into_iter().collect::<Result<_, _>>()?;
    let own = inner.read(|core| Ok(core.identity.device))?;
    inner.read(|core| {
        let provider = Provider::new(core.connection());
        let mut claimed = Claimed::new();
        for package in &answer.claimed {
            let user: UserId = package.user_id.parse().map_err(|_| Error::Untrusted("a key package of nobody"))?;
            let log = logs.get(&user).ok_or(Error::Untrusted("a key package of a user who was not asked for"))?;
            let (user, device, package) = key_packages::check(&provider, package, suite, log)?;
            if device != own {
                claimed.insert((user, device), package);
            }
        }
        Ok(claimed)
    })
}

/// Removes the leaves that `picks` picks.
pub(crate) async fn remove(
    inner: &Arc<Inner>,
    conversation: ConversationId,
    picks: impl Fn(UserId, DeviceId) -> bool,
) -> Result<(), Error> {
    change(inner, conversation, |step, group, row| step.removes(group, row, &picks)).await
}

/// Builds a change from the group as it is, until it wins or there is nothing left to change.
async fn change(
    inner: &Arc<Inner>,
    conversation: ConversationId,
    build: impl Fn(
        &mut crate::core::Step<'_>,
        &mut openmls::prelude::MlsGroup,
        &conversations::Conversation,
    ) -> Result<Option<group::Change>, Error>,
) -> Result<(), Error> {
    if !inner.is_attached() {
        return Err(Error::Invalid("attach first: a commit counts when it comes back in the feed"));
    }
    for _ in 0..ATTEMPTS {
        wait_free(inner, conversation).await?;
        let Some(message) = inner.step(|step| step.start_change(conversation, &build))? else { return Ok(()) };
        if message == Started::Busy {
            continue;
        }
        let Started::Commit(message) = message else { continue };
        match outcome(inner, conversation, message).await {
            Err(Error::Rejected(Reason::EpochConflict | Reason::StaleEpoch | Reason::RemovalRequired)) => {}
            done => return done,
        }
    }
    Err(Error::TimedOut("a commit to win"))
}

/// What became of starting a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    /// Another request of this device waits.
    Busy,
    /// The commit is in the outbox.
    Commit(MessageId),
}

/// Waits until the device has the group and no request of its own waits.
async fn wait_free(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    inner
        .wait_for("the conversation to be free for a commit", inner.options.commit_timeout, |core| {
            let row = conversations::load(core.connection(), conversation)?
                .ok_or(Error::Invalid("no such conversation here"))?;
            match row.status {
                ConversationStatus::Removed => Err(Error::Invalid("the device is no longer in the conversation")),
                ConversationStatus::Untrusted => Err(Error::Untrusted(STRANGER)),
                ConversationStatus::Active => {
                    Ok(requests::load(core.connection(), conversation)?.is_none().then_some(()))
                }
                _ => Ok(None),
            }
        })
        .await
}

/// Waits until the feed has told what became of a commit.
async fn outcome(inner: &Arc<Inner>, conversation: ConversationId, message: MessageId) -> Result<(), Error> {
    inner
        .wait_for("the commit to come back", inner.options.commit_timeout, |core| {
            if let Some(reason) = core.lost_commits.get(&message) {
                return Ok(Some(Err(Error::Rejected(*reason))));
            }
            let won = messages::has_message(core.connection(), conversation, core.identity.device, message)?;
            Ok(won.then_some(Ok(())))
        })
        .await?
}

/// Takes one's user out.
pub(crate) async fn leave(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    inner.rpc.leave(conversation).await?;
    inner.step(|step| step.removed(conversation))
}

/// Gives up the local group and joins anew.
pub(crate) async fn rejoin(inner: &Arc<Inner>, conversation: ConversationId) -> Result<(), Error> {
    if !inner.is_attached() {
        return Err(Error::Invalid("attach first: a commit counts when it comes back in the feed"));
    }
    inner.step(|step| step.broken(conversation))?;
    inner
        .wait_for("the external commit to come back", inner.options.commit_timeout, |core| {
            let row = conversations::load(core.connection(), conversation)?
                .ok_or(Error::Invalid("no such conversation here"))?;
            match row.status {
                ConversationStatus::Active => Ok(Some(())),
                ConversationStatus::Removed => Err(Error::Invalid("the device is no longer in the conversation")),
                ConversationStatus::Untrusted => Err(Error::Untrusted(STRANGER)),
                _ => Ok(None),
            }
        })
        .await
}
