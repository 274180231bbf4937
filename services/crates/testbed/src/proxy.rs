//! A DeliveryService in front of another one: what comes down Attach streams can be withheld or altered, everything else
//! passes as it is.
//!
//! Deliberately absent: any other service. Devices reach those by their own addresses.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Extensions, Request, Response, Status, Streaming};
use wardline_proto::reason::Reason;
use wardline_proto::v1::attach_response::Frame;
use wardline_proto::v1::delivery_service_client::DeliveryServiceClient;
use wardline_proto::v1::delivery_service_server::{DeliveryService, DeliveryServiceServer};
use wardline_proto::v1::event::Body;
use wardline_proto::v1::*;
use wardline_runtime::Refusal;
use wardline_runtime::status::RETRY_AFTER;

/// What becomes of a frame on its way down: another one, or none.
pub type Alter = Arc<dyn Fn(AttachResponse) -> Option<AttachResponse> + Send + Sync>;

/// Serves until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<Option<Channel>>,
    frames: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.address)
    }
}

impl Proxy {
    /// Listens on a free port of loopback and leads nowhere yet: calls wait until it does.
    pub async fn start(alter: Alter) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (target, leads_to) = watch::channel(None);
        let (stop, frames) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let service = Front { leads_to, alter, frames: Arc::clone(&frames) };
        let until = stop.clone().cancelled_owned();
        tokio::spawn(
            Server::builder()
                .add_service(DeliveryServiceServer::new(service))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), until),
        );
        Ok(Self { address, target, frames, _stop: stop.drop_guard() })
    }

    /// Its own URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads to the service at `url` from now on.
    pub fn lead_to(&self, url: &str) -> Result<(), tonic::transport::Error> {
        self.target.send_replace(Some(Endpoint::from_shared(url.to_owned())?.connect_lazy()));
        Ok(())
    }

    /// How many frames have come down through it.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

/// Lets everything pass.
pub fn nothing() -> Alter {
    Arc::new(Some)
}

/// Withholds the event of one sequence, in every conversation, each time it comes.
pub fn withholding(sequence: u64) -> Alter {
    let withheld =
        move |event: &Event| matches!(&event.body, Some(Body::Message(message)) if message.sequence == sequence);
    Arc::new(move |mut frame| {
        if let Some(Frame::Events(events)) = &mut frame.frame {
            events.events.retain(|event| !withheld(event));
            return Some(frame)
                .filter(|frame| !matches!(&frame.frame, Some(Frame::Events(left)) if left.events.is_empty()));
        }
        Some(frame)
    })
}

struct Front {
    leads_to: watch::Receiver<Option<Channel>>,
    alter: Alter,
    frames: Arc<AtomicU64>,
}

impl Front {
    async fn target(&self) -> Result<DeliveryServiceClient<Channel>, Status> {
        let mut leads_to = self.leads_to.clone();
        let there = leads_to.wait_for(Option::is_some).await;
        let channel = there.ok().and_then(|there| there.clone());
        let leaving = || Refusal::new(Reason::Unavailable).retry_after(RETRY_AFTER).into();
        channel.map(DeliveryServiceClient::new).ok_or_else(leaving)
    }
}

/// The same call with another message: who calls stays the same.
fn passed<T>(metadata: MetadataMap, message: T) -> Request<T> {
    Request::from_parts(metadata, Extensions::default(), message)
}

#[tonic::async_trait]
impl DeliveryService for Front {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let (metadata, _, up) = request.into_parts();
        // A break of the device's end is the end of what goes up.
        let up = up.map_while(Result::ok);
        let down = self.target().await?.attach(passed(metadata, up)).await?.into_inner();
        let (alter, frames) = (Arc::clone(&self.alter), Arc::clone(&self.frames));
        let altered = down.filter_map(move |frame| {
            frames.fetch_add(1, Ordering::Relaxed);
            frame.map(|frame| alter(frame)).transpose()
        });
        Ok(Response::new(Box::pin(altered)))
    }

    async fn list_messages(
        &self,
        request: Request<ListMessagesRequest>,
    ) -> Result<Response<ListMessagesResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.target().await?.list_messages(passed(metadata, message)).await
    }

    async fn list_conversations(
        &self,
        request: Request<ListConversationsRequest>,
    ) -> Result<Response<ListConversationsResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.target().await?.list_conversations(passed(metadata, message)).await
    }

    async fn get_message_body(
        &self,
        request: Request<GetMessageBodyRequest>,
    ) -> Result<Response<GetMessageBodyResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.target().await?.get_message_body(passed(metadata, message)).await
    }

    async fn get_presence(
        &self,
        request: Request<GetPresenceRequest>,
    ) -> Result<Response<GetPresenceResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.target().await?.get_presence(passed(metadata, message)).await
    }
}
