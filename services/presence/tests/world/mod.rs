//! Presence instances on embedded engines, what fanout would append, and devices.
//!
//! Deliberately absent: sleeping. Everything waits for what it wants to see, up to [`PATIENCE`].

#![allow(dead_code, unreachable_pub, missing_debug_implementations, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status, Streaming};
use tonic_types::StatusExt as _;
use wardline_domain::envelope::{MessageKind, Sealed, Sequence};
use wardline_domain::{ConversationId, DeviceId, Digest, Position, TenantId, Timestamp, UserId};
use wardline_log::{Event, EventLog, FetchLimits, Group, NewRecord, Partition, Start, Subscription, Topic};
use wardline_presence::{Deps, LinkKey, Options, Presence};
use wardline_proto::internal::v1 as wire;
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_proto::v1::delivery_service_client::DeliveryServiceClient;
use wardline_proto::v1::{self, AttachRequest, AttachResponse};
use wardline_registry::Registry;
use wardline_registry::in_process::InProcess;
use wardline_runtime::audit::Audit;
use wardline_runtime::auth::{AuthLayer, Authenticator};
use wardline_runtime::caller::Scopes;
use wardline_runtime::members::Members;
use wardline_runtime::revocations::Revocations;
use wardline_runtime::session::SessionKeys;
use wardline_runtime::{Caller, Clock};
use wardline_store::Stores;
use wardline_store::conversations::{MessageRow, RowBatch};

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const TENANT: TenantId = TenantId::from_bytes([9; 16]);

pub fn user(number: u8) -> UserId {
    UserId::from_bytes([number; 16])
}

pub fn device_of(user: u8) -> DeviceId {
    DeviceId::from_bytes([user | 0x80; 16])
}

pub fn conversation(number: u8) -> ConversationId {
    ConversationId::from_bytes([number; 16])
}

