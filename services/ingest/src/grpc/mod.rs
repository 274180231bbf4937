//! `wardline.v1.ConversationService`.

mod publish;
mod read;
mod submit;

use std::pin::Pin;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};
use wardline_proto::reason::Reason;
use wardline_proto::v1::conversation_service_server::ConversationService;
use wardline_proto::v1;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::{Caller, Refusal};

use crate::Ingest;

impl Ingest {
    /// Runs a call for a device and leaves an audit record when it is refused for who asks.
    async fn call<T, R>(
        &self,
        action: &'static str,
        request: Request<T>,
        call: impl AsyncFnOnce(DeviceCaller, T) -> Result<R, Refusal>,
    ) -> Result<Response<R>, Status> {
        let caller = Caller::of(&request)?;
        let answer = match caller.device() {
            Ok(device) => call(device, request.into_inner()).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &answer
            && is_security_decision(refusal.reason)
        {
            self.inner.deps.audit.record(action, Some(&caller), None, Err(refusal.reason));
        }
        Ok(Response::new(answer?))
    }
}

const fn is_security_decision(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SenderMismatch
            | Reason::NotAMember
            | Reason::DeviceRequired
            | Reason::DeviceNotEnrolled
            | Reason::KeyPackageNotServed
            | Reason::EnvelopeMismatch
            | Reason::RoleRequired
    )
}

#[tonic::async_trait]
impl ConversationService for Ingest {
    type PublishStream = Pin<Box<dyn Stream<Item = Result<v1::PublishResponse, Status>> + Send>>;

    async fn create_conversation(
        &self,
        request: Request<v1::CreateConversationRequest>,
    ) -> Result<Response<v1::CreateConversationResponse>, Status> {
        self.call("create_conversation", request, async |caller, request| self.inner.create(caller, request).await).await
    }

    async fn get_conversation(
        &self,
        request: Request<v1::GetConversationRequest>,
    ) -> Result<Response<v1::GetConversationResponse>, Status> {
        self.call("get_conversation", request, async |caller, request| {
            self.inner.get_conversation(caller, &request).await
        })
        .await
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        self.call("list_members", request, async |caller, request| self.inner.list_members(caller, &request).await).await
    }

    async fn leave_conversation(
        &self,
        request: Request<v1::LeaveConversationRequest>,
    ) -> Result<Response<v1::LeaveConversationResponse>, Status> {
        self.call("leave_conversation", request, async |caller, request| self.inner.leave(caller, &request).await).await
    }

    async fn get_group_state(
        &self,
        request: Request<v1::GetGroupStateRequest>,
    ) -> Result<Response<v1::GetGroupStateResponse>, Status> {
        self.call("get_group_state", request, async |caller, request| self.inner.get_group_state(caller, &request).await)
            .await
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        self.call("commit", request, async |caller, request| self.inner.commit(caller, request).await).await
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Result<Response<v1::SendResponse>, Status> {
        self.call("send", request, async |caller, request| self.inner.send(caller, request).await).await
    }

    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let caller = Caller::of(&request)?.device()?;
        Ok(Response::new(self.publish_stream(caller, request.into_inner())))
    }

    async fn get_outcome(
        &self,
        request: Request<v1::GetOutcomeRequest>,
    ) -> Result<Response<v1::GetOutcomeResponse>, Status> {
        self.call("get_outcome", request, async |caller, request| self.inner.get_outcome(caller, &request).await).await
    }
}
