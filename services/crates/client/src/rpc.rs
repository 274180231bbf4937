//! The unary calls, each with a session.
//!
//! Deliberately absent: retries of anything whose outcome may matter; those are the outbox worker's. What only reads is
//! repeated here a few times.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use wardline_domain::{ConversationId, DeviceId, MessageId, UserId};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::conversation_service_client::ConversationServiceClient as Conversations;
use wardline_proto::v1::delivery_service_client::DeliveryServiceClient as Delivery;
use wardline_proto::v1::directory_service_client::DirectoryServiceClient as Directory;
use wardline_proto::v1::receipt_service_client::ReceiptServiceClient as Receipts;

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::core::Account;
use crate::dpop::AuthKey;
use crate::endpoints::{Endpoints, stream_channel, unary_channel};
use crate::error::Error;
use crate::session::Sessions;
use crate::token::AccessTokens;

/// The largest message that is taken: a group state with its tree.
const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;
/// How often a call that only reads is made before giving up.
const READ_ATTEMPTS: u32 = 6;

/// The services as one device calls them.
pub(crate) struct Rpc {
    sessions: Sessions,
    directory: Channel,
    ingest: Channel,
    presence: Channel,
    presence_stream: Channel,
    receipt: Channel,
    authority: OnceCell<Vec<[u8; 32]>>,
    backoff: Backoff,
}

impl Rpc {
    pub(crate) fn new(
        endpoints: &Endpoints,
        tokens: Arc<dyn AccessTokens>,
        key: AuthKey,
        clock: Clock,
    ) -> Result<Self, Error> {
        let tls = endpoints.tls.as_ref();
        let directory = unary_channel(&endpoints.directory, tls)?;
        Ok(Self {
            sessions: Sessions::new(directory.clone(), tokens, key, clock),
            directory,
            ingest: unary_channel(&endpoints.ingest, tls)?,
            presence: unary_channel(&endpoints.presence, tls)?,
            presence_stream: stream_channel(&endpoints.presence, tls)?,
            receipt: unary_channel(&endpoints.receipt, tls)?,
            authority: OnceCell::new(),
            backoff: Backoff::default(),
        })
    }