/// The engines of one deployment.
pub struct World {
    pub log: Arc<dyn EventLog>,
    pub stores: Stores,
    pub registry: Arc<dyn Registry>,
    pub clock: Clock,
    pub keys: Arc<SessionKeys>,
    _dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = wardline_log::embedded::open(wardline_log::embedded::Options::small(&dir.path().join("log"))).await;
        let stores = wardline_store::embedded::open(&dir.path().join("store")).unwrap();
        let clock = Clock::system();
        let tell = clock.clone();
        Self {
            log: log.unwrap(),
            stores,
            registry: Arc::new(InProcess::new(Arc::new(move || tell.now()))),
            clock,
            keys: Arc::new(SessionKeys::new(vec![zeroize::Zeroizing::new([5; 32])]).unwrap()),
            _dir: dir,
        }
    }

    pub async fn node(&self, tweak: impl FnOnce(&mut Options)) -> Node {
        let stop = CancellationToken::new();
        let revocations = Revocations::follow(Arc::clone(&self.log), stop.clone()).await.unwrap();
        let link = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = door.local_addr().unwrap();
        let link_address = link.local_addr().unwrap();
        let mut options = Options::new(format!("http://{link_address}"));
        options.timings.claim_every = Duration::from_millis(400);
        options.timings.flush_delay = Duration::from_millis(5);
        options.timings.presence_delay = Duration::from_millis(10);
        tweak(&mut options);
        let authenticator = Authenticator {
            keys: Arc::clone(&self.keys),
            revocations: revocations.clone(),
            registry: Arc::clone(&self.registry),
            clock: self.clock.clone(),
        };
        let conversations = Arc::clone(&self.stores.conversations);
        let deps = Deps {
            log: Arc::clone(&self.log),
            stores: self.stores.clone(),
            registry: Arc::clone(&self.registry),
            members: Members::new(conversations, 64, Duration::from_millis(1), self.clock.clone()),
            authenticator: authenticator.clone(),
            revocations,
            clock: self.clock.clone(),
            audit: Audit { log: Arc::clone(&self.log), role: "presence", clock: self.clock.clone() },
            link_key: LinkKey::new(zeroize::Zeroizing::new([3; 32])),
        };
        let presence = Arc::new(Presence::new(deps, options));
        let servers = vec![
            tokio::spawn(
                Server::builder()
                    .layer(AuthLayer { authenticator, open: &[] })
                    .add_service(presence.delivery_service())
                    .serve_with_incoming(TcpListenerStream::new(door)),
            ),
            tokio::spawn(
                Server::builder()
                    .add_service(presence.link_service())
                    .serve_with_incoming(TcpListenerStream::new(link)),
            ),
        ];
        let running = Arc::clone(&presence);
        let token = stop.clone();
        let run = tokio::spawn(async move {
            running.run(token).await;
        });
        Node { presence, address, link_address, stop, servers, run }
    }

    pub async fn append(&self, topic: Topic, index: u32, payload: Vec<u8>) {
        let bytes = NonZeroU32::new(u32::try_from(payload.len()).unwrap() + 16).unwrap();
        let permit = self.log.reserve(bytes).unwrap();
        let record = NewRecord { key: Bytes::from_static(&[0; 16]), payload: payload.into(), headers: Vec::new() };
        self.log.append(permit, Partition { topic, index }, vec![record]).await.unwrap();
    }

    /// What fanout stores for a message, before it appends.
    pub async fn stored(&self, sequence: u64, bytes: usize, accepted_at: Timestamp) {
        let message = MessageRow {
            conversation: conversation(7),
            sequence: Sequence(sequence),
            chain: Digest::from_bytes([1; 32]),
            sender: user(77),
            device: DeviceId::from_bytes([78; 16]),
            kind: MessageKind::Application,
            accepted_at,
            position: Position::from_u64(sequence),
            sealed: Sealed { envelope: Bytes::from_static(b"envelope"), mls_message: Bytes::from(vec![0; bytes]) },
        };
        self.stores.conversations.put_rows(&RowBatch { messages: vec![message], ..RowBatch::default() }).await.unwrap();
    }

    /// What fanout stores and appends for a message.
    pub async fn message(&self, to: u8, sequence: u64, accepted_at: Timestamp) {
        self.message_from(to, sequence, accepted_at, sequence).await;
    }

    /// The same with another source position.
    pub async fn message_from(&self, to: u8, sequence: u64, accepted_at: Timestamp, source_position: u64) {
        self.stored(sequence, 256, accepted_at).await;
        let message = wire::FeedMessage {
            conversation_id: Bytes::copy_from_slice(conversation(7).as_bytes()),
            sequence,
            chain_hash: Bytes::from_static(&[1; 32]),
            accepted_at_us: accepted_at.as_micros(),
            sender_user_id: Bytes::from_static(&[77; 16]),
            sender_device_id: Bytes::from_static(&[78; 16]),
            envelope: Bytes::from_static(b"envelope"),
            mls_message: Bytes::from(vec![0; 256]),
            by_reference: false,
        };
        self.event(to, Vec::new(), wire::feed_event_record::Event::Message(message), source_position).await;
    }

    pub async fn event(
        &self,
        to: u8,
        devices: Vec<DeviceId>,
        event: wire::feed_event_record::Event,
        source_position: u64,
    ) {
        let recipient = wire::RecipientRecord {
            user_id: Bytes::copy_from_slice(user(to).as_bytes()),
            device_ids: devices.iter().map(|device| Bytes::copy_from_slice(device.as_bytes())).collect(),
        };
        let record = wire::FeedEventRecord {
            source: (1 << 24) | u32::from(to),
            source_position,
            part: 0,
            recipients: vec![recipient],
            event: Some(event),
        };
        let record = wire::FeedRecord { body: Some(wire::feed_record::Body::Event(record)) };
        self.append(Topic::Feeds, self.partition_of(to), record.encode_to_vec()).await;
    }

    pub fn partition_of(&self, of: u8) -> u32 {
        self.log.partitions(Topic::Feeds).partition_of(user(of).as_bytes())
    }

    /// What receipts are appended, from the oldest.
    pub async fn receipts(&self) -> Receipts {
        let mut receipts = self.log.subscribe(Group::Everyone, Topic::Receipts, FetchLimits::default()).await.unwrap();
        let count = self.log.partitions(Topic::Receipts).get();
        for _ in 0..count {
            let Event::Assigned(partition) = receipts.next().await.unwrap() else { panic!("not assigned first") };
            receipts.start(partition, Start::Oldest).await.unwrap();
        }
        Receipts(receipts)
    }

    pub fn token(&self, of: u8, expires_at: Timestamp) -> String {
        self.keys.mint(&Caller {
            session: [of; 16],
            tenant: Some(TENANT),
            user: Some(user(of)),
            device: Some(device_of(of)),
            key: Digest::of(&[of]),
            scopes: Scopes::default(),
            expires_at,
        })
    }

    pub async fn client(&self, node: &Node, of: u8) -> Client {
        self.client_until(node, of, self.clock.now().plus(Duration::from_secs(600))).await
    }

    pub async fn client_until(&self, node: &Node, of: u8, expires_at: Timestamp) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", node.address)).unwrap().connect().await.unwrap();
        let token = MetadataValue::try_from(format!("Bearer {}", self.token(of, expires_at))).unwrap();
        Client { service: DeliveryServiceClient::new(channel), token, of }
    }
}

