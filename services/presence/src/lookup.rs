//! What devices look up: history, conversations, bodies, presence.
//!
//! Deliberately absent: the feed.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tonic::{Request, Response};
use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, Failure, UserId};
use wardline_proto::convert::{ids, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_registry::Presence;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::members::Seen;
use wardline_runtime::{Caller, Refusal};

use crate::edge::Edge;
use crate::event;
use crate::owner::Shared;

/// The most messages of a page, and the default.
const MESSAGES: (usize, usize) = (500, 100);
/// About the most bytes of a page: well below the 4 MiB that gRPC clients accept by default.
const MESSAGES_BYTES: usize = 2 << 20;
/// The most conversations of a page, and the default.
const CONVERSATIONS: (usize, usize) = (1000, 100);
/// The most users asked for at once.
const PRESENCES: usize = 128;
/// Memberships of one user that are looked through for one that is shared.
const SHARED_LOOKED_THROUGH: usize = 4096;
/// Memberships read at once.
const MEMBERSHIPS_A_PAGE: usize = 1024;
/// Reads at once.
const AT_ONCE: usize = 16;

/// Reads a conversation's history in order.
pub(crate) async fn list_messages(
    edge: &Edge,
    request: Request<v1::ListMessagesRequest>,
) -> Result<Response<v1::ListMessagesResponse>, Refusal> {
    let caller = Caller::of(&request)?;
    let request = request.into_inner();
    let conversation = ids::conversation(&request.conversation_id, "conversation_id")?;
    let limit = page_size(request.page_size, MESSAGES)?;
    member(edge, &caller, conversation, "messages.list").await?;
    let conversations = &edge.owner.stores.conversations;
    // Not the cached one, which may be seconds old. Before the rows, which are written before it: what it counts is there
    // unless retention removed it.
    let head = conversations.head(conversation).await?.map_or(0, |head| head.sequence.0);
    let rows = conversations.messages(conversation, Sequence(request.after_sequence), limit, MESSAGES_BYTES).await?;
    let last = rows.last().map_or(0, |row| row.sequence.0).max(head);
    let messages = rows.iter().map(event::message_of).collect();
    Ok(Response::new(v1::ListMessagesResponse { messages, last_sequence: last }))
}

/// Lists the caller's conversations.
pub(crate) async fn list_conversations(
    edge: &Edge,
    request: Request<v1::ListConversationsRequest>,
) -> Result<Response<v1::ListConversationsResponse>, Refusal> {
    let caller = device(&request)?;
    let request = request.into_inner();
    let limit = page_size(request.page_size, CONVERSATIONS)?;
    let mut after = page_token(&request.page_token)?;
    let mut conversations = Vec::new();
    let more = loop {
        let rows = edge.owner.stores.conversations.memberships(caller.user, after, limit).await?;
        let last = rows.len() < limit;
        // Former ones are passed over, so a page may take several reads; none goes beyond what the page has room for.
        let room = limit - conversations.len();
        let current: Vec<_> = rows.iter().filter(|row| row.member).map(|row| row.conversation).collect();
        let full = current.len() >= room;
        let of: Vec<_> = current.into_iter().take(room).collect();
        after = if full { of.last().copied() } else { rows.last().map(|row| row.conversation).or(after) };
        conversations.extend(describe(edge, &caller, of).await?);
        if full || last {
            break full;
        }
    };
    let next_page_token = after.filter(|_| more).map(|after| hex::encode(after.as_bytes())).unwrap_or_default();
    Ok(Response::new(v1::ListConversationsResponse { conversations, next_page_token }))
}

/// Fetches the MLS message that an event named by reference.
pub(crate) async fn get_message_body(
    edge: &Edge,
    request: Request<v1::GetMessageBodyRequest>,
) -> Result<Response<v1::GetMessageBodyResponse>, Refusal> {
    let caller = Caller::of(&request)?;
    let request = request.into_inner();
    let conversation = ids::conversation(&request.conversation_id, "conversation_id")?;
    member(edge, &caller, conversation, "messages.body").await?;
    let unknown = || Refusal::new(Reason::BlobUnknown);
    let sequence = event::parse_blob_ref(&request.blob_ref).ok_or_else(unknown)?;
    let rows = edge.owner.stores.conversations.messages_at(&[(conversation, sequence)]).await?;
    let row = rows.into_iter().next().flatten().ok_or_else(unknown)?;
    Ok(Response::new(v1::GetMessageBodyResponse { mls_message: row.sealed.mls_message }))
}

/// Tells which of these users are attached, if the caller shares a conversation with them.
pub(crate) async fn get_presence(
    edge: &Edge,
    request: Request<v1::GetPresenceRequest>,
) -> Result<Response<v1::GetPresenceResponse>, Refusal> {
    let caller = device(&request)?;
    let asked = &request.get_ref().user_ids;
    if asked.len() > PRESENCES {
        return Err(Refusal::field("user_ids", "must be at most 128"));
    }
    let users = asked.iter().map(|user| ids::user(user, "user_ids")).collect::<Result<Vec<_>, _>>()?;
    let mine = memberships(&edge.owner, caller.user).await?;
    let shared = futures::stream::iter(users.into_iter().map(|user| shares(&edge.owner, &mine, caller.user, user)));
    let shared: Vec<Option<UserId>> = shared.buffered(AT_ONCE).try_collect().await?;
    let shared: Vec<UserId> = shared.into_iter().flatten().collect();
    // Without a registry nobody is known to be attached: a hint, as promised.
    let known = edge.owner.registry.presence(&shared).await.unwrap_or_else(|_| vec![None; shared.len()]);
    let presences = shared.into_iter().zip(known).map(|(user, known)| presence(&edge.owner, user, known));
    Ok(Response::new(v1::GetPresenceResponse { presences: presences.collect() }))
}

fn device<T>(request: &Request<T>) -> Result<DeviceCaller, Refusal> {
    Caller::of(request)?.device()
}

async fn member(
    edge: &Edge,
    caller: &Caller,
    conversation: ConversationId,
    action: &'static str,
) -> Result<Seen, Refusal> {
    let seen = edge.owner.members.of_user(conversation, caller.device()?.user).await;
    if let Err(refusal) = &seen {
        edge.audit.record(action, Some(caller), Some(conversation.as_bytes()), Err(refusal.reason));
    }
    seen
}

fn page_size(asked: i32, (most, default): (usize, usize)) -> Result<usize, Refusal> {
    match usize::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(asked) => Ok(asked.min(most)),
        Err(_) => Err(Refusal::field("page_size", "must not be negative")),
    }
}

