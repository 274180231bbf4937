//! A server's stack on a real port: who gets in, what overload, panics and deadlines are answered, how it drains.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;
use tower::Service;
use wardline_domain::{Digest, TenantId, Timestamp};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::directory_service_client::DirectoryServiceClient;
use wardline_registry::Registry as _;
use wardline_registry::in_process::InProcess;
use wardline_runtime::auth::{AuthLayer, Authenticator};
use wardline_runtime::caller::Scopes;
use wardline_runtime::revocations::Revocations;
use wardline_runtime::serve::{self, Options, ServeError, Tls};
use wardline_runtime::session::SessionKeys;
use wardline_runtime::{Caller, Clock, Refusal};

/// A certificate of localhost, for this test alone, and its key.
const CERT: &str = include_str!("localhost.pem");
const KEY: &str = include_str!("localhost.key.pem");

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// Answers by method: `GetUser` waits until told, `GetDevice` panics, the rest says NOT_FOUND to whom the layer knows,
/// BLOB_UNKNOWN to others.
#[derive(Clone, Default)]
struct Handler {
    entered: Arc<Notify>,
    go: Arc<Notify>,
}

impl NamedService for Handler {
    const NAME: &'static str = "wardline.v1.DirectoryService";
}

impl Service<Request<Body>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let handler = self.clone();
        Box::pin(async move {
            match request.uri().path() {
                "/wardline.v1.DirectoryService/GetUser" => {
                    handler.entered.notify_one();
                    handler.go.notified().await;
                }
                "/wardline.v1.DirectoryService/GetDevice" => panic!("a handler's bug"),
                _ => {}
            }
            let known = request.extensions().get::<Caller>().is_some();
            let reason = if known { Reason::NotFound } else { Reason::BlobUnknown };
            Ok(Status::from(Refusal::new(reason)).into_http())
        })
    }
}

struct Server {
    client: DirectoryServiceClient<Channel>,
    health: HealthClient<Channel>,
    handler: Handler,
    address: SocketAddr,
    drain: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
}

async fn server(options: Options, auth: Option<AuthLayer>, grace: Duration) -> Server {
    let (handler, drain) = (Handler::default(), CancellationToken::new());
    let bound = serve::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address;
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let (reporter, _) = tonic_health::server::health_reporter();
    let routes = Routes::new(handler.clone());
    let serving = tokio::spawn(serve::serve(bound, routes, auth, reporter, options, drain.clone(), grace));
    let (client, health) = (DirectoryServiceClient::new(channel.clone()), HealthClient::new(channel));
    Server { client, health, handler, address, drain, serving }
}

fn auth(registry: Arc<InProcess>, open: &'static [&'static str]) -> AuthLayer {
    let keys = Arc::new(SessionKeys::new(vec![zeroize::Zeroizing::new([1; 32])]).unwrap());
    let (revocations, clock) = (Revocations::empty(), Clock::from_fn(|| NOW));
    AuthLayer { authenticator: Authenticator { keys, revocations, registry, clock }, open }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test]
