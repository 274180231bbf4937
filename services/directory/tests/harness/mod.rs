//! A directory role on embedded engines behind a real port, an issuer, and devices that can lie.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt as _;
use wardline_directory::device_log::Entry;
use wardline_directory::{Deps, Directory, Info, Issuer, Limits, OPEN};
use wardline_domain::{DeviceId, Digest, TenantId, Timestamp, UserId};
use wardline_log::EventLog;
use wardline_proto::v1;
use wardline_proto::v1::directory_service_client::DirectoryServiceClient;
use wardline_proto::v1::session_service_client::SessionServiceClient;
use wardline_registry::in_process::InProcess;
use wardline_runtime::audit::Audit;
use wardline_runtime::auth::{AuthLayer, Authenticator};
use wardline_runtime::caller::Scopes;
use wardline_runtime::revocations::Revocations;
use wardline_runtime::session::SessionKeys;
use wardline_runtime::{Clock, serve};
use wardline_store::Stores;
use wardline_store::directory::{DeviceLogChange, MlsKeyRow};

pub const START: u64 = 1_800_000_000;
pub const PATH: &str = "/wardline.v1.SessionService/CreateSession";

pub struct World {
    pub now: Arc<AtomicU64>,
    pub log: Arc<dyn EventLog>,
    pub stores: Stores,
    pub directory: Directory,
    pub revocations: Revocations,
    pub authority: SigningKey,
    pub sessions: SessionServiceClient<Channel>,
    pub client: DirectoryServiceClient<Channel>,
    pub stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An issuer's key is made from its name.
pub fn issuer_key(url: &str) -> SigningKey {
    SigningKey::from_bytes(Digest::of(url.as_bytes()).as_bytes())
}

pub fn public_jwk(key: &SigningKey) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": B64.encode(key.verifying_key().as_bytes())})
}

fn issuer(url: &str, tenant: Option<TenantId>) -> Issuer {
    let mut jwk = public_jwk(&issuer_key(url));
    jwk["kid"] = "k1".into();
    let scopes = Scopes { operator: true, tenant_admin: true, directory_write: true };
    Issuer::new(url.into(), tenant, "wardline".into(), scopes, &json!({ "keys": [jwk] }).to_string()).unwrap()
}

pub fn tenant(n: u8) -> TenantId {
    TenantId::from_bytes([n; 16])
}

pub const OPERATOR: &str = "https://operator.example";
pub const A: &str = "https://a.example";
pub const B: &str = "https://b.example";

impl World {
    /// Tenants 1 (issuer A) and 2 (issuer B) exist.
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    /// The same with other limits.
    pub async fn with(limits: Limits) -> Self {
        let mut world = Self::empty(limits).await;
        let operator = Device::new(200);
        let session = world.open(&operator, &world.token(OPERATOR, "root", "operator")).await.unwrap();
        for (n, url) in [(1, A), (2, B)] {
            let wanted = v1::Tenant {
                id: tenant(n).to_string(),
                issuers: vec![url.into()],
                suites: vec![1],
                ..v1::Tenant::default()
            };
            let request = v1::CreateTenantRequest { request_id: uuid(n), tenant: Some(wanted) };
            world.client.create_tenant(bearer(&session.session_token, request)).await.unwrap();
        }
        world
    }

