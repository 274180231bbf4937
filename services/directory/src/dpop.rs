//! DPoP proofs (RFC 9449 section 4.3) with the server's nonces (section 8).
//!
//! A nonce is a MAC over a time bucket: any instance with the same session keys takes it. Replays are remembered by one
//! instance for as long as a nonce lives. One subject of an issuer has a small share of that memory: whoever fills it keeps
//! nobody else out.
//!
//! `htu` (section 4.3, check 9) names the method by its path alone, or behind an origin: the configured public one, or any
//! when none is configured.
//!
//! Deliberately absent: replay detection across instances. A proof stolen from inside TLS could be used once at each, within
//! two minutes, and only together with its access token.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
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

use crate::access_token::AccessToken;
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
/// How many of them may be over access tokens of one subject: a sign-in of each of its devices takes one.
const REMEMBERED_OF_ONE: usize = 1 << 10;

/// Verifies proofs.
pub(crate) struct Proofs {
    nonce_key: [u8; 32],
    /// Normal.
    public_origin: Option<String>,
    seen: Mutex<Seen>,
}

/// Proofs seen in the life of a nonce, oldest first.
#[derive(Default)]
struct Seen {
    proofs: HashSet<Digest>,
    /// How many there are of each subject.
    of: HashMap<Digest, usize>,
    order: VecDeque<SeenProof>,
}

struct SeenProof {
    at: Timestamp,
    proof: Digest,
    subject: Digest,
}

impl Seen {
    fn forget_before(&mut self, now: Timestamp) {
        while let Some(old) = self.order.pop_front_if(|old| now.since(old.at) > BUCKET * 2) {
            self.proofs.remove(&old.proof);
            if let Entry::Occupied(mut of) = self.of.entry(old.subject) {
                *of.get_mut() -= 1;
                if *of.get() == 0 {
                    of.remove();
                }
            }
        }
    }
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
    pub(crate) fn new(keys: &SessionKeys, public_origin: Option<&str>) -> Self {
        let public_origin = public_origin.map(|origin| normal(origin.strip_suffix('/').unwrap_or(origin)));
        Self { nonce_key: keys.derive(b"dpop nonce"), public_origin, seen: Mutex::default() }
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

    /// The key that made the proof, if it is one over this access token, now, for the first time. The caller's duty: the
    /// token is verified, and `token` is what it says.
    pub(crate) fn verify(
        &self,
        proof: &str,
        access_token: &str,
        token: &AccessToken,
        now: Timestamp,
    ) -> Result<PublicKey, Refusal> {
        let (key, claims) = signed(proof)?;
        if !names_this_method(&claims.htu, self.public_origin.as_deref()) {
            return Err(refused("htu is not this method"));
        }
        check(&claims, access_token, now)?;
        if !claims.nonce.as_deref().is_some_and(|nonce| self.knows(nonce, now)) {
            return Err(Refusal::new(Reason::UseDpopNonce).with("nonce", self.nonce(now)));
        }
        let proof = Digest::of_parts(&[key.thumbprint().as_bytes(), claims.jti.as_bytes()]);
        // An issuer's URL is configured, so that it holds no zero byte.
        let subject = Digest::of_parts(&[token.issuer.as_bytes(), &[0], token.subject.as_bytes()]);
        self.first_time(proof, subject, now)?;
        Ok(key)
    }

    fn first_time(&self, proof: Digest, subject: Digest, now: Timestamp) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.forget_before(now);
        if seen.proofs.contains(&proof) {
            return Err(refused("the proof was used before"));
        }
        if seen.of.get(&subject).is_some_and(|of| *of >= REMEMBERED_OF_ONE) {
            return Err(Refusal::new(Reason::QuotaExceeded).retry_after(BUCKET));
        }
        if seen.order.len() >= REMEMBERED {
            return Err(Refusal::new(Reason::Overloaded).retry_after(BUCKET));
        }
        seen.proofs.insert(proof);
        *seen.of.entry(subject).or_default() += 1;
        seen.order.push_back(SeenProof { at: now, proof, subject });
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

/// Whether `htu` is this method's path, alone or behind an origin that may be named; query and fragment are passed over
/// (RFC 9449 section 4.3).
fn names_this_method(htu: &str, public_origin: Option<&str>) -> bool {
    let htu = htu.split(['?', '#']).next().unwrap_or_default();
    let Some(origin) = htu.strip_suffix(PATH) else { return false };
    if origin.is_empty() {
        return true;
    }
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    match public_origin {
        Some(public) => normal(origin) == public,
        None => host.is_some_and(|host| !host.contains('/')),
    }
}

/// An origin in its normal form: lower case, without the port that its scheme implies (RFC 3986 sections 6.2.2.1 and 6.2.3).
fn normal(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let implied = if origin.starts_with("https://") { ":443" } else { ":80" };
    match origin.strip_suffix(implied) {
        Some(without) => without.to_owned(),
        None => origin,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn proofs(public_origin: Option<&str>) -> Proofs {
        Proofs::new(&SessionKeys::new(vec![zeroize::Zeroizing::new([1; 32])]).unwrap(), public_origin)
    }

    #[test]
    fn one_subject_fills_its_own_share_of_the_memory_only() {
        let proofs = proofs(None);
        let (greedy, other) = (Digest::of(b"greedy"), Digest::of(b"other"));
        let proof = |n: usize| Digest::of(&n.to_be_bytes());
        for n in 0..REMEMBERED_OF_ONE {
            proofs.first_time(proof(n), greedy, NOW).unwrap();
        }
        let refused = proofs.first_time(proof(REMEMBERED_OF_ONE), greedy, NOW).unwrap_err();
        assert_eq!((refused.reason, refused.retry_after), (Reason::QuotaExceeded, Some(BUCKET)));
        proofs.first_time(proof(REMEMBERED_OF_ONE), other, NOW).unwrap();
        // Refused or not, what was used stays used.
        assert_eq!(proofs.first_time(proof(0), greedy, NOW).unwrap_err().reason, Reason::DpopInvalid);

        let later = NOW.plus(BUCKET * 2 + Duration::from_micros(1));
        proofs.first_time(proof(0), greedy, later).unwrap();
        let seen = proofs.seen.lock().unwrap();
        assert_eq!((seen.proofs.len(), seen.order.len(), seen.of.len()), (1, 1, 1), "what is over is forgotten whole");
    }

    #[test]
    fn an_origin_in_htu_is_the_public_one_when_there_is_one() {
        let names = |origin: &str, public: Option<&str>| {
            names_this_method(&format!("{origin}{PATH}"), proofs(public).public_origin.as_deref())
        };
        let public = Some("https://Wardline.example:443/");
        for (origin, expected) in [
            ("", true),
            ("https://wardline.example", true),
            ("https://WARDLINE.example", true),
            ("https://wardline.example:443", true),
            ("https://wardline.example:7405", false),
            ("http://wardline.example", false),
            ("https://other.example", false),
            ("https://wardline.example.other.example", false),
            ("https://wardline.example/x", false),
            ("x", false),
        ] {
            assert_eq!(names(origin, public), expected, "{origin}");
        }
        for (origin, expected) in
            [("", true), ("https://other.example:7405", true), ("https://other.example/x", false), ("x", false)]
        {
            assert_eq!(names(origin, None), expected, "{origin}");
        }
        assert!(names_this_method(&format!("{PATH}?a=b#c"), None) && !names_this_method("/other", None));
    }
}
