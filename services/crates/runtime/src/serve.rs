//! A role's gRPC server: bound port, layers, health, reflection, drain.
//!
//! Deliberately absent: what is served. Roles bring [`Routes`] and set the message sizes of their services.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use metrics::{counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower::{Service, ServiceBuilder};
use zeroize::Zeroizing;

use crate::auth::AuthLayer;
use crate::counted::Counted;
use crate::guard::GuardLayer;
use crate::measures as names;

/// A server's certificate, and whose clients it takes.
#[derive(Clone)]
pub struct Tls {
    /// The certificate chain.
    pub cert_pem: Vec<u8>,
    /// Its key.
    pub key_pem: Zeroizing<Vec<u8>>,
    /// When given, only clients with a certificate of this authority may connect.
    pub client_ca_pem: Option<Vec<u8>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("mutual", &self.client_ca_pem.is_some()).finish_non_exhaustive()
    }
}

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Without, the port speaks plain HTTP/2.
    pub tls: Option<Tls>,
    /// How many requests may wait for the beginning of their response; more get RESOURCE_EXHAUSTED. Health is exempt.
    pub max_concurrent_requests: usize,
    /// The same for requests of methods that need no session, in room of their own.
    pub max_concurrent_open_requests: usize,
    /// How many connections there may be; more are closed at once.
    pub max_connections: usize,
    /// How many streams one connection may have.
    pub max_streams_per_connection: u32,
    /// How long a request may wait for the beginning of its response; more gets DEADLINE_EXCEEDED. A stream's life is not
    /// bounded by it.
    pub timeout: Option<Duration>,
    /// The same for methods that need no session.
    pub open_timeout: Option<Duration>,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How often an idle connection is probed.
    pub keepalive_interval: Duration,
    /// How long a probe may stay unanswered.
    pub keepalive_timeout: Duration,
    /// Whether the public protocol is described by reflection (v1 and v1alpha).
    pub reflection: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: None,
            max_concurrent_requests: 4096,
            max_concurrent_open_requests: 256,
            max_connections: 20_000,
            max_streams_per_connection: 1024,
            timeout: Some(Duration::from_secs(10)),
            open_timeout: Some(Duration::from_secs(2)),
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            reflection: true,
        }
    }
}

/// A port that is open but not served yet.
#[derive(Debug)]
pub struct Bound {
    /// Where it is: the real port when 0 was asked for.
    pub address: SocketAddr,
    pub(crate) listener: TcpListener,
}

/// Why a server ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate or key is not valid.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// The descriptors are not valid.
    #[error("reflection cannot be set up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(#[source] tonic::transport::Error),
}

/// Opens a port.
pub async fn bind(address: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(address).await?;
    Ok(Bound { address: listener.local_addr()?, listener })
}

/// Serves until `drain`: then health says NOT_SERVING, clients are told to go away (GOAWAY) and new connections are refused;
/// what is under way may end within `grace`, and is cut after it.
///
/// `auth` stands before all services but health and reflection. `health` is the role's to update.
pub async fn serve(
    bound: Bound,
    services: Routes,
    auth: Option<AuthLayer>,
    health: HealthReporter,
    options: Options,
    drain: CancellationToken,
    grace: Duration,
) -> Result<(), ServeError> {
    let server = server(&options)?;
    let routes = with_open_services(services, &health, options.reflection)?;
    let stack = stack(routes, auth, &options);
    let cut = CancellationToken::new();
    let incoming = TcpListenerStream::new(bound.listener).filter_map({
        let (cut, places) = (cut.clone(), places(options.max_connections));
        move |accepted| admit(accepted, &places, &cut)
    });
    let draining = {
        let drain = drain.clone();
        async move {
            drain.cancelled_owned().await;
            health.set_service_status("", ServingStatus::NotServing).await;
        }
    };
    let last_call = async {
        drain.cancelled().await;
        tokio::time::sleep(grace).await;
        cut.cancel();
        // The connections end by themselves now.
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        served = server.serve_with_incoming_shutdown(stack, incoming, draining) => served.map_err(ServeError::Server),
        never = last_call => match never {},
    }
}

fn places(connections: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)))
}

/// A connection that has a place, which it holds until it ends; `None` closes it.
fn admit(
    accepted: io::Result<TcpStream>,
    places: &Arc<Semaphore>,
    cut: &CancellationToken,
) -> Option<io::Result<Connection>> {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return Some(Err(error)),
    };
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        counter!(names::CONNECTIONS_REFUSED).increment(1);
        tracing::debug!("no place for a connection");
        return None;
    };
    Some(Connection::new(stream, place, cut))
}

fn server(options: &Options) -> Result<Server, ServeError> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(options.keepalive_interval))
        .http2_keepalive_timeout(Some(options.keepalive_timeout))
        .http2_max_header_list_size(16 * 1024)
        .max_concurrent_streams(options.max_streams_per_connection);
    let Some(tls) = &options.tls else { return Ok(server) };
    let identity = Identity::from_pem(&tls.cert_pem, tls.key_pem.as_slice());
    let mut config = ServerTlsConfig::new().identity(identity).timeout(options.handshake_timeout);
    if let Some(authority) = &tls.client_ca_pem {
        config = config.client_ca_root(Certificate::from_pem(authority));
    }
    server.tls_config(config).map_err(ServeError::Tls)
}

fn with_open_services(
    services: Routes,
    health: &HealthReporter,
    reflection: bool,
) -> Result<Routes, tonic_reflection::server::Error> {
    let routes = services.add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())));
    if !reflection {
        return Ok(routes);
    }
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(wardline_proto::PUBLIC_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?))
}

/// From the outside in: span, room, deadline and panics; then who calls; then the services.
fn stack(
    routes: Routes,
    auth: Option<AuthLayer>,
    options: &Options,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static {
    let open = auth.as_ref().map_or(&[][..], |auth| auth.open);
    ServiceBuilder::new().layer(GuardLayer::new(options, open)).option_layer(auth).service(routes.prepare())
}

/// A connection that can be cut from outside.
struct Connection {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    _counted: Counted,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit, cut: &CancellationToken) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            _place: place,
            _counted: Counted::one(gauge!(names::CONNECTIONS)),
            cut: Box::pin(cut.clone().cancelled_owned()),
        })
    }

    /// Pending while the connection may go on.
    fn poll_cut(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.cut.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "cut after the grace period"))
    }
}

impl Connected for Connection {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(cut) = self.poll_cut(context) {
            return Poll::Ready(Err(cut));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
