//! A deployment of one process that believes everything: enough of each service for devices to talk to each other.
//!
//! Deliberately absent: checks. What a real deployment refuses is tested against a real one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};
use wardline_domain::conversation::{chain_next, chain_start};
use wardline_domain::envelope::{MessageKind, Sequence};
use wardline_domain::mls;
use wardline_domain::{ConversationId, Digest};
use wardline_proto::convert::envelope;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::conversation_service_server::{ConversationService, ConversationServiceServer};
use wardline_proto::v1::delivery_service_server::{DeliveryService, DeliveryServiceServer};
use wardline_proto::v1::directory_service_server::{DirectoryService, DirectoryServiceServer};
use wardline_proto::v1::session_service_server::{SessionService, SessionServiceServer};

pub(crate) const TENANT: &str = "00000000-0000-4000-8000-000000000009";
type Answer<T> = Result<Response<T>, Status>;
/// A user and a device, as text.
type Who = (String, String);

#[derive(Default)]
struct State {
    logs: HashMap<String, Vec<v1::DeviceLogEntry>>,
    packages: HashMap<Who, Vec<Bytes>>,
    conversations: BTreeMap<String, Group>,
    feeds: HashMap<Who, Vec<v1::Event>>,
    acknowledged: HashMap<Who, u64>,
    reads: Vec<(Who, String, u64)>,
    sends: u64,
    /// What the next sends are answered, without happening.
    next_sends: VecDeque<Reason>,
    /// Conversations that nothing can be sent to.
    held: HashSet<String>,
    /// What the next calls that read history are answered.
    next_reads: VecDeque<Reason>,
    /// How many of the next lists of conversations are empty.
    empty_lists: u32,
    authority: Vec<Bytes>,
    /// Users who are kept from others' device logs, and how often they have asked since.
    kept_from_logs: HashMap<String, (Logs, u64)>,
}

/// What a user who is kept from device logs gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logs {
    Unavailable,
    Empty,
}

struct Group {
    state: v1::GroupState,
    chain: Digest,
    messages: Vec<v1::Message>,
    leaves: BTreeMap<u32, Who>,
    taken: HashSet<String>,
}

#[derive(Clone)]
pub(crate) struct Naive {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Every so many sends answer UNAVAILABLE, in turn after and before they happened; 0 for none.
    forgets_every: u64,
}

fn refuse(reason: Reason, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let details = ErrorDetails::with_error_info(reason.as_str(), wardline_proto::reason::DOMAIN, metadata);
    Status::with_error_details(reason.code(), reason.message(), details)
}

fn who<T>(request: &Request<T>) -> Result<Who, Status> {
    let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (user, device) = token
        .strip_prefix("Bearer ")
        .and_then(|token| token.split_once('/'))
        .ok_or_else(|| refuse(Reason::TokenMissing, &[]))?;
    Ok((user.to_owned(), device.to_owned()))
}

