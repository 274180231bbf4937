//! What the composition root configures.

use std::collections::HashMap;
use std::time::Duration;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use serde::Deserialize;
use wardline_domain::TenantId;
use wardline_proto::v1;
use wardline_registry::Rate;
use wardline_runtime::caller::Scopes;

/// An OpenID Connect issuer whose access tokens open sessions.
#[derive(Clone)]
pub struct Issuer {
    /// The `iss` claim, compared character by character.
    pub url: String,
    /// The tenant its users belong to; `None` for an issuer of operators.
    pub tenant: Option<TenantId>,
    /// What the `aud` claim must contain.
    pub audience: String,
    /// What its tokens may carry.
    pub allowed_scopes: Scopes,
    /// Its keys by `kid`.
    pub(crate) keys: HashMap<String, DecodingKey>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({}, {} keys)", self.url, self.keys.len())
    }
}

/// The text is no JWK set with a key that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JWK set with a signing key that has a kid")]
pub struct InvalidIssuer;

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

impl Issuer {
    /// An issuer with the keys of a JWK set (RFC 7517 section 5) in JSON. Keys of unknown kinds, and those without `kid`, are
    /// passed over.
    pub fn new(
        url: String,
        tenant: Option<TenantId>,
        audience: String,
        allowed_scopes: Scopes,
        jwks: &str,
    ) -> Result<Self, InvalidIssuer> {
        let set: JwkSet = serde_json::from_str(jwks).map_err(|_| InvalidIssuer)?;
        let keys: HashMap<_, _> = set.keys.into_iter().filter_map(signing_key).collect();
        if keys.is_empty() { Err(InvalidIssuer) } else { Ok(Self { url, tenant, audience, allowed_scopes, keys }) }
    }
}

fn signing_key(jwk: serde_json::Value) -> Option<(String, DecodingKey)> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((jwk.common.key_id?, key))
}

/// Bounds and quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Users in one ClaimKeyPackages call.
    pub users_per_call: usize,
    /// Unserved key packages held for a device and suite.
    pub key_packages_kept: u32,
    /// Key packages in one publication.
    pub key_packages_per_call: usize,
    /// How many users one user may claim for.
    pub claims_by_user: Rate,
    /// How often one user may be claimed.
    pub claims_of_user: Rate,
    /// How often one user may claim one other, in seconds, of which a claim takes 60: buckets fill by whole tokens a second,
    /// and this is to be slower. The default is 64 at once, since whoever opens a ward's conversations claims the same people
    /// for each, then one a minute.
    pub claims_of_user_by_one: Rate,
    /// How long failed calls for a session are counted into one audit record.
    pub refusals_counted_for: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            users_per_call: 128,
            key_packages_kept: 500,
            key_packages_per_call: 100,
            claims_by_user: Rate { burst: 1024, per_second: 8 },
            claims_of_user: Rate { burst: 256, per_second: 2 },
            claims_of_user_by_one: Rate { burst: 64 * 60, per_second: 1 },
            refusals_counted_for: Duration::from_secs(60),
        }
    }
}

/// What the server says of itself, and where clients find it.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// The bounds of all roles.
    pub limits: v1::Limits,
    /// The cipher suites, the preferred first.
    pub suites: Vec<u16>,
    /// The content versions.
    pub content_versions: Vec<u32>,
    /// The oldest client version served.
    pub min_client_version: String,
    /// The origin (`https://host[:port]`) that clients reach the server by. A proof whose `htu` names an origin must name
    /// this one; unset, any is taken, so that a proof made for another server would be, too. Not part of the answer.
    pub public_origin: Option<String>,
}

impl Default for Info {
    fn default() -> Self {
        let limits = v1::Limits {
            max_message_bytes: 1 << 20,
            max_group_state_bytes: 4 << 20,
            max_members: 2000,
            max_devices: 5000,
            max_in_flight: 256,
            max_users_per_call: 128,
            max_adds_per_commit: 128,
        };
        Self {
            limits,
            suites: vec![1, 2],
            content_versions: vec![1],
            min_client_version: "0.1.0".to_owned(),
            public_origin: None,
        }
    }
}
