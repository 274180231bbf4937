//! What reads: GetConversation, ListMembers, GetGroupState, GetOutcome.

use std::cmp::Ordering;
use std::time::Duration;

use wardline_domain::conversation::OutcomeKey;
use wardline_domain::record::BlobRef;
use wardline_domain::roster::Leaf;
use wardline_domain::{ConversationId, DeviceId, UserId};
use wardline_proto::convert::{ids, reject, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::get_outcome_response::Outcome;
use wardline_runtime::Refusal;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::members::Seen;
use wardline_runtime::status::RETRY_AFTER;
use wardline_store::conversations::{OutcomeResult, OutcomeRow};

use crate::Inner;
use crate::outcome::Pauses;

const MEMBERS_PAGE: usize = 500;
const MEMBERS_PAGE_MAX: usize = 5_000;
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How far the head may be behind what devices have been told.
const HEAD_LAG: Duration = Duration::from_secs(5);

/// A conversation for the wire.
pub(crate) fn conversation(id: ConversationId, seen: &Seen) -> v1::Conversation {
    let head = &seen.head;
    v1::Conversation {
        id: id.to_string(),
        tenant_id: head.tenant.to_string(),
        generation: head.generation.0,
        epoch: head.epoch.0,
        sequence: head.sequence.0,
        chain_hash: ids::bytes32(&head.chain),
        members_version: head.members_version,
        policy: Some(v1::ConversationPolicy {
            membership: head.policy.membership as i32,
            retention_days: head.policy.retention_days,
        }),
        etag: format!("{}.{}.{}", head.generation.0, head.policy.version, head.members_version),
        kind: head.kind as i32,
        suite: u32::from(head.suite),
        removal_pending: seen.roster.removal_pending().into_iter().map(device_ref).collect(),
    }
}

fn device_ref((user, device): (UserId, DeviceId)) -> v1::DeviceRef {
    v1::DeviceRef { user_id: user.to_string(), device_id: device.to_string() }
}

fn member(index: u32, leaf: &Leaf) -> v1::Member {
    v1::Member {
        leaf: index,
        user_id: leaf.user.to_string(),
        device_id: leaf.device.to_string(),
        tenant_id: leaf.tenant.to_string(),
        role: leaf.role as i32,
        joined_epoch: leaf.joined.0,
        removal_pending: leaf.removal_pending,
    }
}

impl Inner {
    /// The conversation as it is now, for what clients act on: devices that wait for removal, the group to join.
    async fn fresh(&self, id: ConversationId, caller: DeviceCaller) -> Result<Seen, Refusal> {
        let seen = self.deps.members.reload(id).await?;
        seen.filter(|seen| seen.roster.has_user(caller.user)).ok_or(Refusal::new(Reason::NotAMember))
    }

    pub(crate) async fn get_conversation(
        &self,
        caller: DeviceCaller,
        request: &v1::GetConversationRequest,
    ) -> Result<v1::GetConversationResponse, Refusal> {
        let id = ids::conversation(&request.conversation_id, "conversation_id")?;
        let seen = self.fresh(id, caller).await?;
        Ok(v1::GetConversationResponse { conversation: Some(conversation(id, &seen)) })
    }

    pub(crate) async fn list_members(
        &self,
        caller: DeviceCaller,
        request: &v1::ListMembersRequest,
    ) -> Result<v1::ListMembersResponse, Refusal> {
        let id = ids::conversation(&request.conversation_id, "conversation_id")?;
        self.deps.members.of_user(id, caller.user).await?;
        let limit = page_size(request.page_size, MEMBERS_PAGE, MEMBERS_PAGE_MAX)?;
        let (version, from) = match request.page_token.as_str() {
            "" => (u64::MAX, 0),
            token => parse_token(token)?,
        };
        // Later pages read the version that the first one read.
        let roster = self.deps.stores.conversations.roster(id, version).await?;
        // Who was in it before the caller is not the caller's to know.
        if !roster.has_user(caller.user) {
            return Err(Refusal::new(Reason::PageTokenInvalid));
        }
        let mut leaves = roster.leaves().range(from..);
        let members = leaves.by_ref().take(limit).map(|(index, leaf)| member(*index, leaf)).collect();
        let next = leaves.next().map(|(index, _)| format!("{:x}.{index:x}", roster.version())).unwrap_or_default();
        Ok(v1::ListMembersResponse { members, next_page_token: next, members_version: roster.version() })
    }

    pub(crate) async fn get_group_state(
        &self,
        caller: DeviceCaller,
        request: &v1::GetGroupStateRequest,
    ) -> Result<v1::GetGroupStateResponse, Refusal> {
        let id = ids::conversation(&request.conversation_id, "conversation_id")?;
        let seen = self.at_epoch(id, caller, request.epoch).await?;
        let state = seen.head.group_state;
        match request.epoch.map(|epoch| epoch.cmp(&state.epoch.0)) {
            None | Some(Ordering::Equal) => {}
            // The feed may be ahead of the head that was read.
            Some(Ordering::Greater) => return Err(Refusal::new(Reason::Unavailable).retry_after(RETRY_AFTER)),
            Some(Ordering::Less) => {
                return Err(Refusal::new(Reason::NotFound).with("epoch", state.epoch.0.to_string()));
            }
        }
        Ok(v1::GetGroupStateResponse {
            group_state: Some(v1::GroupState {
                generation: state.generation.0,
                epoch: state.epoch.0,
                group_info: self.blob(id, state.group_info).await?,
                ratchet_tree: self.blob(id, state.ratchet_tree).await?,
                sealed_group_data: self.blob(id, state.sealed_group_data).await?,
            }),
        })
    }

    /// The conversation as it is now, or as soon as its head has come to `epoch`: Welcomes leave before their head is written,
    /// and who is told that there is no such epoch joins by a commit that nobody needs.
    async fn at_epoch(&self, id: ConversationId, caller: DeviceCaller, epoch: Option<u64>) -> Result<Seen, Refusal> {
        let mut pauses = Pauses::within(HEAD_LAG);
        loop {
            let seen = self.fresh(id, caller).await?;
            let behind = epoch.is_some_and(|epoch| seen.head.group_state.epoch.0 < epoch);
            if !behind || !pauses.pause().await {
                return Ok(seen);
            }
        }
    }

    async fn blob(&self, conversation: ConversationId, blob: BlobRef) -> Result<bytes::Bytes, Refusal> {
        let found = self.deps.stores.blobs.get(conversation, blob.digest).await?;
        // The head names it, and it was durable before the record that the head comes from.
        found.ok_or(Refusal::new(Reason::Internal))
    }

    pub(crate) async fn get_outcome(
        &self,
        caller: DeviceCaller,
        request: &v1::GetOutcomeRequest,
    ) -> Result<v1::GetOutcomeResponse, Refusal> {
        let conversation = ids::conversation(&request.conversation_id, "conversation_id")?;
        let message = ids::message(&request.message_id, "message_id")?;
        let wait = Duration::from_millis(u64::from(request.wait_ms));
        if wait > LONGEST_WAIT {
            return Err(Refusal::field("wait_ms", "must be at most 10,000"));
        }
        let device = match request.device_id.as_str() {
            "" => caller.device,
            text => ids::device(text, "device_id")?,
        };
        let key = OutcomeKey { conversation, device, message };
        // A sender that is no member, or no longer, may still ask what became of its own message.
        let mut found = if device == caller.device { self.outcome(key).await? } else { None };
        if found.is_none() {
            let seen = self.deps.members.of_user(conversation, caller.user).await?;
            if device != caller.device && seen.roster.leaf_of(caller.user, device).is_none() {
                return Err(Refusal::new(Reason::NotAMember));
            }
            self.take_quota(&caller, 1).await?;
            // Waiting holds a place among the server's calls; when too many wait already, this one does not.
            found = match self.waiters.try_acquire() {
                Ok(_place) => self.await_outcome(key, wait).await?,
                Err(_) => self.outcome(key).await?,
            };
        }
        Ok(v1::GetOutcomeResponse { outcome: Some(outcome(found)) })
    }
}

fn outcome(found: Option<OutcomeRow>) -> Outcome {
    let Some(row) = found else { return Outcome::Pending(v1::OutcomePending {}) };
    match row.result {
        OutcomeResult::Sequenced(sequence) => Outcome::Sequenced(v1::Sequenced {
            sequence: sequence.0,
            accept_time: Some(time::to_wire(row.accepted_at)),
        }),
        OutcomeResult::Rejected(rejection) => Outcome::Rejected(v1::Rejected {
            conversation_id: row.key.conversation.to_string(),
            message_id: row.key.message.to_string(),
            reason: reject::to_wire(rejection.reason) as i32,
            generation: rejection.generation.0,
            epoch: rejection.epoch.0,
            winner_message_id: rejection.winner.map(|id| id.to_string()).unwrap_or_default(),
            device_id: row.key.device.to_string(),
        }),
    }
}

fn page_size(asked: i32, usual: usize, most: usize) -> Result<usize, Refusal> {
    match usize::try_from(asked) {
        Ok(0) => Ok(usual),
        Ok(size) => Ok(size.min(most)),
        Err(_) => Err(Refusal::field("page_size", "must not be negative")),
    }
}

fn parse_token(token: &str) -> Result<(u64, u32), Refusal> {
    token
        .split_once('.')
        .and_then(|(version, leaf)| Some((u64::from_str_radix(version, 16).ok()?, u32::from_str_radix(leaf, 16).ok()?)))
        .ok_or(Refusal::new(Reason::PageTokenInvalid))
}
