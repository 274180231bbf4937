//! Links to owners: one stream per address, multiplexing all attachments there.
//!
//! The reader never waits for a device: an attachment whose queue is full is cut off, and opened again from the last cursor
//! its device was sent once that has drained.
//!
//! Deliberately absent: retries. Whoever holds an attachment finds its owner again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::gauge;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use wardline_proto::internal::v1::connect_request::Frame as Up;
use wardline_proto::internal::v1::connect_response::Frame as Down;
use wardline_proto::internal::v1::presence_link_service_client::PresenceLinkServiceClient;
use wardline_proto::internal::v1::{ConnectRequest, ConnectResponse, LinkClose, LinkOpen};
use wardline_runtime::{Clock, Counted};

use crate::link::{LinkKey, LinkPass, authority};
use crate::measures as names;

/// The largest frame: a batch and one event that came last.
pub(crate) const MOST_FRAME_BYTES: usize = 16 << 20;
/// How long an owner may be silent before its link is given up.
const SILENCE: Duration = Duration::from_secs(4);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);

type Client = PresenceLinkServiceClient<InterceptedService<Channel, LinkPass>>;

/// The link could not be opened, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkDown;

/// The link to an address, while there is one.
type Place = tokio::sync::Mutex<Option<Arc<Link>>>;

/// All links of this edge.
pub(crate) struct Links {
    key: LinkKey,
    clock: Clock,
    tls: Option<ClientTlsConfig>,
    frames: usize,
    /// One lock an address, so that one that does not answer holds up nobody else.
    links: Mutex<HashMap<String, Arc<Place>>>,
}

impl Links {
    pub(crate) fn new((key, clock): (LinkKey, Clock), tls: Option<ClientTlsConfig>, frames: usize) -> Self {
        Self { key, clock, tls, frames, links: Mutex::default() }
    }

    /// Frames of devices that wait on all links. One that is being opened has none.
    pub(crate) fn frames_waiting(&self) -> usize {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let open = links.values().filter_map(|place| place.try_lock().ok()?.clone());
        open.map(|link| link.up.max_capacity() - link.up.capacity()).sum()
    }

    /// A client of the link service at an address; connects when first used.
    pub(crate) fn client(&self, address: &str) -> Result<Client, LinkDown> {
        let mut endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| LinkDown)?;
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(|_| LinkDown)?;
        }
        let channel = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(SILENCE / 2)
            .keep_alive_timeout(SILENCE / 2)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .connect_lazy();
        let authority = authority(address).ok_or(LinkDown)?.into();
        let pass = LinkPass { key: self.key.clone(), clock: self.clock.clone(), authority };
        Ok(PresenceLinkServiceClient::with_interceptor(channel, pass)
            .max_decoding_message_size(MOST_FRAME_BYTES)
            .max_encoding_message_size(MOST_FRAME_BYTES))
    }

    /// The link to an address, opened if need be.
    pub(crate) async fn to(&self, address: &str) -> Result<Arc<Link>, LinkDown> {
        let place = self.place(address);
        let mut place = place.lock().await;
        if let Some(link) = &*place
            && !link.down.is_cancelled()
        {
            return Ok(Arc::clone(link));
        }
        *place = None;
        let mut client = self.client(address)?;
        let (up, frames) = mpsc::channel(self.frames);
        let opening = tokio::time::timeout(CONNECT, client.connect(ReceiverStream::new(frames)));
        let down = opening.await.map_err(|_| LinkDown)?.map_err(|_| LinkDown)?.into_inner();
        let link = Arc::new(Link {
            up,
            attachments: Mutex::default(),
            next: AtomicU64::new(1),
            down: CancellationToken::new(),
            _counted: Counted::one(gauge!(names::LINKS, "side" => "edge")),
        });
        tokio::spawn(read(Arc::downgrade(&link), link.down.clone(), down));
        *place = Some(Arc::clone(&link));
        Ok(link)
    }

    fn place(&self, address: &str) -> Arc<Place> {
        // Entries are put in and taken out whole.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if !links.contains_key(address) {
            // Owners come and go; an address nobody asks about now and without a link is forgotten.
            links.retain(|_, place| {
                Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|link| link.as_ref().is_some_and(is_up))
            });
        }
        Arc::clone(links.entry(address.to_owned()).or_default())
    }
}

fn is_up(link: &Arc<Link>) -> bool {
    !link.down.is_cancelled()
}

/// A link to one owner.
pub(crate) struct Link {
    up: mpsc::Sender<ConnectRequest>,
    attachments: Mutex<HashMap<u64, mpsc::Sender<Down>>>,
    next: AtomicU64,
    down: CancellationToken,
    _counted: Counted,
}

impl Link {
    fn attachments(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Down>>> {
        // Entries are put in and taken out whole.
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for an attachment. Its frames, the answer first, come through the lane.
    pub(crate) async fn open(self: &Arc<Self>, open: LinkOpen, queue: usize) -> Result<Lane, LinkDown> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, down) = mpsc::channel(queue);
        self.attachments().insert(number, sender);
        let lane = Lane { up: LaneUp { link: Arc::clone(self), number }, down };
        if self.down.is_cancelled() {
            return Err(LinkDown);
        }
        lane.up.reserve().await?.send(lane.up.frame(Up::Open(open)));
        Ok(lane)
    }

    fn deliver(&self, response: ConnectResponse) {
        let Some(frame) = response.frame else { return };
        let mut attachments = self.attachments();
        for number in response.attachments {
            let Some(sender) = attachments.get(&number) else { continue };
            // Cut off: what is queued is still read, then the lane ends.
            if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = sender.try_send(frame.clone()) {
                attachments.remove(&number);
            }
        }
    }
}

/// One attachment on a link. Dropping it closes the attachment.
pub(crate) struct Lane {
    pub(crate) up: LaneUp,
    pub(crate) down: mpsc::Receiver<Down>,
}

/// The way up.
pub(crate) struct LaneUp {
    link: Arc<Link>,
    number: u64,
}

impl LaneUp {
    /// Room for a frame up.
    pub(crate) async fn reserve(&self) -> Result<mpsc::Permit<'_, ConnectRequest>, LinkDown> {
        tokio::select! {
            permit = self.link.up.reserve() => permit.map_err(|_| LinkDown),
            () = self.link.down.cancelled() => Err(LinkDown),
        }
    }

    /// A frame up for this attachment.
    pub(crate) const fn frame(&self, frame: Up) -> ConnectRequest {
        ConnectRequest { attachment: self.number, frame: Some(frame) }
    }
}

impl Drop for LaneUp {
    fn drop(&mut self) {
        self.link.attachments().remove(&self.number);
        let close = self.frame(Up::Close(LinkClose {}));
        if let Err(TrySendError::Full(close)) = self.link.up.try_send(close)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let up = self.link.up.clone();
            // Fails when the link is gone, and with it the attachment.
            runtime.spawn(async move { up.send(close).await });
        }
    }
}

async fn read(link: std::sync::Weak<Link>, down: CancellationToken, mut frames: Streaming<ConnectResponse>) {
    while let Ok(Some(frame)) = frames.message().await {
        let Some(link) = link.upgrade() else { break };
        link.deliver(frame);
    }
    down.cancel();
    if let Some(link) = link.upgrade() {
        link.attachments().clear();
    }
}