/// Receipts as the receipt role would read them.
pub struct Receipts(Box<dyn Subscription>);

impl Receipts {
    /// Reads on until a device's report fits.
    pub async fn until(&mut self, fits: impl Fn(&wire::ReceiptRecord, &wire::DeviceReceiptRecord) -> bool) {
        let reading = async {
            loop {
                let Event::Records { records, .. } = self.0.next().await.unwrap() else { continue };
                for record in records {
                    let record = wire::ReceiptRecord::decode(record.payload).unwrap();
                    if record.devices.iter().any(|device| fits(&record, device)) {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("no such receipt");
    }
}

/// An instance.
pub struct Node {
    pub presence: Arc<Presence>,
    pub address: SocketAddr,
    pub link_address: SocketAddr,
    pub stop: CancellationToken,
    servers: Vec<JoinHandle<Result<(), tonic::transport::Error>>>,
    run: JoinHandle<()>,
}

impl Node {
    /// Ends in order.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.run).await.expect("did not stop").unwrap();
        for server in self.servers {
            server.abort();
        }
    }

    /// Ends as a crash would.
    pub async fn crash(self) {
        self.run.abort();
        for server in &self.servers {
            server.abort();
        }
        let _ = self.run.await;
        self.stop.cancel();
    }
}

/// A device's way in.
pub struct Client {
    pub service: DeliveryServiceClient<Channel>,
    token: MetadataValue<tonic::metadata::Ascii>,
    pub of: u8,
}

impl Client {
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    pub async fn attach(&mut self, cursor: Bytes, window_events: u32) -> Device {
        let (up, frames) = mpsc::channel(64);
        let start = v1::AttachStart { cursor: cursor.clone(), window_events, window_bytes: 0 };
        up.send(AttachRequest { frame: Some(Up::Start(start)) }).await.unwrap();
        let request = self.request(ReceiverStream::new(frames));
        let down = self.service.attach(request).await.unwrap().into_inner();
        Device { up, down, cursor, sequences: Vec::new(), unacknowledged: 0, most_unacknowledged: 0, caught_up: 0 }
    }
}

/// An attached device that checks its chain.
pub struct Device {
    pub up: mpsc::Sender<AttachRequest>,
    pub down: Streaming<AttachResponse>,
    pub cursor: Bytes,
    pub sequences: Vec<u64>,
    pub unacknowledged: usize,
    pub most_unacknowledged: usize,
    pub caught_up: usize,
}

impl Device {
    /// The next frame.
    pub async fn next(&mut self) -> Result<Option<Down>, Status> {
        let frame = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("nothing came")?;
        let Some(frame) = frame.and_then(|frame| frame.frame) else { return Ok(None) };
        match &frame {
            Down::Events(events) => {
                for event in &events.events {
                    assert!(self.cursor.is_empty() || self.cursor == event.previous, "a gap");
                    self.cursor = event.cursor.clone();
                    self.unacknowledged += 1;
                    if let Some(v1::event::Body::Message(message)) = &event.body {
                        self.sequences.push(message.sequence);
                    }
                }
                self.most_unacknowledged = self.most_unacknowledged.max(self.unacknowledged);
            }
            Down::CaughtUp(_) => self.caught_up += 1,
            _ => {}
        }
        Ok(Some(frame))
    }

    /// Reads on until a frame fits.
    pub async fn until(&mut self, fits: impl Fn(&Down) -> bool) -> Down {
        loop {
            let frame = self.next().await.unwrap().expect("the stream ended");
            if fits(&frame) {
                return frame;
            }
        }
    }

    /// Reads, acknowledging each frame, until it has the sequence.
    pub async fn read_through(&mut self, sequence: u64) {
        while self.sequences.last().is_none_or(|last| *last < sequence) {
            self.next().await.unwrap().expect("the stream ended");
            if self.unacknowledged > 0 {
                self.acknowledge().await;
            }
        }
    }

    pub async fn acknowledge(&mut self) {
        self.unacknowledged = 0;
        let cursor = self.cursor.clone();
        self.send(Up::Acknowledge(v1::AttachAcknowledge { cursor })).await;
    }

    pub async fn send(&self, frame: Up) {
        self.up.send(AttachRequest { frame: Some(frame) }).await.unwrap();
    }

    /// Reads on to the end, and says why.
    pub async fn end(&mut self) -> String {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return String::new(),
                Err(status) => return reason(&status),
            }
        }
    }
}

pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}
