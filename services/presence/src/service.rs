//! The public DeliveryService.
//!
//! Deliberately absent: Subscribe and the unary Acknowledge for browsers; the protocol does not have them yet.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};
use wardline_proto::v1::delivery_service_server::DeliveryService as Service;
use wardline_proto::v1::{self, AttachRequest, AttachResponse};
use wardline_runtime::{Caller, Refusal};

use crate::edge::{self, Edge};
use crate::lookup;

/// The public service. The caller's duty: put it under [`wardline_runtime::auth::AuthLayer`].
#[derive(Debug, Clone)]
pub struct DeliveryService {
    pub(crate) edge: Arc<Edge>,
}

#[tonic::async_trait]
impl Service for DeliveryService {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let caller = Caller::of(&request)?;
        let device = caller.device()?;
        if self.edge.drain.is_cancelled() {
            let unavailable = Refusal::new(wardline_proto::reason::Reason::Unavailable);
            return Err(unavailable.retry_after(self.edge.owner.options.timings.drain_retry_after).into());
        }
        if let Err(reason) = self.edge.revocations.check(device.user, device.device) {
            self.edge.audit.record("attach", Some(&caller), Some(device.device.as_bytes()), Err(reason));
            return Err(Refusal::new(reason).into());
        }
        let stream = edge::attach(Arc::clone(&self.edge), device, request.into_inner());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_messages(
        &self,
        request: Request<v1::ListMessagesRequest>,
    ) -> Result<Response<v1::ListMessagesResponse>, Status> {
        Ok(lookup::list_messages(&self.edge, request).await?)
    }

    async fn list_conversations(
        &self,
        request: Request<v1::ListConversationsRequest>,
    ) -> Result<Response<v1::ListConversationsResponse>, Status> {
        Ok(lookup::list_conversations(&self.edge, request).await?)
    }

    async fn get_message_body(
        &self,
        request: Request<v1::GetMessageBodyRequest>,
    ) -> Result<Response<v1::GetMessageBodyResponse>, Status> {
        Ok(lookup::get_message_body(&self.edge, request).await?)
    }

    async fn get_presence(
        &self,
        request: Request<v1::GetPresenceRequest>,
    ) -> Result<Response<v1::GetPresenceResponse>, Status> {
        Ok(lookup::get_presence(&self.edge, request).await?)
    }
}
