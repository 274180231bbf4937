//! Sessions: an access token and a proof of the device's key buy a token of ten minutes.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use wardline_domain::Timestamp;
use wardline_proto::convert::{ids, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::session_service_client::SessionServiceClient;

use crate::clock::Clock;
use crate::core::Account;
use crate::dpop::AuthKey;
use crate::error::Error;
use crate::token::AccessTokens;

/// A session this close to its end is replaced before it is used.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// A session.
#[derive(Clone)]
pub(crate) struct Session {
    token: SecretString,
    expires: Timestamp,
    account: Option<Account>,
}

impl Session {
    /// A request with the session's metadata.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = format!("Bearer {}", self.token.expose_secret());
        if let Ok(mut value) = MetadataValue::try_from(value) {
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    pub(crate) const fn account(&self) -> Option<Account> {
        self.account
    }

    pub(crate) fn token(&self) -> &str {
        self.token.expose_secret()
    }
}

/// Whether a new session mends the error.
pub(crate) fn is_over(error: &Error) -> bool {
    let reason = error.reason();
    matches!(reason, Some(Reason::TokenMissing | Reason::TokenInvalid | Reason::SessionExpired))
}

/// Makes and keeps the session of one device.
pub(crate) struct Sessions {
    channel: Channel,
    tokens: Arc<dyn AccessTokens>,
    key: AuthKey,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    nonce: Option<String>,
}

impl Sessions {
    pub(crate) fn new(channel: Channel, tokens: Arc<dyn AccessTokens>, key: AuthKey, clock: Clock) -> Self {
        Self { channel, tokens, key, clock, state: Mutex::default() }
    }

    /// The session, made or renewed when needed. Callers that come together share one.
    pub(crate) async fn get(&self) -> Result<Session, Error> {
        let mut state = self.state.lock().await;
        let now = self.clock.now();
        if let Some(session) = state.session.as_ref().filter(|session| session.expires > now.plus(RENEW_BEFORE)) {
            return Ok(session.clone());
        }
        let session = self.create(&mut state).await?;
        state.session = Some(session.clone());
        Ok(session)
    }

    /// Gives up `session` unless it was replaced meanwhile.
    pub(crate) async fn forget(&self, session: &Session) {
        let mut state = self.state.lock().await;
        if state.session.as_ref().is_some_and(|held| held.token() == session.token()) {
            state.session = None;
        }
    }

    /// Gives up whatever session there is.
    pub(crate) async fn forget_any(&self) {
        self.state.lock().await.session = None;
    }

    /// What the deployment accepts; needs no session.
    pub(crate) async fn server_info(&self) -> Result<v1::GetServerInfoResponse, Error> {
        let mut client = SessionServiceClient::new(self.channel.clone());
        Ok(client.get_server_info(v1::GetServerInfoRequest {}).await?.into_inner())
    }

    /// The exchange, with the server's nonce: the one it gave last, or the one it asks for.
    async fn create(&self, state: &mut State) -> Result<Session, Error> {
        let access = self.tokens.access_token().await?;
        let answer = match self.exchange(&access, state.nonce.as_deref()).await {
            Err(Error::Refused(refusal)) if refusal.reason == Some(Reason::UseDpopNonce) => {
                state.nonce = refusal.metadata.get("nonce").cloned();
                self.exchange(&access, state.nonce.as_deref()).await?
            }
            answer => answer?,
        };
        state.nonce = Some(answer.nonce.clone()).filter(|nonce| !nonce.is_empty());
        let end = answer.expire_time.ok_or(Error::Untrusted("a session without an end"))?;
        let expires = time::from_wire(&end, "expire_time").map_err(|_| Error::Untrusted("a session without an end"))?;
        Ok(Session { account: account(&answer), token: SecretString::from(answer.session_token), expires })
    }

    async fn exchange(&self, access: &SecretString, nonce: Option<&str>) -> Result<v1::CreateSessionResponse, Error> {
        let access = access.expose_secret();
        let proof = self.key.proof(access, nonce, self.clock.now());
        let request = v1::CreateSessionRequest { access_token: access.to_owned(), dpop_proof: proof };
        let mut client = SessionServiceClient::new(self.channel.clone());
        Ok(client.create_session(request).await?.into_inner())
    }
}

fn account(answer: &v1::CreateSessionResponse) -> Option<Account> {
    Some(Account {
        tenant: ids::tenant(&answer.tenant_id, "tenant_id").ok()?,
        user: ids::user(&answer.user_id, "user_id").ok()?,
    })
}
