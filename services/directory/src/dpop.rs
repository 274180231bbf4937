//! DPoP proofs (RFC 9449 section 4.3) with the server's nonces (section 8).
//!
//! A nonce is a MAC over a time bucket: any instance with the same session keys takes it. Replays are remembered by one
//! instance for as long as a nonce lives.
//!
//! Deliberately absent: replay detection across instances. A proof stolen from inside TLS could be used once at each, within
//! two minutes, and only together with its access token.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use subtle::ConstantTimeEq as _;
use wardline_domain::{Digest, Timestamp};
use wardline_proto::reason::Reason;
use wardline_runtime::Refusal;
use wardline_runtime::session::{LEEWAY, SessionKeys};

use crate::jwk::PublicKey;

/// What `htu` must name.
const PATH: &str = "/wardline.v1.SessionService/CreateSession";
/// The longest proof read, in bytes.
const MAX_BYTES: usize = 4096;
/// The longest `jti`, in bytes.
const MAX_JTI_BYTES: usize = 256;
/// How long a bucket lasts; a nonce lives for the rest of its bucket and the next one.
const BUCKET: Duration = Duration::from_secs(60);
/// How many proofs are remembered at a time.
const REMEMBERED: usize = 1 << 18;

/// Verifies proofs.
pub(crate) struct Proofs {
    nonce_key: [u8; 32],
    seen: Mutex<Seen>,
}

/// Proofs seen in the life of a nonce, oldest first.
#[derive(Default)]
struct Seen {
    proofs: HashSet<Digest>,
    order: VecDeque<(Timestamp, Digest)>,
}

#[derive(Deserialize)]
struct Header {
    typ: String,
    alg: String,
    jwk: Value,
    #[serde(default)]
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    htm: String,
    htu: String,
    iat: f64,
    jti: String,
    ath: Option<String>,
    nonce: Option<String>,
}

fn refused(detail: &'static str) -> Refusal {
    Refusal::new(Reason::DpopInvalid).with("detail", detail)
}

impl Proofs {
    pub(crate) fn new(keys: &SessionKeys) -> Self {
        Self { nonce_key: keys.derive(b"dpop nonce"), seen: Mutex::default() }
    }

    /// A nonce for the next proof.
    pub(crate) fn nonce(&self, now: Timestamp) -> String {
        self.nonce_of(bucket(now))
    }

    fn nonce_of(&self, bucket: u64) -> String {
        let tag = Digest::of_parts(&[b"wardline dpop nonce\0", &self.nonce_key, &bucket.to_be_bytes()]);
        URL_SAFE_NO_PAD.encode(&tag.as_bytes()[..24])
    }

    fn knows(&self, nonce: &str, now: Timestamp) -> bool {
        let current = bucket(now);
        [current, current.saturating_sub(1)]
            .iter()
            .any(|bucket| bool::from(self.nonce_of(*bucket).as_bytes().ct_eq(nonce.as_bytes())))
    }

    /// The key that made the proof, if it is one over this access token, now, for the first time.
    pub(crate) fn verify(&self, proof: &str, access_token: &str, now: Timestamp) -> Result<PublicKey, Refusal> {
        let (key, claims) = signed(proof)?;
        check(&claims, access_token, now)?;
        if !claims.nonce.as_deref().is_some_and(|nonce| self.knows(nonce, now)) {
            return Err(Refusal::new(Reason::UseDpopNonce).with("nonce", self.nonce(now)));
        }
        self.first_time(Digest::of_parts(&[key.thumbprint().as_bytes(), claims.jti.as_bytes()]), now)?;
        Ok(key)
    }

    fn first_time(&self, proof: Digest, now: Timestamp) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((at, old)) = seen.order.front().copied()
            && now.since(at) > BUCKET * 2
        {
            seen.order.pop_front();
            seen.proofs.remove(&old);
        }
        if seen.proofs.contains(&proof) {
            return Err(refused("the proof was used before"));
        }
        if seen.order.len() >= REMEMBERED {
            return Err(Refusal::new(Reason::Overloaded).retry_after(BUCKET));
        }
        seen.proofs.insert(proof);
        seen.order.push_back((now, proof));
        Ok(())
    }
}

fn bucket(now: Timestamp) -> u64 {
    now.as_millis() / 1000 / BUCKET.as_secs()
}

/// The key in the header and the claims, once the signature is verified with it.
fn signed(proof: &str) -> Result<(PublicKey, Claims), Refusal> {
    if proof.len() > MAX_BYTES {
        return Err(refused("the proof is too long"));
    }
    let not_jwt = || refused("the proof is not a JWT");
    let (message, signature) = proof.rsplit_once('.').ok_or_else(not_jwt)?;
    let (header, claims) = message.split_once('.').ok_or_else(not_jwt)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| not_jwt());
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| refused("the header lacks a member"))?;
    if header.typ != "dpop+jwt" || header.crit.is_some() {
        return Err(refused("the typ is not dpop+jwt"));
    }
    let key = PublicKey::parse(&header.jwk).ok_or(refused("the jwk is not a public P-256 or Ed25519 key"))?;
    if header.alg != key.algorithm() {
        return Err(refused("the algorithm is not that of the key"));
    }
    if !key.verifies(message.as_bytes(), &decode(signature)?) {
        return Err(refused("the signature does not verify"));
    }
    let claims = serde_json::from_slice(&decode(claims)?).map_err(|_| refused("a claim is missing"))?;
    Ok((key, claims))
}

fn check(claims: &Claims, access_token: &str, now: Timestamp) -> Result<(), Refusal> {
    let (now, leeway) = ((now.as_millis() as f64) / 1000.0, LEEWAY.as_secs_f64());
    if claims.htm != "POST" {
        return Err(refused("htm is not POST"));
    }
    if path_of(&claims.htu) != Some(PATH) {
        return Err(refused("htu is not this method"));
    }
    if !((now - leeway)..=(now + leeway)).contains(&claims.iat) {
        return Err(refused("iat is not now"));
    }
    if claims.jti.is_empty() || claims.jti.len() > MAX_JTI_BYTES {
        return Err(refused("jti is empty or too long"));
    }
    let ath = URL_SAFE_NO_PAD.encode(Digest::of(access_token.as_bytes()).as_bytes());
    if claims.ath.as_deref() != Some(ath.as_str()) {
        return Err(refused("ath is not the access token's"));
    }
    Ok(())
}

/// The path, with or without an origin before it; query and fragment are passed over (RFC 9449 section 4.3).
fn path_of(htu: &str) -> Option<&str> {
    let htu = htu.split(['?', '#']).next()?;
    let Some(rest) = htu.strip_prefix("https://").or_else(|| htu.strip_prefix("http://")) else {
        return Some(htu);
    };
    rest.find('/').and_then(|slash| rest.get(slash..))
}