    async fn empty(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = wardline_log::embedded::open(wardline_log::embedded::Options::small(&dir.path().join("log")));
        let log = log.await.unwrap();
        let stores = wardline_store::embedded::open(&dir.path().join("store")).unwrap();
        let now = Arc::new(AtomicU64::new(START));
        let clock = Clock::from_fn({
            let now = Arc::clone(&now);
            move || Timestamp::from_micros(now.load(Ordering::SeqCst) * 1_000_000)
        });
        let stop = CancellationToken::new();
        let revocations = Revocations::follow(Arc::clone(&log), stop.clone()).await.unwrap();
        let registry = Arc::new(InProcess::new({
            let clock = clock.clone();
            Arc::new(move || clock.now())
        }));
        let sessions = Arc::new(SessionKeys::new(vec![zeroize::Zeroizing::new([5; 32])]).unwrap());
        let authority = SigningKey::from_bytes(&[6; 32]);
        let directory = Directory::new(Deps {
            log: Arc::clone(&log),
            directory: Arc::clone(&stores.directory),
            conversations: Arc::clone(&stores.conversations),
            registry: registry.clone(),
            clock: clock.clone(),
            audit: Audit { log: Arc::clone(&log), role: "directory", clock: clock.clone() },
            sessions: Arc::clone(&sessions),
            revocations: revocations.clone(),
            issuers: vec![issuer(OPERATOR, None), issuer(A, Some(tenant(1))), issuer(B, Some(tenant(2)))],
            authority: Arc::new(authority.clone()),
            limits,
            info: Info::default(),
        });
        let authenticator = Authenticator { keys: sessions, revocations: revocations.clone(), registry, clock };
        let auth = AuthLayer { authenticator, open: OPEN };
        let bound = serve::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", bound.address)).unwrap().connect_lazy();
        let (health, _) = tonic_health::server::health_reporter();
        let serving = serve::serve(
            bound,
            directory.routes(),
            Some(auth),
            health,
            serve::Options::default(),
            stop.clone(),
            Duration::ZERO,
        );
        tokio::spawn(serving);
        Self {
            now,
            log,
            stores,
            directory,
            revocations,
            authority,
            sessions: SessionServiceClient::new(channel.clone()),
            client: DirectoryServiceClient::new(channel),
            stop,
            _dir: dir,
        }
    }

