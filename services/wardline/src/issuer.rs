//! The development issuer: gives an access token for any subject to anybody on this machine. It stands in for the hospital's
//! OpenID provider, so that the rest of the way is the real one.
//!
//! Deliberately absent: any check of who asks, and any way to start it from `serve`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Form, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wardline_domain::{Digest, TenantId, Timestamp};
use wardline_runtime::Clock;
use wardline_runtime::caller::Scopes;
use zeroize::Zeroizing;

use crate::disk;
use crate::keys::{self, KeyError};

/// What tokens are meant for.
pub const AUDIENCE: &str = "wardline-dev";
/// How long a token lasts.
pub const LIFETIME: Duration = Duration::from_secs(3600);

/// How long a token may take to be fetched.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer of a token endpoint, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Mints access tokens. Cheap to clone.
#[derive(Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    key: EncodingKey,
    key_id: String,
    jwks: String,
    clock: Clock,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.inner.url)
    }
}

/// Why a token was not minted.
#[derive(Debug, thiserror::Error)]
#[error("the token cannot be signed: {0}")]
pub struct MintError(#[from] jsonwebtoken::errors::Error);

/// The claims of an access token (RFC 9068, RFC 9449 section 6.1).
#[derive(Debug, Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    scope: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: Option<Confirmation<'a>>,
}

#[derive(Debug, Serialize)]
struct Confirmation<'a> {
    jkt: &'a str,
}

impl Issuer {
    /// The issuer that calls itself `url`, with the key in `dir`, where it is made when there is none.
    pub fn load_or_make(dir: &Path, url: impl Into<String>, clock: Clock) -> Result<Self, KeyError> {
        disk::private_dir(dir).map_err(|source| KeyError::Io { file: dir.to_owned(), source })?;
        let file = dir.join("issuer.key");
        keys::make_key(&file)?;
        let seed = keys::read_key(&file)?;
        let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        let x = URL_SAFE_NO_PAD.encode(public.as_bytes());
        let key_id = thumbprint(&x);
        let jwks = json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "x": x, "kid": key_id, "alg": "EdDSA", "use": "sig",
        }] })
        .to_string();
        let key = EncodingKey::from_ed_der(&pkcs8(&seed));
        Ok(Self { inner: Arc::new(Inner { url: url.into(), key, key_id, jwks, clock }) })
    }

    /// The `iss` of its tokens.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Its public keys, a JWK set (RFC 7517) in JSON.
    pub fn jwks(&self) -> &str {
        &self.inner.jwks
    }

    /// As the directory is told of it: whose users its tokens speak for, and what they may carry.
    pub fn trusted(&self, tenant: Option<TenantId>, allowed_scopes: Scopes) -> wardline_directory::Issuer {
        let jwks = self.inner.jwks.to_string();
        let (url, audience) = (self.inner.url.clone(), AUDIENCE.to_owned());
        wardline_directory::Issuer::new(url, tenant, audience, allowed_scopes, &jwks)
            .expect("the set above has one Ed25519 key with a kid")
    }

    /// An access token for `subject` with the space-separated `scope`; bound to a key when its thumbprint is given.
    pub fn mint(&self, subject: &str, scope: &str, thumbprint: Option<&str>) -> Result<SecretString, MintError> {
        let now = seconds(self.inner.clock.now());
        let claims = Claims {
            iss: &self.inner.url,
            sub: subject,
            aud: AUDIENCE,
            iat: now,
            nbf: now,
            exp: now + LIFETIME.as_secs(),
            jti: uuid::Uuid::new_v4().to_string(),
            scope,
            cnf: thumbprint.map(|jkt| Confirmation { jkt }),
        };
        let header = Header {
            typ: Some("at+jwt".to_owned()),
            kid: Some(self.inner.key_id.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        Ok(jsonwebtoken::encode(&header, &claims, &self.inner.key)?.into())
    }

    /// Answers `POST /token`, `GET /jwks.json` and `GET /.well-known/openid-configuration` until `drain`. Refuses any
    /// address but this machine's own.
    pub async fn serve(self, listener: TcpListener, drain: CancellationToken) -> std::io::Result<()> {
        if !listener.local_addr()?.ip().is_loopback() {
            return Err(std::io::Error::other("the development issuer listens on loopback only"));
        }
        let app = Router::new()
            .route("/token", post(token))
            .route("/jwks.json", get(jwks))
            .route("/.well-known/openid-configuration", get(discovery))
            .with_state(self);
        axum::serve(listener, app).with_graceful_shutdown(drain.cancelled_owned()).await
    }
}

/// What `POST /token` is asked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    subject: String,
    #[serde(default)]
    scope: String,
    /// The thumbprint (RFC 7638) of the key that the token is bound to.
    jkt: Option<String>,
}

async fn token(State(issuer): State<Issuer>, Form(request): Form<TokenRequest>) -> Result<Json<Value>, StatusCode> {
    use secrecy::ExposeSecret as _;
    if request.subject.is_empty() {
        return Err(StatusCode::BAD_REQUEST);
    }
    let minted = issuer.mint(&request.subject, &request.scope, request.jkt.as_deref());
    let token = minted.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(json!({
        "access_token": token.expose_secret(),
        "token_type": "Bearer",
        "expires_in": LIFETIME.as_secs(),
        "scope": request.scope,
    })))
}