fn page_token(token: &str) -> Result<Option<ConversationId>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(token).ok().and_then(|bytes| ConversationId::try_from(&*bytes).ok());
    bytes.map(Some).ok_or(Refusal::new(Reason::PageTokenInvalid))
}

async fn describe(
    edge: &Edge,
    caller: &DeviceCaller,
    conversations: Vec<ConversationId>,
) -> Result<Vec<v1::ListedConversation>, Failure> {
    // Never from the cache: a device that resyncs takes the list for the truth, gives up a group that it has no leaf in and
    // asks for history through this sequence only.
    let seen = conversations.into_iter().map(|conversation| async move {
        let seen = edge.owner.members.reload(conversation).await?;
        Ok::<_, Failure>(seen.map(|seen| listed(conversation, caller, &seen)))
    });
    futures::stream::iter(seen).buffered(AT_ONCE).try_filter_map(|listed| async move { Ok(listed) }).try_collect().await
}

fn listed(conversation: ConversationId, caller: &DeviceCaller, seen: &Seen) -> v1::ListedConversation {
    let head = &seen.head;
    let pending = seen.roster.removal_pending().into_iter();
    let leaf = seen.roster.leaf_of(caller.user, caller.device);
    v1::ListedConversation {
        device_is_member: leaf.is_some_and(|(_, leaf)| !leaf.removal_pending),
        conversation: Some(v1::Conversation {
            id: conversation.to_string(),
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
            etag: format!("{:016x}", head.last.as_u64()),
            kind: head.kind as i32,
            suite: u32::from(head.suite),
            removal_pending: pending
                .map(|(user, device)| v1::DeviceRef { user_id: user.to_string(), device_id: device.to_string() })
                .collect(),
        }),
    }
}

/// The user's conversations, as far as is looked through.
async fn memberships(shared: &Arc<Shared>, user: UserId) -> Result<HashSet<ConversationId>, Failure> {
    let mut found = HashSet::new();
    let mut after = None;
    for _ in 0..SHARED_LOOKED_THROUGH / MEMBERSHIPS_A_PAGE {
        let rows = shared.stores.conversations.memberships(user, after, MEMBERSHIPS_A_PAGE).await?;
        after = rows.last().map(|row| row.conversation);
        let last = rows.len() < MEMBERSHIPS_A_PAGE;
        found.extend(rows.into_iter().filter(|row| row.member).map(|row| row.conversation));
        if last {
            break;
        }
    }
    Ok(found)
}

async fn shares(
    shared: &Arc<Shared>,
    mine: &HashSet<ConversationId>,
    me: UserId,
    user: UserId,
) -> Result<Option<UserId>, Failure> {
    if user == me || !mine.is_disjoint(&memberships(shared, user).await?) {
        return Ok(Some(user));
    }
    Ok(None)
}

fn presence(shared: &Shared, user: UserId, known: Option<Presence>) -> v1::UserPresence {
    let active_for = shared.options.timings.active_for;
    let now = shared.clock.now();
    let state = match &known {
        Some(known) if known.devices > 0 => match known.active_at {
            Some(at) if now.since(at) <= active_for => v1::PresenceState::Active,
            _ => v1::PresenceState::Attached,
        },
        _ => v1::PresenceState::Offline,
    };
    v1::UserPresence {
        user_id: user.to_string(),
        state: state as i32,
        devices: known.map_or(0, |known| known.devices),
        update_time: known.map(|known| time::to_wire(known.at)),
    }
}
