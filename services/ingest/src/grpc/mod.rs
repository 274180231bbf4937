//! `wardline.v1.ConversationService`.

mod publish;
mod read;
mod submit;

use std::pin::Pin;

use futures::Stream;
use metrics::counter;
use tonic::{Request, Response, Status, Streaming};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::conversation_service_server::ConversationService;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::{Caller, Refusal};

use crate::Ingest;
use crate::measures as names;

impl Ingest {
    /// The device that calls, and what it asks.
    fn enter<T>(&self, action: &'static str, request: Request<T>) -> Result<(Caller, DeviceCaller, T), Refusal> {
        let caller = Caller::of(&request)?;
        match caller.device() {
            Ok(device) => Ok((caller, device, request.into_inner())),
            Err(refusal) => self.answered(action, &caller, Err(refusal)),
        }
    }

    /// Counts an answer, and leaves an audit record of one that refuses for who asks.
    fn answered<R>(&self, action: &'static str, caller: &Caller, answer: Result<R, Refusal>) -> Result<R, Refusal> {
        count(action, answer.as_ref().err());
        self.audited(action, caller, answer)
    }

    /// Leaves an audit record of an answer that refuses for who asks.
    fn audited<R>(&self, action: &'static str, caller: &Caller, answer: Result<R, Refusal>) -> Result<R, Refusal> {
        if let Err(refusal) = &answer
            && is_security_decision(refusal.reason)
        {
            self.inner.deps.audit.record(action, Some(caller), None, Err(refusal.reason));
        }
        answer
    }
}

/// Counts what something came to: an action of this service by its constant name.
fn count(action: &'static str, refusal: Option<&Refusal>) {
    let outcome = refusal.map_or("OK", |refusal| refusal.reason.as_str());
    counter!(names::ANSWERS, "action" => action, "outcome" => outcome).increment(1);
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
        const ACTION: &str = "create_conversation";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.create(device, request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }

    async fn get_conversation(
        &self,
        request: Request<v1::GetConversationRequest>,
    ) -> Result<Response<v1::GetConversationResponse>, Status> {
        const ACTION: &str = "get_conversation";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.get_conversation(device, &request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        const ACTION: &str = "list_members";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.list_members(device, &request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }

    async fn leave_conversation(
        &self,
        request: Request<v1::LeaveConversationRequest>,
    ) -> Result<Response<v1::LeaveConversationResponse>, Status> {
        const ACTION: &str = "leave_conversation";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.leave(device, &request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }

    async fn get_group_state(
        &self,
        request: Request<v1::GetGroupStateRequest>,
    ) -> Result<Response<v1::GetGroupStateResponse>, Status> {
        const ACTION: &str = "get_group_state";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.get_group_state(device, &request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        const ACTION: &str = "commit";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.commit(device, request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Result<Response<v1::SendResponse>, Status> {
        const ACTION: &str = "send";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.send(device, request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
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
        const ACTION: &str = "get_outcome";
        let (caller, device, request) = self.enter(ACTION, request)?;
        let answer = self.inner.get_outcome(device, &request).await;
        Ok(Response::new(self.answered(ACTION, &caller, answer)?))
    }
}
