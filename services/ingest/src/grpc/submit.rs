//! What ends in the log: CreateConversation, Send, Commit, LeaveConversation.

use wardline_domain::conversation::{Head, create_digest};
use wardline_domain::envelope::{Envelope, Epoch, Generation, MessageKind};
use wardline_domain::mls;
use wardline_domain::record::{Body, Control, ConversationKind, Create, Policy, Submission};
use wardline_domain::{ConversationId, Digest, Timestamp};
use wardline_proto::convert::{ids, record, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_registry::Allowance;
use wardline_runtime::Refusal;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::members::Seen;
use wardline_runtime::status::RETRY_AFTER;

use super::read;
use crate::admit::{Admitted, Door, admit, in_time};
use crate::append::InFlight;
use crate::outcome::Pauses;
use crate::{Inner, commit};

/// What a message that was let through came to.
pub(crate) enum Submitted {
    /// It is on its way into the log.
    InFlight(InFlight),
    /// It is a repeat, and has been accepted before.
    Before(Timestamp),
}

impl Inner {
    pub(crate) async fn send(
        &self,
        caller: DeviceCaller,
        request: v1::SendRequest,
    ) -> Result<v1::SendResponse, Refusal> {
        let submitted = self.submit_content(&caller, request.sealed).await?;
        let accept_time = self.finish(submitted).await?;
        Ok(v1::SendResponse { accept_time: Some(time::to_wire(accept_time)) })
    }

    pub(crate) async fn finish(&self, submitted: Submitted) -> Result<Timestamp, Refusal> {
        match submitted {
            Submitted::InFlight(in_flight) => self.durable(in_flight).await,
            Submitted::Before(accepted_at) => Ok(accepted_at),
        }
    }

    /// Everything up to the place in the log's queue.
    pub(crate) async fn submit_content(
        &self,
        caller: &DeviceCaller,
        sealed: Option<v1::Sealed>,
    ) -> Result<Submitted, Refusal> {
        let admitted = admit(sealed, caller, Door::Content)?;
        self.take_quota(caller, 1).await?;
        let now = self.deps.clock.now();
        let seen = match self.authorise(caller, &admitted.envelope, now).await {
            Ok(seen) => seen,
            Err(refusal) => {
                return self.unless_known(&admitted.envelope, refusal).await.map(Submitted::Before);
            }
        };
        let submission = self.submission(caller, admitted, &seen).await?;
        let conversation = submission.envelope.conversation;
        let body = Body::Submission(Box::new(submission));
        Ok(Submitted::InFlight(self.append(conversation, now, &body)?))
    }

    pub(crate) async fn commit(
        &self,
        caller: DeviceCaller,
        request: v1::CommitRequest,
    ) -> Result<v1::CommitResponse, Refusal> {
        let admitted = admit(request.sealed, &caller, Door::Handshake)?;
        self.take_quota(&caller, 10).await?;
        let now = self.deps.clock.now();
        let seen = match self.authorise(&caller, &admitted.envelope, now).await {
            Ok(seen) => seen,
            Err(refusal) => {
                let accepted_at = self.unless_known(&admitted.envelope, refusal).await?;
                return Ok(v1::CommitResponse { accept_time: Some(time::to_wire(accepted_at)) });
            }
        };
        let checked = self
            .check_commit(
                &caller,
                &admitted.envelope,
                &admitted.sealed.mls_message,
                request.welcome,
                request.group_state,
                &seen,
            )
            .await?;
        let conversation = admitted.envelope.conversation;
        self.put_blobs(conversation, &checked.blobs).await?;
        let mut submission = self.submission(&caller, admitted, &seen).await?;
        submission.welcome = checked.welcome;
        submission.group_state = Some(checked.group_state);
        submission.added_keys = checked.added_keys;
        let in_flight = self.append(conversation, now, &Body::Submission(Box::new(submission)))?;
        let accepted_at = self.durable(in_flight).await?;
        Ok(v1::CommitResponse { accept_time: Some(time::to_wire(accepted_at)) })
    }

    /// Refuses what the cache proves that the fold would refuse.
    async fn authorise(&self, caller: &DeviceCaller, envelope: &Envelope, now: Timestamp) -> Result<Seen, Refusal> {
        in_time(envelope, now)?;
        let seen = if envelope.kind == MessageKind::ExternalCommit {
            self.deps.members.of_user(envelope.conversation, caller.user).await?
        } else {
            self.deps.members.of_device(envelope.conversation, caller.user, caller.device).await?
        };
        self.sweep_revoked(envelope.conversation, &seen);
        provable(&seen, envelope)?;
        Ok(seen)
    }

    async fn submission(&self, caller: &DeviceCaller, admitted: Admitted, seen: &Seen) -> Result<Submission, Refusal> {
        Ok(Submission {
            tenant: caller.tenant,
            key_hash: self.keys.hash(caller.user, caller.device, seen.head.suite).await?,
            members_version: seen.roster.version(),
            policy_version: seen.head.policy.version,
            welcome: None,
            group_state: None,
            added_keys: Vec::new(),
            envelope: admitted.envelope,
            sealed: admitted.sealed,
        })
    }

    /// Fairness between devices. A registry that is away grants everything.
    pub(crate) async fn take_quota(&self, caller: &DeviceCaller, cost: u32) -> Result<(), Refusal> {
        let digest = Digest::of_parts(&[b"send", caller.user.as_bytes(), caller.device.as_bytes()]);
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        match self.deps.registry.take(key, self.options.rate, cost).await {
            Ok(Allowance::Exhausted(delay)) => Err(Refusal::new(Reason::QuotaExceeded).retry_after(delay)),
            Ok(Allowance::Granted) | Err(_) => Ok(()),
        }
    }

    pub(crate) async fn leave(
        &self,
        caller: DeviceCaller,
        request: &v1::LeaveConversationRequest,
    ) -> Result<v1::LeaveConversationResponse, Refusal> {
        let conversation = ids::conversation(&request.conversation_id, "conversation_id")?;
        self.deps.members.of_user(conversation, caller.user).await?;
        let now = self.deps.clock.now();
        let in_flight = self.append(conversation, now, &Body::Control(Control::UserLeft { user: caller.user }))?;
        let accepted_at = self.durable(in_flight).await?;
        Ok(v1::LeaveConversationResponse { accept_time: Some(time::to_wire(accepted_at)) })
    }

    pub(crate) async fn create(
        &self,
        caller: DeviceCaller,
        request: v1::CreateConversationRequest,
    ) -> Result<v1::CreateConversationResponse, Refusal> {
        let conversation = ids::conversation(&request.conversation_id, "conversation_id")?;
        let (create, blobs) = self.check_create(&caller, request).await?;
        if let Some(seen) = self.deps.members.reload(conversation).await? {
            return existing(conversation, &seen, &create);
        }
        self.take_quota(&caller, 10).await?;
        self.put_blobs(conversation, &blobs).await?;
        let in_flight = self.append(conversation, self.deps.clock.now(), &Body::Create(create.clone()))?;
        self.durable(in_flight).await?;
        let mut pauses = Pauses::within(self.options.append_deadline);
        loop {
            if let Some(seen) = self.deps.members.reload(conversation).await? {
                return existing(conversation, &seen, &create);
            }
            if !pauses.pause().await {
                return Err(Refusal::new(Reason::Unavailable).retry_after(RETRY_AFTER));
            }
        }
    }

    async fn check_create(
        &self,
        caller: &DeviceCaller,
        request: v1::CreateConversationRequest,
    ) -> Result<(Create, [bytes::Bytes; 3]), Refusal> {
        let suite = u16::try_from(request.suite).map_err(|_| Refusal::field("suite", "must be an MLS cipher suite"))?;
        let tenant = self.deps.stores.directory.tenant(caller.tenant).await?.ok_or(Refusal::new(Reason::NotFound))?;
        if !tenant.suites.contains(&suite) {
            return Err(Refusal::new(Reason::SuiteNotAllowed));
        }
        let kind = u32::try_from(request.kind).unwrap_or_default();
        let kind: ConversationKind = record::kind_from(kind)?;
        let policy = request.policy.unwrap_or_default();
        let membership = record::membership_from(u32::try_from(policy.membership).unwrap_or(u32::MAX))?;
        let policy = Policy { version: 1, membership, retention_days: policy.retention_days };
        let state = commit::group_state(request.group_state, Generation(0), Epoch(0))?;
        let leaf = mls::single_leaf(&state.blobs[1])?;
        let key_hash = self.keys.hash(caller.user, caller.device, suite).await?;
        let own =
            leaf.credential == mls::Credential { tenant: caller.tenant, principal: caller.user, device: caller.device };
        if !own || leaf.key_hash() != key_hash {
            return Err(Refusal::field("group_state.ratchet_tree", "must have the calling device as its only leaf"));
        }
        let create = Create {
            tenant: caller.tenant,
            kind,
            suite,
            policy,
            user: caller.user,
            device: caller.device,
            key_hash,
            group_state: state.reference,
        };
        Ok((create, state.blobs))
    }
}

/// The answer to a Create of a conversation that is there.
fn existing(
    conversation: ConversationId,
    seen: &Seen,
    create: &Create,
) -> Result<v1::CreateConversationResponse, Refusal> {
    if seen.head.create_digest != create_digest(create) {
        return Err(Refusal::new(Reason::ConversationExists));
    }
    Ok(v1::CreateConversationResponse { conversation: Some(read::conversation(conversation, seen)) })
}

/// What the head and roster prove: epochs only rise, and a leaf that waits for removal waits until the epoch ends.
fn provable(seen: &Seen, envelope: &Envelope) -> Result<(), Refusal> {
    let head: &Head = &seen.head;
    if head.quarantined.is_some() {
        return Err(Refusal::new(Reason::Quarantined));
    }
    let at = (envelope.generation, envelope.epoch);
    let now = (head.generation, head.epoch);
    if at < now {
        return Err(behind(head, envelope));
    }
    let waiting = seen.roster.leaves().values().any(|leaf| leaf.removal_pending);
    if waiting && at == now && envelope.kind == MessageKind::Application {
        return Err(Refusal::new(Reason::RemovalRequired));
    }
    Ok(())
}

fn behind(head: &Head, envelope: &Envelope) -> Refusal {
    let reason = match envelope.kind {
        MessageKind::Application => Reason::StaleEpoch,
        MessageKind::Commit | MessageKind::ExternalCommit => Reason::EpochConflict,
    };
    let refusal =
        Refusal::new(reason).with("generation", head.generation.0.to_string()).with("epoch", head.epoch.0.to_string());
    let just_lost = head.generation == envelope.generation && head.epoch.0 == envelope.epoch.0.saturating_add(1);
    match head.epoch_winner.filter(|_| just_lost && reason == Reason::EpochConflict) {
        Some(winner) => refusal.with("winner_message_id", winner.to_string()),
        None => refusal,
    }
}