async fn overload_is_said_with_a_delay_and_health_is_exempt() {
    let mut server = server(Options { max_concurrent_requests: 1, ..Options::default() }, None, Duration::ZERO).await;
    let mut other = server.client.clone();
    let waiting = tokio::spawn(async move { other.get_user(v1::GetUserRequest::default()).await });
    server.handler.entered.notified().await;
    let status = server.client.get_tenant(v1::GetTenantRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(status.get_error_details().retry_info().is_some());
    server.health.check(HealthCheckRequest::default()).await.unwrap();
    server.handler.go.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::NotFound);
    let status = server.client.get_tenant(v1::GetTenantRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn methods_without_a_session_have_room_and_a_deadline_of_their_own() {
    const GET_USER: &str = "/wardline.v1.DirectoryService/GetUser";
    const GET_TENANT: &str = "/wardline.v1.DirectoryService/GetTenant";
    let auth = || Some(auth(Arc::new(InProcess::new(Arc::new(|| NOW))), &[GET_USER, GET_TENANT]));
    let options = Options { max_concurrent_open_requests: 1, ..Options::default() };
    let mut narrow = server(options, auth(), Duration::ZERO).await;
    let mut other = narrow.client.clone();
    let waiting = tokio::spawn(async move { other.get_user(v1::GetUserRequest::default()).await });
    narrow.handler.entered.notified().await;
    let status = narrow.client.get_tenant(v1::GetTenantRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "OVERLOADED");
    // Who has a session, or should have, is not in their way, nor they in theirs.
    let status = narrow.client.list_devices(v1::ListDevicesRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_MISSING");
    narrow.handler.go.notify_one();
    assert_eq!(reason(&waiting.await.unwrap().unwrap_err()), "BLOB_UNKNOWN");

    let options = Options { open_timeout: Some(Duration::from_millis(1)), ..Options::default() };
    let mut hasty = server(options, auth(), Duration::ZERO).await;
    let status = hasty.client.get_user(v1::GetUserRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
}

/// Reads until the server closes the connection.
async fn closed(mut connection: TcpStream) {
    let mut nowhere = [0; 64];
    // What it says before, and whether it closes or resets, is its own affair.
    while let Ok(1..) = connection.read(&mut nowhere).await {}
}

#[tokio::test]
async fn a_connection_too_many_is_closed_until_another_ends() {
    let server = server(Options { max_connections: 1, ..Options::default() }, None, Duration::ZERO).await;
    let first = TcpStream::connect(server.address).await.unwrap();
    closed(TcpStream::connect(server.address).await.unwrap()).await;
    drop(first);
    // The place is free once the server has noticed.
    let mut health = server.health;
    while health.check(HealthCheckRequest::default()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_does_not_shake_hands_is_cut() {
    let tls = Tls { cert_pem: CERT.into(), key_pem: zeroize::Zeroizing::new(KEY.into()), client_ca_pem: None };
    let patience = Duration::from_millis(10);
    let options = Options { tls: Some(tls), handshake_timeout: patience, max_connections: 1, ..Options::default() };
    let server = server(options, None, Duration::ZERO).await;
    // With them goes their place: the second one is let in, and cut like the first.
    for _ in 0..2 {
        closed(TcpStream::connect(server.address).await.unwrap()).await;
    }
    assert!(!server.serving.is_finished());
}

#[tokio::test]
async fn a_panic_is_internal_and_a_slow_handler_is_cut() {
    let options = Options { timeout: Some(Duration::from_millis(1)), ..Options::default() };
    let mut server = server(options, None, Duration::ZERO).await;
    let status = server.client.get_device(v1::GetDeviceRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "INTERNAL"));
    let status = server.client.get_user(v1::GetUserRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
}

#[tokio::test]
async fn a_drain_lets_calls_end_within_the_grace_and_cuts_them_after_it() {
    let mut patient = server(Options::default(), None, Duration::from_secs(60)).await;
    let mut other = patient.client.clone();
    let waiting = tokio::spawn(async move { other.get_user(v1::GetUserRequest::default()).await });
    patient.handler.entered.notified().await;
    patient.drain.cancel();
    patient.handler.go.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::NotFound);
    patient.serving.await.unwrap().unwrap();
    assert!(patient.client.get_tenant(v1::GetTenantRequest::default()).await.is_err());

    let hasty = server(Options::default(), None, Duration::ZERO).await;
    let mut other = hasty.client.clone();
    let waiting = tokio::spawn(async move { other.get_user(v1::GetUserRequest::default()).await });
    hasty.handler.entered.notified().await;
    hasty.drain.cancel();
    hasty.serving.await.unwrap().unwrap();
    assert_ne!(waiting.await.unwrap().unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn who_calls_is_found_by_the_layer_alone() {
    let registry = Arc::new(InProcess::new(Arc::new(|| NOW)));
    let told = Arc::clone(&registry);
    let auth = auth(registry, &["/wardline.v1.DirectoryService/GetTenant"]);
    let keys = Arc::clone(&auth.authenticator.keys);
    let mut server = server(Options::default(), Some(auth), Duration::ZERO).await;
    let caller = Caller {
        session: [3; 16],
        tenant: Some(TenantId::from_bytes([1; 16])),
        user: None,
        device: None,
        key: Digest::of(b"key"),
        scopes: Scopes::default(),
        expires_at: NOW.plus(Duration::from_secs(600)),
    };
    let with = |authorization: &str| {
        let mut request = tonic::Request::new(v1::ListDevicesRequest::default());
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        request
    };
    let token = keys.mint(&caller);
    for (authorization, expected) in [
        (format!("Bearer {token}"), "NOT_FOUND"),
        (format!("bearer {token}"), "NOT_FOUND"),
        (token.clone(), "TOKEN_INVALID"),
        (format!("Basic {token}"), "TOKEN_INVALID"),
        (format!("Bearer {token}x"), "TOKEN_INVALID"),
        (
            format!("Bearer {}", keys.mint(&Caller { expires_at: Timestamp::from_micros(0), ..caller })),
            "SESSION_EXPIRED",
        ),
    ] {
        let status = server.client.list_devices(with(&authorization)).await.unwrap_err();
        assert_eq!(reason(&status), expected);
    }
    let status = server.client.list_devices(v1::ListDevicesRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "TOKEN_MISSING"));
    let open = server.client.get_tenant(v1::GetTenantRequest::default()).await.unwrap_err();
    assert_eq!(reason(&open), "BLOB_UNKNOWN");
    server.health.check(HealthCheckRequest::default()).await.unwrap();

    let ended = Caller { session: [4; 16], ..caller };
    told.end_session(ended.session, Duration::from_secs(600)).await.unwrap();
    let status = server.client.list_devices(with(&format!("Bearer {}", keys.mint(&ended)))).await.unwrap_err();
    assert_eq!(reason(&status), "SESSION_EXPIRED");
}