impl Naive {
    /// Serves on a free port; answers its address.
    pub(crate) async fn start(forgets_every: u64) -> (Self, String) {
        let naive = Self { state: Arc::default(), changed: watch::channel(0).0, forgets_every };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(SessionServiceServer::new(naive.clone()))
            .add_service(DirectoryServiceServer::new(naive.clone()))
            .add_service(ConversationServiceServer::new(naive.clone()))
            .add_service(DeliveryServiceServer::new(naive.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        (naive, address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Messages the server was asked to send.
    pub(crate) fn sends(&self) -> u64 {
        self.state().sends
    }

    /// Answers the next sends with `reasons`; they do not happen.
    pub(crate) fn refuse_sends(&self, reasons: impl IntoIterator<Item = Reason>) {
        self.state().next_sends.extend(reasons);
    }

    /// Answers all sends to a conversation with UNAVAILABLE.
    pub(crate) fn hold(&self, id: ConversationId) {
        self.state().held.insert(id.to_string());
    }

    /// Answers the next calls that read history with `reasons`, and lists no conversation the next `empty_lists` times.
    pub(crate) fn refuse_reads(&self, reasons: impl IntoIterator<Item = Reason>, empty_lists: u32) {
        let mut state = self.state();
        state.next_reads.extend(reasons);
        state.empty_lists += empty_lists;
    }

    /// Keeps a user from others' device logs, or no longer.
    pub(crate) fn keep_from_logs(&self, user: &str, how: Option<Logs>) {
        let mut state = self.state();
        state.kept_from_logs.remove(user);
        if let Some(how) = how {
            state.kept_from_logs.insert(user.to_owned(), (how, 0));
        }
    }

    /// How often a user who is kept from device logs has asked for one.
    pub(crate) fn asked_for_logs(&self, user: &str) -> u64 {
        self.state().kept_from_logs.get(user).map_or(0, |(_, asked)| *asked)
    }

    /// The keys that the server says are the tenant authority's.
    pub(crate) fn set_authority(&self, keys: &[[u8; 32]]) {
        self.state().authority = keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
    }

    /// Whether a device's read mark came up to `sequence`.
    pub(crate) fn has_read(&self, user: &str, sequence: u64) -> bool {
        self.state().reads.iter().any(|((reader, _), _, at)| reader == user && *at >= sequence)
    }

    /// The feed of a device forgets everything so far: as after 30 days.
    pub(crate) fn cut_feed(&self, user: &str, device: &str) {
        let mut state = self.state();
        let feed = state.feeds.entry((user.to_owned(), device.to_owned())).or_default();
        for event in feed.iter_mut() {
            event.body = None;
            event.previous = Bytes::from_static(b"cut");
        }
    }

    fn push(&self, state: &mut State, to: &Who, body: v1::event::Body) {
        let feed = state.feeds.entry(to.clone()).or_default();
        let place = feed.len() as u64;
        let cursor = |n: u64| if n == 0 { Bytes::new() } else { Bytes::copy_from_slice(&n.to_be_bytes()) };
        feed.push(v1::Event { cursor: cursor(place + 1), previous: cursor(place), body: Some(body) });
        self.changed.send_modify(|version| *version += 1);
    }

    fn sequence(&self, state: &mut State, sealed: &v1::Sealed) -> Result<u64, Status> {
        let clear = envelope::decode(&sealed.envelope).map_err(|_| refuse(Reason::ArgumentInvalid, &[]))?;
        let id = clear.conversation.to_string();
        let group = state.conversations.get_mut(&id).ok_or_else(|| refuse(Reason::NotAMember, &[]))?;
        if !group.taken.insert(clear.message.to_string()) {
            return Ok(0);
        }
        if clear.epoch.0 != group.state.epoch {
            let commit = clear.kind != MessageKind::Application;
            return Err(refuse(if commit { Reason::EpochConflict } else { Reason::StaleEpoch }, &[]));
        }
        let sequence = group.messages.len() as u64 + 1;
        let (one, two) = (Digest::of(&sealed.envelope), Digest::of(&sealed.mls_message));
        group.chain = chain_next(group.chain, Sequence(sequence), one, two);
        let message = v1::Message {
            conversation_id: id,
            sequence,
            chain_hash: group.chain.as_bytes().to_vec().into(),
            envelope: sealed.envelope.clone(),
            body: Some(v1::message::Body::MlsMessage(sealed.mls_message.clone())),
            accept_time: None,
        };
        group.messages.push(message.clone());
        let mut to: HashSet<Who> = group.leaves.values().cloned().collect();
        to.insert((clear.sender.to_string(), clear.device.to_string()));
        for who in to {
            self.push(state, &who, v1::event::Body::Message(message.clone()));
        }
        Ok(sequence)
    }
}

#[tonic::async_trait]
impl SessionService for Naive {
    async fn get_server_info(&self, _: Request<v1::GetServerInfoRequest>) -> Answer<v1::GetServerInfoResponse> {
        let authority_keys = self.state().authority.clone();
        Ok(Response::new(v1::GetServerInfoResponse { suites: vec![1], authority_keys, ..Default::default() }))
    }

    async fn create_session(&self, request: Request<v1::CreateSessionRequest>) -> Answer<v1::CreateSessionResponse> {
        let request = request.into_inner();
        let part = |index| -> serde_json::Value {
            let text = request.dpop_proof.split('.').nth(index).unwrap();
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
        };
        if part(1)["nonce"] != "a nonce" {
            return Err(refuse(Reason::UseDpopNonce, &[("nonce", "a nonce")]));
        }
        let key = part(0)["jwk"]["x"].as_str().unwrap().to_owned();
        let user = request.access_token;
        let state = self.state();
        let enrolled = state.logs.get(&user).into_iter().flatten().filter_map(|entry| entry.device.as_ref());
        let device = enrolled.into_iter().find(|device| device.auth_key.contains(&key)).map(|device| device.id.clone());
        let device = device.unwrap_or_default();
        Ok(Response::new(v1::CreateSessionResponse {
            session_token: format!("{user}/{device}"),
            expire_time: Some(wardline_proto::convert::time::to_wire(
                wardline_client::Clock::system().now().plus(std::time::Duration::from_secs(600)),
            )),
            nonce: "a nonce".into(),
            user_id: user,
            device_id: device,
            tenant_id: TENANT.into(),
        }))
    }

    async fn delete_session(&self, _: Request<v1::DeleteSessionRequest>) -> Answer<v1::DeleteSessionResponse> {
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }
}

macro_rules! absent {
    ($($name:ident $request:ident $response:ident;)*) => {
        $(
            fn $name<'life0, 'async_trait>(
                &'life0 self,
                _: Request<v1::$request>,
            ) -> Pin<Box<dyn Future<Output = Answer<v1::$response>> + Send + 'async_trait>>
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                Box::pin(async { Err(Status::unimplemented("absent")) })
            }
        )*
    };
}

#[tonic::async_trait]
impl DirectoryService for Naive {
    absent! {
        create_tenant CreateTenantRequest CreateTenantResponse;
        get_tenant GetTenantRequest GetTenantResponse;
        create_user CreateUserRequest CreateUserResponse;
        get_user GetUserRequest GetUserResponse;
        deactivate_user DeactivateUserRequest DeactivateUserResponse;
        get_device GetDeviceRequest GetDeviceResponse;
        list_devices ListDevicesRequest ListDevicesResponse;
        revoke_device RevokeDeviceRequest RevokeDeviceResponse;
        get_key_package_status GetKeyPackageStatusRequest GetKeyPackageStatusResponse;
    }

    async fn enroll_device(&self, request: Request<v1::EnrollDeviceRequest>) -> Answer<v1::EnrollDeviceResponse> {
        let (user, _) = who(&request)?;
        let request = request.into_inner();
        let entry = v1::DeviceLogEntry {
            version: request.version,
            change: v1::DeviceChange::Enrolled as i32,
            device: request.device.clone(),
            signer_device_id: request.signer_device_id,
            signature: request.signature,
            previous_hash: request.previous_hash,
            create_time: None,
        };
        self.state().logs.entry(user).or_default().push(entry);
        Ok(Response::new(v1::EnrollDeviceResponse { device: request.device }))
    }

    async fn list_device_log(&self, request: Request<v1::ListDeviceLogRequest>) -> Answer<v1::ListDeviceLogResponse> {
        let (caller, _) = who(&request)?;
        let request = request.into_inner();
        let mut state = self.state();
        if let Some((how, asked)) = state.kept_from_logs.get_mut(&caller) {
            *asked += 1;
            return match how {
                Logs::Unavailable => Err(refuse(Reason::Unavailable, &[])),
                Logs::Empty => Ok(Response::new(v1::ListDeviceLogResponse::default())),
            };
        }
        let entries = state.logs.get(&request.user_id).into_iter().flatten();
        let entries = entries.filter(|entry| entry.version > request.after_version).cloned().collect();
        Ok(Response::new(v1::ListDeviceLogResponse { entries }))
    }

    async fn publish_key_packages(
        &self,
        request: Request<v1::PublishKeyPackagesRequest>,
    ) -> Answer<v1::PublishKeyPackagesResponse> {
        let who = who(&request)?;
        let mut state = self.state();
        let held = state.packages.entry(who).or_default();
        held.extend(request.into_inner().key_packages);
        Ok(Response::new(v1::PublishKeyPackagesResponse { available: held.len() as u32 }))
    }

    async fn claim_key_packages(
        &self,
        request: Request<v1::ClaimKeyPackagesRequest>,
    ) -> Answer<v1::ClaimKeyPackagesResponse> {
        who(&request)?;
        let users = request.into_inner().user_ids;
        let mut claimed = Vec::new();
        for ((user, device), held) in &mut self.state().packages {
            if let Some(package) = users.contains(user).then(|| held.pop()).flatten() {
                let (user_id, device_id) = (user.clone(), device.clone());
                claimed.push(v1::ClaimedKeyPackage { user_id, device_id, key_package: package, last_resort: false });
            }
        }
        Ok(Response::new(v1::ClaimKeyPackagesResponse { claimed, missing: Vec::new() }))
    }
}

#[tonic::async_trait]
impl ConversationService for Naive {
    type PublishStream = Pin<Box<dyn Stream<Item = Result<v1::PublishResponse, Status>> + Send>>;

    absent! {
        list_members ListMembersRequest ListMembersResponse;
        leave_conversation LeaveConversationRequest LeaveConversationResponse;
    }

    async fn publish(&self, _: Request<Streaming<v1::PublishRequest>>) -> Answer<Self::PublishStream> {
        Err(Status::unimplemented("absent"))
    }

    async fn get_outcome(&self, request: Request<v1::GetOutcomeRequest>) -> Answer<v1::GetOutcomeResponse> {
        use v1::get_outcome_response::Outcome;
        let request = request.into_inner();
        let state = self.state();
        let group = state.conversations.get(&request.conversation_id).ok_or_else(|| refuse(Reason::NotAMember, &[]))?;
        let is_it = |message: &&v1::Message| {
            envelope::decode(&message.envelope).unwrap().message.to_string() == request.message_id
        };
        let outcome = match group.messages.iter().find(is_it) {
            Some(message) => Outcome::Sequenced(v1::Sequenced { sequence: message.sequence, accept_time: None }),
            None => Outcome::Pending(v1::OutcomePending {}),
        };
        Ok(Response::new(v1::GetOutcomeResponse { outcome: Some(outcome) }))
    }

    async fn get_conversation(
        &self,
        request: Request<v1::GetConversationRequest>,
    ) -> Answer<v1::GetConversationResponse> {
        let id = request.into_inner().conversation_id;
        let state = self.state();
        let group = state.conversations.get(&id).ok_or_else(|| refuse(Reason::NotAMember, &[]))?;
        Ok(Response::new(v1::GetConversationResponse { conversation: Some(conversation(&id, group)) }))
    }

    async fn create_conversation(
        &self,
        request: Request<v1::CreateConversationRequest>,
    ) -> Answer<v1::CreateConversationResponse> {
        let creator = who(&request)?;
        let request = request.into_inner();
        let state = request.group_state.unwrap();
        let id: ConversationId = request.conversation_id.parse().unwrap();
        let group = Group {
            state,
            chain: chain_start(id),
            messages: Vec::new(),
            leaves: BTreeMap::from([(0, creator)]),
            taken: HashSet::new(),
        };
        self.state().conversations.insert(request.conversation_id, group);
        Ok(Response::new(v1::CreateConversationResponse::default()))
    }

    async fn get_group_state(&self, request: Request<v1::GetGroupStateRequest>) -> Answer<v1::GetGroupStateResponse> {
        let request = request.into_inner();
        let state = self.state();
        let group = state.conversations.get(&request.conversation_id).ok_or_else(|| refuse(Reason::NotAMember, &[]))?;
        match request.epoch.unwrap_or(group.state.epoch).cmp(&group.state.epoch) {
            Ordering::Less => Err(refuse(Reason::NotFound, &[])),
            Ordering::Equal => Ok(Response::new(v1::GetGroupStateResponse { group_state: Some(group.state.clone()) })),
            Ordering::Greater => Err(refuse(Reason::Unavailable, &[])),
        }
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answer<v1::CommitResponse> {
        let (user, device) = who(&request)?;
        let request = request.into_inner();
        let sealed = request.sealed.unwrap();
        let read = mls::commit(&sealed.mls_message).map_err(|_| refuse(Reason::MlsInvalid, &[]))?;
        let id = envelope::decode(&sealed.envelope).unwrap().conversation.to_string();
        let mut state = self.state();
        let sequence = self.sequence(&mut state, &sealed)?;
        if sequence == 0 {
            return Ok(Response::new(v1::CommitResponse::default()));
        }
        let group = state.conversations.get_mut(&id).unwrap();
        for leaf in &read.removes {
            group.leaves.remove(leaf);
        }
        let mut joined: Vec<Who> = Vec::new();
        for add in &read.adds {
            let credential = add.leaf.credential;
            joined.push((credential.principal.to_string(), credential.device.to_string()));
        }
        let external = matches!(read.header.form, mls::Form::NewMemberCommit).then_some((user, device));
        for who in joined.iter().cloned().chain(external) {
            let free = (0..).find(|leaf| !group.leaves.contains_key(leaf)).unwrap();
            group.leaves.insert(free, who);
        }
        group.state = request.group_state.unwrap();
        let welcome = v1::Welcome {
            conversation_id: id,
            generation: 0,
            epoch: group.state.epoch,
            sequence,
            welcome: request.welcome,
            chain_hash: group.chain.as_bytes().to_vec().into(),
        };
        for who in joined {
            self.push(&mut state, &who, v1::event::Body::Welcome(welcome.clone()));
        }
        Ok(Response::new(v1::CommitResponse::default()))
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Answer<v1::SendResponse> {
        who(&request)?;
        let sealed = request.into_inner().sealed.unwrap();
        let mut state = self.state();
        state.sends += 1;
        let to = envelope::decode(&sealed.envelope).unwrap().conversation.to_string();
        if state.held.contains(&to) {
            return Err(refuse(Reason::Unavailable, &[]));
        }
        if let Some(reason) = state.next_sends.pop_front() {
            return Err(refuse(reason, &[]));
        }
        let forgets = self.forgets_every > 0 && state.sends.is_multiple_of(self.forgets_every);
        let before = (state.sends / self.forgets_every.max(1)).is_multiple_of(2);
        if !(forgets && before) {
            self.sequence(&mut state, &sealed)?;
        }
        if forgets { Err(refuse(Reason::Unavailable, &[])) } else { Ok(Response::new(v1::SendResponse::default())) }
    }
}

fn conversation(id: &str, group: &Group) -> v1::Conversation {
    v1::Conversation {
        id: id.to_owned(),
        epoch: group.state.epoch,
        sequence: group.messages.len() as u64,
        chain_hash: group.chain.as_bytes().to_vec().into(),
        suite: 1,
        kind: 1,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl DeliveryService for Naive {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::AttachResponse, Status>> + Send>>;

    absent! {
        get_message_body GetMessageBodyRequest GetMessageBodyResponse;
        get_presence GetPresenceRequest GetPresenceResponse;
    }

    async fn list_messages(&self, request: Request<v1::ListMessagesRequest>) -> Answer<v1::ListMessagesResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        if let Some(reason) = state.next_reads.pop_front() {
            return Err(refuse(reason, &[]));
        }
        let group = state.conversations.get(&request.conversation_id).ok_or_else(|| refuse(Reason::NotAMember, &[]))?;
        let after = group.messages.iter().filter(|message| message.sequence > request.after_sequence);
        let last_sequence = group.messages.len() as u64;
        Ok(Response::new(v1::ListMessagesResponse { messages: after.take(2).cloned().collect(), last_sequence }))
    }

    async fn list_conversations(
        &self,
        request: Request<v1::ListConversationsRequest>,
    ) -> Answer<v1::ListConversationsResponse> {
        let caller = who(&request)?;
        let mut state = self.state();
        if state.empty_lists > 0 {
            state.empty_lists -= 1;
            return Ok(Response::new(v1::ListConversationsResponse::default()));
        }
        let users = |group: &Group| group.leaves.values().any(|(user, _)| *user == caller.0);
        let conversations =
            state.conversations.iter().filter(|(_, group)| users(group)).map(|(id, group)| v1::ListedConversation {
                conversation: Some(conversation(id, group)),
                device_is_member: group.leaves.values().any(|who| *who == caller),
            });
        let conversations = conversations.collect();
        Ok(Response::new(v1::ListConversationsResponse { conversations, next_page_token: String::new() }))
    }

    async fn attach(&self, request: Request<Streaming<v1::AttachRequest>>) -> Answer<Self::AttachStream> {
        let caller = who(&request)?;
        let mut up = request.into_inner();
        let (down, frames) = mpsc::channel(16);
        let naive = self.clone();
        tokio::spawn(async move {
            let mut changed = naive.changed.subscribe();
            let mut at = 0;
            loop {
                tokio::select! {
                    frame = up.next() => match frame {
                        Some(Ok(frame)) => {
                            if let Some(answer) = naive.upward(&caller, &mut at, frame)
                                && down.send(Ok(answer)).await.is_err()
                            {
                                return;
                            }
                        }
                        _ => return,
                    },
                    ok = changed.changed() => if ok.is_err() { return },
                }
                let events = naive.after(&caller, &mut at);
                if !events.is_empty() {
                    let frame = v1::attach_response::Frame::Events(v1::AttachEvents { events });
                    if down.send(Ok(v1::AttachResponse { frame: Some(frame) })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

/// Nothing is sent while the device has not taken note of the cut.
const WAITING: u64 = u64::MAX;

impl Naive {
    fn upward(&self, caller: &Who, at: &mut u64, frame: v1::AttachRequest) -> Option<v1::AttachResponse> {
        use v1::attach_request::Frame as Up;
        let number = |cursor: &[u8]| cursor.try_into().map(u64::from_be_bytes).unwrap_or_default();
        let mut state = self.state();
        match frame.frame? {
            Up::Start(start) => {
                *at = number(&start.cursor);
                let feed = state.feeds.get(caller).map(Vec::as_slice).unwrap_or_default();
                let cut = feed.iter().rposition(|event| event.previous.as_ref() == b"cut").map(|at| at as u64 + 1);
                if let Some(cut) = cut.filter(|cut| *at < *cut) {
                    *at = WAITING;
                    let resume_cursor = Bytes::copy_from_slice(&cut.to_be_bytes());
                    let expired = v1::AttachCursorExpired { resume_cursor };
                    let frame = v1::attach_response::Frame::CursorExpired(expired);
                    return Some(v1::AttachResponse { frame: Some(frame) });
                }
            }
            Up::Acknowledge(acknowledge) => {
                let place = number(&acknowledge.cursor);
                if *at == WAITING {
                    *at = place;
                }
                state.acknowledged.insert(caller.clone(), place);
            }
            Up::Read(read) => state.reads.push((caller.clone(), read.conversation_id, read.sequence)),
            Up::Renew(_) | Up::Activity(_) => {}
        }
        None
    }

    fn after(&self, caller: &Who, at: &mut u64) -> Vec<v1::Event> {
        let state = self.state();
        let feed = state.feeds.get(caller).map(Vec::as_slice).unwrap_or_default();
        let start = usize::try_from(*at).unwrap_or(usize::MAX);
        let Some(events) = feed.get(start..) else { return Vec::new() };
        *at = feed.len() as u64;
        events.to_vec()
    }
}