async fn jwks(State(issuer): State<Issuer>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/jwk-set+json")], issuer.inner.jwks.clone())
}

async fn discovery(State(issuer): State<Issuer>) -> Json<Value> {
    let url = issuer.url();
    Json(json!({
        "issuer": url,
        "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}/jwks.json"),
        "id_token_signing_alg_values_supported": ["EdDSA"],
        "subject_types_supported": ["public"],
    }))
}

/// Why no token was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The endpoint did not answer.
    #[error("the issuer at {address} did not answer: {source}")]
    Unreachable {
        /// Where it was asked.
        address: SocketAddr,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answered something else.
    #[error("the issuer at {address} answered {status} and no token")]
    Refused {
        /// Where it was asked.
        address: SocketAddr,
        /// The HTTP status.
        status: u16,
    },
}

/// Asks the development issuer at `address` for an access token.
pub async fn fetch_token(address: SocketAddr, subject: &str, scope: &str) -> Result<SecretString, FetchError> {
    let asked = tokio::time::timeout(PATIENCE, ask(address, subject, scope)).await;
    let (status, body) = asked
        .unwrap_or_else(|elapsed| Err(elapsed.into()))
        .map_err(|source| FetchError::Unreachable { address, source })?;
    let answer = serde_json::from_slice::<TokenAnswer>(&body);
    match answer {
        Ok(answer) if status == 200 => Ok(answer.access_token.into()),
        _ => Err(FetchError::Refused { address, status }),
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
}

/// One request on a connection of its own: status and body.
async fn ask(
    address: SocketAddr,
    subject: &str,
    scope: &str,
) -> Result<(u16, Zeroizing<Vec<u8>>), Box<dyn std::error::Error + Send + Sync>> {
    let form = format!("subject={}&scope={}", form_encoded(subject), form_encoded(scope));
    let request = http::Request::post("/token")
        .header(header::HOST, address.to_string())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form)))?;
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
        // With nobody left to send, the connection ends.
        drop(sender);
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, Zeroizing::new(body.to_vec())))
    };
    let (answer, _ended) = tokio::join!(exchange, connection);
    answer
}

/// application/x-www-form-urlencoded, with more escaped than need be.
fn form_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// The RFC 7638 thumbprint of an Ed25519 key.
fn thumbprint(x: &str) -> String {
    let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Digest::of(members.as_bytes()).as_bytes())
}

/// An Ed25519 seed as PKCS#8 (RFC 8410 section 7).
fn pkcs8(seed: &[u8; 32]) -> Zeroizing<Vec<u8>> {
    const HEADER: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let mut der = Zeroizing::new(Vec::with_capacity(HEADER.len() + seed.len()));
    der.extend_from_slice(&HEADER);
    der.extend_from_slice(seed);
    der
}

fn seconds(time: Timestamp) -> u64 {
    time.as_micros() / 1_000_000
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation};
    use secrecy::ExposeSecret as _;

    use super::*;

    const URL: &str = "http://127.0.0.1:7408";

    fn claims(issuer: &Issuer, token: &SecretString) -> Value {
        let keys: JwkSet = serde_json::from_str(issuer.jwks()).unwrap();
        let header = jsonwebtoken::decode_header(token.expose_secret()).unwrap();
        let key = DecodingKey::from_jwk(keys.find(&header.kid.unwrap()).unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[URL]);
        validation.validate_nbf = true;
        jsonwebtoken::decode::<Value>(token.expose_secret(), &key, &validation).unwrap().claims
    }

    #[test]
    fn its_tokens_verify_against_its_keys_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::load_or_make(dir.path(), URL, Clock::system()).unwrap();
        let token = issuer.mint("ward-physician", "tenant.admin", Some("thumb")).unwrap();
        let again = Issuer::load_or_make(dir.path(), URL, Clock::system()).unwrap();
        let claims = claims(&again, &token);
        assert_eq!(claims["sub"], "ward-physician");
        assert_eq!(claims["scope"], "tenant.admin");
        assert_eq!(claims["cnf"]["jkt"], "thumb");
        let plain = self::claims(&issuer, &issuer.mint("x", "", None).unwrap());
        assert!(plain.get("cnf").is_none());
        assert_ne!(plain["jti"], claims["jti"]);
    }

    #[tokio::test]
    async fn a_token_is_fetched_over_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::load_or_make(dir.path(), URL, Clock::system()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = CancellationToken::new();
        let serving = tokio::spawn(issuer.clone().serve(listener, drain.clone()));

        let token = fetch_token(address, "näme & co=1", "a b+c").await.unwrap();
        let claims = claims(&issuer, &token);
        assert_eq!((&claims["sub"], &claims["scope"]), (&json!("näme & co=1"), &json!("a b+c")));
        assert!(matches!(fetch_token(address, "", "").await, Err(FetchError::Refused { status: 400, .. })));

        drain.cancel();
        serving.await.unwrap().unwrap();
        assert!(matches!(fetch_token(address, "x", "").await, Err(FetchError::Unreachable { .. })));
    }

    #[tokio::test]
    async fn it_does_not_listen_beyond_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::load_or_make(dir.path(), URL, Clock::system()).unwrap();
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        assert!(issuer.serve(listener, CancellationToken::new()).await.is_err());
    }
}
