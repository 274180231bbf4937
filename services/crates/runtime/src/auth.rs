//! The layer that turns `authorization: Bearer …` into a [`crate::Caller`] in the request's extensions.
//!
//! Deliberately absent: scopes and membership. Handlers decide with the [`crate::Caller`] they find.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, header};
use tonic::body::Body;
use tower::{Layer, Service};
use wardline_proto::reason::Reason;
use wardline_registry::Registry;

use crate::{Caller, Clock, Refusal, revocations::Revocations, session::SessionKeys};

/// How long the registry may take to tell that a session was ended. It is a hint: without it the session lives on until it
/// expires.
const REGISTRY_PATIENCE: Duration = Duration::from_millis(100);

/// The health service, which needs no session on any server.
pub(crate) const HEALTH: &str = "/grpc.health.";
/// The reflection services, which need no session on any server.
pub(crate) const REFLECTION: &str = "/grpc.reflection.";

/// What a call is authenticated against. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    /// Verifies tokens.
    pub keys: Arc<SessionKeys>,
    /// Refuses the revoked.
    pub revocations: Revocations,
    /// Refuses sessions that were ended; its absence ends none.
    pub registry: Arc<dyn Registry>,
    /// Tells the time.
    pub clock: Clock,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authenticator")
    }
}

impl Authenticator {
    /// The caller that a token speaks for, if it may still call. Also used inside streams, to renew.
    ///
    /// Costs one MAC; the registry is asked about a session once in five seconds.
    pub async fn authenticate(&self, token: &str) -> Result<Caller, Reason> {
        let caller = self.keys.verify(token, self.clock.now())?;
        match (caller.user, caller.device) {
            (Some(user), Some(device)) => self.revocations.check(user, device)?,
            (Some(user), None) => self.revocations.check_user(user)?,
            (None, _) => (),
        }
        if self.session_ended(caller.session).await { Err(Reason::SessionExpired) } else { Ok(caller) }
    }

    /// Whether the session was ended before its time, for streams that live on after their call was authenticated.
    ///
    /// Costs a look into a cache; the registry is asked about a session once in five seconds, and its silence ends none.
    pub async fn session_ended(&self, session: [u8; 16]) -> bool {
        let now = self.clock.now();
        if let Some(ended) = self.revocations.session_seen(session, now) {
            return ended;
        }
        let asked = tokio::time::timeout(REGISTRY_PATIENCE, self.registry.session_ended(session)).await;
        let ended = matches!(asked, Ok(Ok(true)));
        self.revocations.see_session(session, now, ended);
        ended
    }
}

/// A tower layer for tonic servers: every request of the services under it carries a [`Caller`] or is answered with
/// UNAUTHENTICATED before it reaches them.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    /// Against what.
    pub authenticator: Authenticator,
    /// Full method paths (`/wardline.v1.SessionService/CreateSession`) that need no session.
    pub open: &'static [&'static str],
}

impl<S> Layer<S> for AuthLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Authenticated<S> {
        Authenticated { inner, layer: self.clone() }
    }
}

/// What [`AuthLayer`] makes of a service.
#[derive(Debug, Clone)]
pub struct Authenticated<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S, B> Service<Request<B>> for Authenticated<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // What was polled ready is called; the clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        // Nothing outside this layer says who calls.
        request.extensions_mut().remove::<Caller>();
        let path = request.uri().path();
        if self.layer.open.contains(&path) || [HEALTH, REFLECTION].iter().any(|prefix| path.starts_with(*prefix)) {
            return Box::pin(inner.call(request));
        }
        let authenticator = self.layer.authenticator.clone();
        Box::pin(async move {
            let caller = match bearer(request.headers()) {
                Ok(token) => authenticator.authenticate(token).await,
                Err(reason) => Err(reason),
            };
            match caller {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(reason) => Ok(refuse(Refusal::new(reason))),
            }
        })
    }
}

/// The one bearer token of a request (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Reason> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Reason::TokenMissing)?;
    if values.next().is_some() {
        return Err(Reason::TokenInvalid);
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Reason::TokenInvalid)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim_start_matches(' ')) } else { Err(Reason::TokenInvalid) }
}

/// A refusal as a whole gRPC response.
pub(crate) fn refuse(refusal: Refusal) -> Response<Body> {
    tonic::Status::from(refusal).into_http()
}
