//! DPoP proofs (RFC 9449) by the device's authentication key, Ed25519.
//!
//! Deliberately absent: ES256, which the servers accept too. A device that keeps its key in a secure element would need it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::json;
use wardline_domain::{Digest, Timestamp};

use crate::secret::{Secret, fill_random};

/// The claim `htu` of every proof.
pub(crate) const CREATE_SESSION: &str = "/wardline.v1.SessionService/CreateSession";

/// The device's authentication key.
#[derive(Clone)]
pub(crate) struct AuthKey(SigningKey);

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(32 bytes)")
    }
}

impl AuthKey {
    /// A new key.
    pub(crate) fn generate() -> Self {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        fill_random(seed.as_mut());
        Self(SigningKey::from_bytes(&seed))
    }

    /// From what [`AuthKey::seed`] gave.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// For the device's own file.
    pub(crate) fn seed(&self) -> Secret {
        Secret::new(self.0.to_bytes().to_vec())
    }

    /// Signs bytes: device log entries.
    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }

    /// The public key as a JWK (RFC 8037), in the member order of RFC 7638 thumbprints.
    pub(crate) fn jwk(&self) -> String {
        format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.public_text())
    }

    fn public_text(&self) -> String {
        BASE64URL.encode(self.0.verifying_key().as_bytes())
    }

    /// A proof for CreateSession (RFC 9449 section 4.2).
    pub(crate) fn proof(&self, access_token: &str, nonce: Option<&str>, now: Timestamp) -> String {
        let header = json!({
            "typ": "dpop+jwt",
            "alg": "EdDSA",
            "jwk": { "kty": "OKP", "crv": "Ed25519", "x": self.public_text() },
        });
        let mut jti = [0; 16];
        fill_random(&mut jti);
        let mut claims = json!({
            "htm": "POST",
            "htu": CREATE_SESSION,
            "iat": now.as_millis() / 1000,
            "jti": BASE64URL.encode(jti),
            "ath": BASE64URL.encode(Digest::of(access_token.as_bytes()).as_bytes()),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(signature))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ed25519_dalek::Signature;
    use serde_json::Value;

    use super::*;

    fn part(proof: &str, index: usize) -> Value {
        let text = proof.split('.').nth(index).unwrap();
        serde_json::from_slice(&BASE64URL.decode(text).unwrap()).unwrap()
    }

    #[test]
    fn a_proof_says_what_rfc_9449_asks_and_verifies() {
        let key = AuthKey::generate();
        let now = Timestamp::from_micros(1_700_000_000_500_000);
        let proof = key.proof("token", Some("n1"), now);

        let header = part(&proof, 0);
        assert_eq!(header["typ"], "dpop+jwt");
        assert_eq!(header["alg"], "EdDSA");
        assert_eq!(header["jwk"], serde_json::from_str::<Value>(&key.jwk()).unwrap());

        let claims = part(&proof, 1);
        assert_eq!(claims["htm"], "POST");
        assert_eq!(claims["htu"], CREATE_SESSION);
        assert_eq!(claims["iat"], 1_700_000_000);
        assert_eq!(claims["nonce"], "n1");
        // base64url(SHA-256("token"))
        assert_eq!(claims["ath"], "PEaenWxYddN6Q_NT1PiOYfz4EsZu7jRXRlpAsNpBU-A");

        let (signed, signature) = proof.rsplit_once('.').unwrap();
        let signature = Signature::from_slice(&BASE64URL.decode(signature).unwrap()).unwrap();
        assert!(key.0.verifying_key().verify_strict(signed.as_bytes(), &signature).is_ok());
    }

    #[test]
    fn without_a_nonce_there_is_no_claim_and_no_two_proofs_share_a_jti() {
        let key = AuthKey::generate();
        let first = key.proof("token", None, Timestamp::default());
        let second = key.proof("token", None, Timestamp::default());
        assert!(part(&first, 1).get("nonce").is_none());
        assert_ne!(part(&first, 1)["jti"], part(&second, 1)["jti"]);
    }

    #[test]
    fn the_key_survives_its_seed_and_does_not_print() {
        let key = AuthKey::generate();
        let seed: [u8; 32] = key.seed().expose().try_into().unwrap();
        assert_eq!(AuthKey::from_seed(&seed).jwk(), key.jwk());
        assert_eq!(format!("{key:?} {:?}", key.seed()), "AuthKey(32 bytes) Secret(32 bytes)");
    }
}
