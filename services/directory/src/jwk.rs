//! Devices' authentication keys as JWKs (RFC 7517): EC P-256 and OKP Ed25519.
//!
//! Deliberately absent: private keys. A JWK that carries one is refused.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::VerifyingKey as Ed25519Key;
use p256::ecdsa::VerifyingKey as P256Key;
use p256::ecdsa::signature::Verifier as _;
use serde_json::Value;
use wardline_domain::Digest;

/// Members that only private and symmetric keys have (RFC 7518 section 6).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// A device's authentication key.
#[derive(Clone)]
pub(crate) enum PublicKey {
    /// ES256.
    P256(P256Key),
    /// EdDSA.
    Ed25519(Ed25519Key),
}

impl PublicKey {
    pub(crate) fn parse(jwk: &Value) -> Option<Self> {
        let members = jwk.as_object()?;
        if PRIVATE.iter().any(|name| members.contains_key(*name)) {
            return None;
        }
        let text = |name: &str| members.get(name)?.as_str();
        let coordinate = |name: &str| -> Option<[u8; 32]> { URL_SAFE_NO_PAD.decode(text(name)?).ok()?.try_into().ok() };
        match (text("kty")?, text("crv")?) {
            ("EC", "P-256") => Self::p256(&[&[4][..], &coordinate("x")?, &coordinate("y")?].concat()),
            ("OKP", "Ed25519") => Self::ed25519(&coordinate("x")?),
            _ => None,
        }
    }

    /// From an uncompressed point (SEC 1 section 2.3.3).
    pub(crate) fn p256(point: &[u8]) -> Option<Self> {
        if point.len() != 65 {
            return None;
        }
        P256Key::from_sec1_bytes(point).ok().map(Self::P256)
    }

    /// From 32 bytes (RFC 8032 section 5.1.5); small-order points are refused.
    pub(crate) fn ed25519(bytes: &[u8]) -> Option<Self> {
        let key = Ed25519Key::from_bytes(bytes.try_into().ok()?).ok()?;
        (!key.is_weak()).then_some(Self::Ed25519(key))
    }

    /// The JWS algorithm it is used with.
    pub(crate) const fn algorithm(&self) -> &'static str {
        match self {
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// The RFC 7638 thumbprint: SHA-256 of the required members in lexical order.
    pub(crate) fn thumbprint(&self) -> Digest {
        let text = match self {
            Self::P256(key) => {
                let point = key.to_encoded_point(false);
                let [x, y] = [point.x(), point.y()].map(|part| URL_SAFE_NO_PAD.encode(part.map_or(&[][..], |p| p)));
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
            Self::Ed25519(key) => {
                format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(key.as_bytes()))
            }
        };
        Digest::of(text.as_bytes())
    }

    /// Whether a signature of 64 bytes (r ‖ s, or RFC 8032's) is over `bytes`.
    pub(crate) fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(bytes, &signature).is_ok()),
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(bytes, &signature).is_ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037_appendix_a_3() {
        let jwk = json!({"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"any"});
        let thumbprint = PublicKey::parse(&jwk).unwrap().thumbprint();
        assert_eq!(URL_SAFE_NO_PAD.encode(thumbprint.as_bytes()), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn private_and_foreign_keys_are_refused() {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        for jwk in [
            json!({"kty":"OKP","crv":"Ed25519","x":x,"d":x}),
            json!({"kty":"OKP","crv":"X25519","x":x}),
            json!({"kty":"EC","crv":"P-256","x":x,"y":x}),
            json!({"kty":"OKP","crv":"Ed25519","x":"AA"}),
            json!({"kty":"oct","k":x}),
            json!("text"),
        ] {
            assert!(PublicKey::parse(&jwk).is_none(), "{jwk}");
        }
    }
}
