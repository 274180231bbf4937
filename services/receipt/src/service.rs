//! `wardline.v1.ReceiptService`: who has got and who has read what.
//!
//! Deliberately absent: paging. A conversation has at most 5,000 devices, and a watermark is some 150 bytes.

use std::future::Future;
use std::time::Duration;

use tonic::{Request, Response, Status};
use wardline_domain::ConversationId;
use wardline_proto::convert::{ids, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::receipt_service_server::{ReceiptService, ReceiptServiceServer};
use wardline_runtime::audit::Audit;
use wardline_runtime::members::Members;
use wardline_runtime::{Caller, Clock, Refusal};
use wardline_store::Stores;
use wardline_store::watermarks::WatermarkRow;

/// How long a call may take. A shorter deadline of the caller's ends it sooner.
const DEADLINE: Duration = Duration::from_secs(5);

/// What the service runs on.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Where watermarks lie.
    pub stores: Stores,
    /// Who may ask.
    pub members: Members,
    /// Tells when a session has ended.
    pub clock: Clock,
    /// Is told of refusals.
    pub audit: Audit,
}

/// Answers `wardline.v1.ReceiptService`.
#[derive(Debug, Clone)]
pub struct Service {
    deps: Deps,
}

/// The service, to be put behind the auth layer.
pub fn service(deps: Deps) -> ReceiptServiceServer<Service> {
    ReceiptServiceServer::new(Service::new(deps))
}

#[tonic::async_trait]
impl ReceiptService for Service {
    async fn get_receipts(
        &self,
        request: Request<v1::GetReceiptsRequest>,
    ) -> Result<Response<v1::GetReceiptsResponse>, Status> {
        Ok(Response::new(in_time(self.get(&request)).await?))
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    tokio::time::timeout(DEADLINE, answer).await.unwrap_or(Err(Refusal::new(Reason::DeadlineExceeded)))
}

impl Service {
    /// The handlers by themselves.
    pub const fn new(deps: Deps) -> Self {
        Self { deps }
    }

    async fn get(&self, request: &Request<v1::GetReceiptsRequest>) -> Result<v1::GetReceiptsResponse, Refusal> {
        let caller = Caller::of(request)?;
        let asked = request.get_ref();
        let conversation = ids::conversation(&asked.conversation_id, "conversation_id")?;
        self.admit(&caller, conversation).await?;
        let rows = self.deps.stores.watermarks.of(conversation).await?;
        let reached = |row: &&WatermarkRow| row.delivered.max(row.read) >= asked.sequence;
        Ok(v1::GetReceiptsResponse { watermarks: rows.iter().filter(reached).map(to_wire).collect() })
    }

    async fn admit(&self, caller: &Caller, conversation: ConversationId) -> Result<(), Refusal> {
        let admitted = self.member(caller, conversation).await;
        if let Err(refusal) = &admitted
            && refusal.reason == Reason::NotAMember
        {
            let subject = Some(conversation.as_bytes());
            self.deps.audit.record("GetReceipts", Some(caller), subject, Err(refusal.reason));
        }
        admitted
    }

    async fn member(&self, caller: &Caller, conversation: ConversationId) -> Result<(), Refusal> {
        let device = caller.device()?;
        if device.expires_at < self.deps.clock.now() {
            return Err(Refusal::new(Reason::SessionExpired));
        }
        self.deps.members.of_user(conversation, device.user).await.map(drop)
    }
}

fn to_wire(row: &WatermarkRow) -> v1::Watermark {
    let range = |(first, last): &(u64, u64)| v1::SequenceRange { first: *first, last: *last };
    v1::Watermark {
        conversation_id: row.conversation.to_string(),
        user_id: row.user.to_string(),
        device_id: row.device.to_string(),
        delivered: row.delivered,
        read: row.read,
        skipped: row.skipped.iter().map(range).collect(),
        when: Some(time::to_wire(row.when)),
    }
}