    /// Makes a call with a session; once more with a new one when the old one has ended.
    async fn call<Q, A, F>(&self, message: Q, call: impl Fn(Request<Q>) -> F) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let session = self.sessions.get().await?;
        match call(session.request(message.clone())).await.map_err(Error::from) {
            Err(error) if crate::session::is_over(&error) => {
                self.sessions.forget(&session).await;
                let session = self.sessions.get().await?;
                Ok(call(session.request(message)).await?.into_inner())
            }
            answer => answer.map(Response::into_inner),
        }
    }

    /// As [`Rpc::call`], repeated while the failure may pass. For calls that only read, or are idempotent by themselves.
    async fn call_again<Q, A, F>(&self, message: Q, call: impl Fn(Request<Q>) -> F) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempt = 0;
        loop {
            match self.call(message.clone(), &call).await {
                Err(error) if error.passes() && attempt + 1 < READ_ATTEMPTS => {
                    tokio::time::sleep(self.backoff.delay(attempt, error.retry_after())).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    fn directory(&self) -> Directory<Channel> {
        Directory::new(self.directory.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn ingest(&self) -> Conversations<Channel> {
        Conversations::new(self.ingest.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn presence(&self) -> Delivery<Channel> {
        Delivery::new(self.presence.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    // Sessions

    /// Whose session it is.
    pub(crate) async fn account(&self) -> Result<Account, Error> {
        self.sessions.get().await?.account().ok_or(Error::Untrusted("the session names no user of a tenant"))
    }

    /// The next call makes a new session.
    pub(crate) async fn forget_session(&self) {
        self.sessions.forget_any().await;
    }

    /// A token for a stream that asks for renewal.
    pub(crate) async fn new_token(&self) -> Result<String, Error> {
        self.sessions.forget_any().await;
        Ok(self.sessions.get().await?.token().to_owned())
    }

    /// The keys of the tenant authority, as the server says. To be compared with what is pinned.
    pub(crate) async fn authority_keys(&self) -> Result<Vec<[u8; 32]>, Error> {
        let read = || async {
            let info = self.sessions.server_info().await?;
            Ok::<_, Error>(info.authority_keys.iter().filter_map(|key| key.as_ref().try_into().ok()).collect())
        };
        self.authority.get_or_try_init(read).await.cloned()
    }

    // Directory

    pub(crate) async fn enroll(&self, request: v1::EnrollDeviceRequest) -> Result<(), Error> {
        self.call_again(request, |request| async { self.directory().enroll_device(request).await }).await.map(|_| ())
    }

    pub(crate) async fn revoke(&self, user: UserId, device: DeviceId) -> Result<(), Error> {
        let request = v1::RevokeDeviceRequest { user_id: user.to_string(), device_id: device.to_string() };
        self.call_again(request, |request| async { self.directory().revoke_device(request).await }).await.map(|_| ())
    }

    pub(crate) async fn device_log(&self, user: UserId, after: u64) -> Result<Vec<v1::DeviceLogEntry>, Error> {
        let request = v1::ListDeviceLogRequest { user_id: user.to_string(), after_version: after, page_size: 100 };
        let answer =
            self.call_again(request, |request| async { self.directory().list_device_log(request).await }).await?;
        Ok(answer.entries)
    }

    pub(crate) async fn publish_key_packages(&self, request: v1::PublishKeyPackagesRequest) -> Result<u32, Error> {
        let answer =
            self.call_again(request, |request| async { self.directory().publish_key_packages(request).await }).await?;
        Ok(answer.available)
    }

    pub(crate) async fn claim_key_packages(
        &self,
        request: v1::ClaimKeyPackagesRequest,
    ) -> Result<v1::ClaimKeyPackagesResponse, Error> {
        self.call_again(request, |request| async { self.directory().claim_key_packages(request).await }).await
    }

    // Conversations

    pub(crate) async fn create_conversation(&self, request: v1::CreateConversationRequest) -> Result<(), Error> {
        self.call(request, |request| async { self.ingest().create_conversation(request).await }).await.map(|_| ())
    }

    pub(crate) async fn commit(&self, request: v1::CommitRequest) -> Result<(), Error> {
        self.call(request, |request| async { self.ingest().commit(request).await }).await.map(|_| ())
    }

    pub(crate) async fn send(&self, sealed: v1::Sealed) -> Result<(), Error> {
        let request = v1::SendRequest { sealed: Some(sealed) };
        self.call(request, |request| async { self.ingest().send(request).await }).await.map(|_| ())
    }

    pub(crate) async fn outcome(
        &self,
        conversation: ConversationId,
        message: MessageId,
        wait: Duration,
    ) -> Result<Option<v1::get_outcome_response::Outcome>, Error> {
        let request = v1::GetOutcomeRequest {
            conversation_id: conversation.to_string(),
            device_id: String::new(),
            message_id: message.to_string(),
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(10_000),
        };
        let answer = self.call_again(request, |request| async { self.ingest().get_outcome(request).await }).await?;
        Ok(answer.outcome)
    }

    pub(crate) async fn conversation(&self, conversation: ConversationId) -> Result<v1::Conversation, Error> {
        let request = v1::GetConversationRequest { conversation_id: conversation.to_string() };
        let answer =
            self.call_again(request, |request| async { self.ingest().get_conversation(request).await }).await?;
        answer.conversation.ok_or(Error::Untrusted("an answer without its conversation"))
    }

    pub(crate) async fn leave(&self, conversation: ConversationId) -> Result<(), Error> {
        let request = v1::LeaveConversationRequest { conversation_id: conversation.to_string() };
        self.call_again(request, |request| async { self.ingest().leave_conversation(request).await }).await.map(|_| ())
    }

    /// Whether this user is a member. The caller takes a "no" for a removal, so it is asked several times: a view of the members
    /// that lags would say it too.
    pub(crate) async fn is_member(&self, conversation: ConversationId) -> Result<bool, Error> {
        let mut attempt = 0;
        loop {
            match self.conversation(conversation).await {
                Ok(_) => return Ok(true),
                Err(error) if error.reason() != Some(Reason::NotAMember) => return Err(error),
                Err(_) if attempt + 1 == READ_ATTEMPTS => return Ok(false),
                Err(error) => tokio::time::sleep(self.backoff.delay(attempt, error.retry_after())).await,
            }
            attempt += 1;
        }
    }

    /// As [`Rpc::group_state`], for a device that has just been added or knows that it is a member: the service that answers
    /// may learn of it a little later than the feed.
    pub(crate) async fn group_state_patiently(
        &self,
        conversation: ConversationId,
        epoch: Option<u64>,
    ) -> Result<v1::GroupState, Error> {
        let mut attempt = 0;
        loop {
            match self.group_state(conversation, epoch).await {
                Err(error) if attempt + 1 < READ_ATTEMPTS && error.reason() == Some(Reason::NotAMember) => {
                    tokio::time::sleep(self.backoff.delay(attempt, error.retry_after())).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    pub(crate) async fn group_state(
        &self,
        conversation: ConversationId,
        epoch: Option<u64>,
    ) -> Result<v1::GroupState, Error> {
        let request = v1::GetGroupStateRequest { conversation_id: conversation.to_string(), epoch };
        let answer = self.call_again(request, |request| async { self.ingest().get_group_state(request).await }).await?;
        answer.group_state.ok_or(Error::Untrusted("an answer without its group state"))
    }

    // Delivery and receipts

    /// Opens the feed.
    pub(crate) async fn attach(
        &self,
        up: tokio_stream::wrappers::ReceiverStream<v1::AttachRequest>,
    ) -> Result<tonic::Streaming<v1::AttachResponse>, Error> {
        let session = self.sessions.get().await?;
        let mut client = Delivery::new(self.presence_stream.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        match client.attach(session.request(up)).await {
            Ok(stream) => Ok(stream.into_inner()),
            Err(status) => {
                let error = Error::from(status);
                if crate::session::is_over(&error) {
                    self.sessions.forget(&session).await;
                }
                Err(error)
            }
        }
    }

    pub(crate) async fn messages(
        &self,
        conversation: ConversationId,
        after: u64,
    ) -> Result<v1::ListMessagesResponse, Error> {
        let request = v1::ListMessagesRequest {
            conversation_id: conversation.to_string(),
            after_sequence: after,
            page_size: 200,
        };
        self.call_again(request, |request| async { self.presence().list_messages(request).await }).await
    }

    pub(crate) async fn conversations(&self, page_token: String) -> Result<v1::ListConversationsResponse, Error> {
        let request = v1::ListConversationsRequest { page_size: 500, page_token };
        self.call_again(request, |request| async { self.presence().list_conversations(request).await }).await
    }

    pub(crate) async fn message_body(&self, conversation: String, blob_ref: String) -> Result<bytes::Bytes, Error> {
        let request = v1::GetMessageBodyRequest { conversation_id: conversation, blob_ref };
        let answer =
            self.call_again(request, |request| async { self.presence().get_message_body(request).await }).await?;
        Ok(answer.mls_message)
    }

    pub(crate) async fn receipts(&self, conversation: ConversationId) -> Result<Vec<v1::Watermark>, Error> {
        let request = v1::GetReceiptsRequest { conversation_id: conversation.to_string(), sequence: 0 };
        let client = || Receipts::new(self.receipt.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answer = self.call_again(request, |request| async { client().get_receipts(request).await }).await?;
        Ok(answer.watermarks)
    }

    pub(crate) async fn present(&self, users: &[UserId]) -> Result<Vec<UserId>, Error> {
        let request = v1::GetPresenceRequest { user_ids: users.iter().map(ToString::to_string).collect() };
        let answer = self.call_again(request, |request| async { self.presence().get_presence(request).await }).await?;
        let attached = answer
            .presences
            .into_iter()
            .filter(|user| matches!(user.state(), v1::PresenceState::Attached | v1::PresenceState::Active));
        Ok(attached.filter_map(|user| user.user_id.parse().ok()).collect())
    }
}
