//! Who may ask for receipts.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request, Status};
use wardline_domain::conversation::{Conversation, Outcome, Prior, apply};
use wardline_domain::envelope::{Epoch, Generation};
use wardline_domain::record::{BlobRef, Body, ConversationKind, Create, GroupStateRef, Policy, Record};
use wardline_domain::{Digest, Position, TenantId, Timestamp};
use wardline_log::laws::{Fault, MemoryLog};
use wardline_log::{EventLog, Topic};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::receipt_service_server::ReceiptService;
use wardline_receipt::{Service, ServiceDeps};
use wardline_runtime::audit::Audit;
use wardline_runtime::caller::Scopes;
use wardline_runtime::members::Members;
use wardline_runtime::{Caller, Clock};
use wardline_store::Stores;
use wardline_store::conversations::{HeadRow, MembersRow, RowBatch};
use wardline_store::watermarks::WatermarkRow;

use self::support::{conversation, device, stores, user};

const TENANT: TenantId = TenantId::from_bytes([9; 16]);
const NOW: Timestamp = Timestamp::from_micros(5_000_000);

/// A conversation of user 1 alone.
async fn populate(stores: &Stores) {
    let blob = BlobRef { digest: Digest::default(), length: 0 };
    let group_state = GroupStateRef {
        generation: Generation(0),
        epoch: Epoch(0),
        group_info: blob,
        ratchet_tree: blob,
        sealed_group_data: blob,
    };
    let create = Create {
        tenant: TENANT,
        kind: ConversationKind::SelfNotes,
        suite: 1,
        policy: Policy::default(),
        user: user(1),
        device: device(10),
        key_hash: Digest::default(),
        group_state,
    };
    let (position, digest, body) = (Position::from_u64(1), Digest::default(), Body::Create(create));
    let record = Record { position, digest, conversation: conversation(), accepted_at: NOW, body };
    let mut state = Conversation::absent(conversation());
    let Outcome::Created { delta } = apply(&mut state, Prior::None, &record) else { panic!("created") };
    let members =
        vec![MembersRow { conversation: conversation(), version: delta.to, accepted_at: NOW, delta, snapshot: None }];
    stores.conversations.put_rows(&RowBatch { members, ..RowBatch::default() }).await.unwrap();
    let head = HeadRow { conversation: conversation(), head: state.head.unwrap() };
    stores.conversations.put_heads(&[head]).await.unwrap();
    let row = |n, delivered, read| WatermarkRow {
        conversation: conversation(),
        user: user(1),
        device: device(n),
        delivered,
        read,
        skipped: vec![(2, 3)],
        when: NOW,
    };
    stores.watermarks.put(&[row(10, 7, 0), row(11, 4, 9), row(12, 4, 4)]).await.unwrap();
}

fn serve(stores: &Stores, log: &Arc<MemoryLog>) -> Service {
    let clock = Clock::from_fn(|| NOW);
    let members = Members::new(Arc::clone(&stores.conversations), 16, Duration::from_secs(1), clock.clone());
    let log: Arc<dyn EventLog> = Arc::clone(log) as _;
    let audit = Audit { log, role: "receipt", clock: clock.clone() };
    Service::new(ServiceDeps { stores: stores.clone(), members, clock, audit })
}

fn asks(n: u8, sequence: u64) -> Request<v1::GetReceiptsRequest> {
    let mut request = Request::new(v1::GetReceiptsRequest { conversation_id: conversation().to_string(), sequence });
    request.extensions_mut().insert(Caller {
        session: [0; 16],
        tenant: Some(TENANT),
        user: Some(user(n)),
        device: Some(device(n * 10)),
        key: Digest::default(),
        scopes: Scopes::default(),
        expires_at: Timestamp::from_micros(6_000_000),
    });
    request
}

fn refused(answer: Result<tonic::Response<v1::GetReceiptsResponse>, Status>) -> (Code, String) {
    let status = answer.map(drop).unwrap_err();
    (status.code(), status.message().to_owned())
}

fn as_status(reason: Reason) -> (Code, String) {
    (reason.code(), reason.message().to_owned())
}

#[tokio::test]
async fn a_member_reads_the_watermarks_that_reached_a_sequence() {
    let (stores, _dir) = stores();
    populate(&stores).await;
    let service = serve(&stores, &Arc::new(MemoryLog::new(|_| Fault::Works)));
    let all = service.get_receipts(asks(1, 0)).await.unwrap().into_inner().watermarks;
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].skipped, [v1::SequenceRange { first: 2, last: 3 }]);
    let reached = service.get_receipts(asks(1, 7)).await.unwrap().into_inner().watermarks;
    let devices: Vec<_> = reached.into_iter().map(|watermark| watermark.device_id).collect();
    let mut expected = [device(10).to_string(), device(11).to_string()];
    expected.sort();
    assert_eq!(devices, expected);
}

#[tokio::test]
async fn anybody_else_is_refused_and_the_refusal_recorded() {
    let (stores, _dir) = stores();
    populate(&stores).await;
    let log = Arc::new(MemoryLog::new(|_| Fault::Works));
    let service = serve(&stores, &log);
    assert_eq!(refused(service.get_receipts(asks(2, 0)).await), as_status(Reason::NotAMember));
    assert_eq!(log.records(Topic::Audit).into_values().flatten().count(), 1);
}

#[tokio::test]
async fn a_call_without_session_or_id_is_refused() {
    let (stores, _dir) = stores();
    let service = serve(&stores, &Arc::new(MemoryLog::new(|_| Fault::Works)));
    let request = Request::new(v1::GetReceiptsRequest::default());
    assert_eq!(refused(service.get_receipts(request).await), as_status(Reason::TokenMissing));
    let mut request = asks(1, 0);
    request.get_mut().conversation_id = "no id".to_owned();
    assert_eq!(refused(service.get_receipts(request).await), as_status(Reason::ArgumentInvalid));
}