    pub fn seconds(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    pub fn pass(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    pub fn token(&self, url: &str, subject: &str, scope: &str) -> String {
        let claims = json!({
            "iss": url, "sub": subject, "aud": "wardline", "exp": self.seconds() + 3600, "scope": scope,
        });
        jwt(&json!({"alg": "EdDSA", "kid": "k1", "typ": "at+jwt"}), &claims, &issuer_key(url))
    }

    pub async fn nonce(&mut self, device: &Device, token: &str) -> String {
        let status = self.create(token, &device.proof(&self.claims(token, None))).await.unwrap_err();
        let info = status.get_error_details().error_info().unwrap().clone();
        assert_eq!(info.reason, "USE_DPOP_NONCE");
        info.metadata["nonce"].clone()
    }

    /// The claims of a good proof.
    pub fn claims(&self, token: &str, nonce: Option<&str>) -> Value {
        let mut claims = json!({
            "htm": "POST", "htu": PATH, "iat": self.seconds(), "jti": uuid::Uuid::new_v4().to_string(),
            "ath": B64.encode(Digest::of(token.as_bytes()).as_bytes()),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        claims
    }

    pub async fn create(&mut self, token: &str, proof: &str) -> Result<v1::CreateSessionResponse, Status> {
        let request = v1::CreateSessionRequest { access_token: token.into(), dpop_proof: proof.into() };
        self.sessions.create_session(request).await.map(tonic::Response::into_inner)
    }

    pub async fn open(&mut self, device: &Device, token: &str) -> Result<v1::CreateSessionResponse, Status> {
        let proof = device.proof(&self.claims(token, None));
        let refused = match self.create(token, &proof).await {
            Err(status) if reason(&status) == "USE_DPOP_NONCE" => status,
            other => return other,
        };
        let nonce = refused.get_error_details().error_info().unwrap().metadata["nonce"].clone();
        let proof = device.proof(&self.claims(token, Some(&nonce)));
        self.create(token, &proof).await
    }

    /// A session with directory.write and tenant.admin that is nobody's.
    pub async fn admin(&mut self, url: &str) -> String {
        let token = self.token(url, "it-department", "directory.write tenant.admin");
        self.open(&Device::new(250), &token).await.unwrap().session_token
    }

    /// Creates a user whose external id is `name`.
    pub async fn user(&mut self, url: &str, name: &str) -> UserId {
        let admin = self.admin(url).await;
        let user = v1::User { kind: 1, external_id: name.into(), ..v1::User::default() };
        let request = v1::CreateUserRequest { request_id: uuid::Uuid::new_v4().to_string(), user: Some(user) };
        let created = self.client.create_user(bearer(&admin, request)).await.unwrap().into_inner().user.unwrap();
        created.id.parse().unwrap()
    }

    /// Enrols a device and opens a session with it.
    pub async fn enrolled(&mut self, url: &str, name: &str, user: UserId, device: &Device, signer: &Device) -> String {
        let token = self.token(url, name, "");
        let session = self.open(device, &token).await.unwrap();
        let (version, hash) = self.head(user).await;
        let request = device.enrolment(user, version + 1, hash, signer);
        self.client.enroll_device(bearer(&session.session_token, request)).await.unwrap();
        self.open(device, &token).await.unwrap().session_token
    }

    pub async fn head(&self, user: UserId) -> (u64, Digest) {
        let log = self.stores.directory.device_log(user, 0, 1000).await.unwrap();
        log.last().map_or((0, Digest::default()), |row| (row.version, row.hash))
    }
}

/// A device with keys made from a number.
pub struct Device {
    pub id: DeviceId,
    pub key: SigningKey,
    pub mls: SigningKey,
}

impl Device {
    pub fn new(n: u8) -> Self {
        Self {
            id: DeviceId::from_bytes([n; 16]),
            key: SigningKey::from_bytes(&[n; 32]),
            mls: SigningKey::from_bytes(&[n ^ 0x80; 32]),
        }
    }

    pub fn header(&self) -> Value {
        json!({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": public_jwk(&self.key)})
    }

    pub fn proof(&self, claims: &Value) -> String {
        jwt(&self.header(), claims, &self.key)
    }

    pub fn mls_key(&self) -> Bytes {
        Bytes::copy_from_slice(self.mls.verifying_key().as_bytes())
    }

    pub fn enrolment(&self, user: UserId, version: u64, hash: Digest, signer: &Self) -> v1::EnrollDeviceRequest {
        self.enrolment_as(self.id, user, version, hash, signer)
    }

    /// The same under an id that is not its own.
    pub fn enrolment_as(
        &self,
        id: DeviceId,
        user: UserId,
        version: u64,
        hash: Digest,
        signer: &Self,
    ) -> v1::EnrollDeviceRequest {
        let auth_key = public_jwk(&self.key).to_string();
        let row = MlsKeyRow { principal: user, suite: 1, public_key: self.mls_key() };
        let entry = Entry {
            user,
            version,
            previous_hash: hash,
            change: DeviceLogChange::Enrolled,
            device: id,
            auth_key: &auth_key,
            mls_keys: std::slice::from_ref(&row),
        };
        let signature = signer.key.sign(&entry.canonical_bytes()).to_bytes().to_vec();
        let mls_key = v1::MlsKey { principal_id: user.to_string(), suite: 1, public_key: self.mls_key() };
        v1::EnrollDeviceRequest {
            device: Some(v1::Device {
                id: id.to_string(),
                user_id: user.to_string(),
                auth_key: auth_key.clone(),
                mls_keys: vec![mls_key],
                ..v1::Device::default()
            }),
            version,
            previous_hash: Bytes::copy_from_slice(hash.as_bytes()),
            signer_device_id: if signer.id == self.id { id } else { signer.id }.to_string(),
            signature: signature.into(),
        }
    }

    /// A key package as far as the servers read it; `salt` tells one from another.
    pub fn key_package(&self, user: UserId, salt: u8, life: (u64, u64), last_resort: bool) -> Bytes {
        let mut out = Vec::new();
        out.extend([0, 1, 0, 5, 0, 1, 0, 1]); // mls10, key package, mls10, suite 1
        opaque(&mut out, &[salt; 32]); // init_key
        opaque(&mut out, &[1; 32]); // encryption_key
        opaque(&mut out, &self.mls_key());
        out.extend([0, 1]); // basic
        let credential = [&[1][..], tenant(1).as_bytes(), user.as_bytes(), self.id.as_bytes()].concat();
        opaque(&mut out, &credential);
        out.extend([0; 5]); // capabilities
        out.push(1); // from a key package
        out.extend(life.0.to_be_bytes());
        out.extend(life.1.to_be_bytes());
        out.push(0); // the leaf's extensions
        opaque(&mut out, &[2; 32]); // the leaf's signature
        opaque(&mut out, if last_resort { &[0, 0x0a, 0] } else { &[] });
        opaque(&mut out, &[3; 32]); // signature
        out.into()
    }
}

fn opaque(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).unwrap());
    out.extend(bytes);
}

pub fn jwt(header: &Value, claims: &Value, key: &SigningKey) -> String {
    let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
    format!("{signed}.{}", B64.encode(key.sign(signed.as_bytes()).to_bytes()))
}

pub fn bearer<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub fn uuid(n: u8) -> String {
    uuid::Uuid::from_bytes([n; 16]).to_string()
}

pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

pub fn detail(status: &Status) -> String {
    let info = status.get_error_details().error_info().cloned();
    info.and_then(|info| info.metadata.get("detail").cloned()).unwrap_or_default()
}
