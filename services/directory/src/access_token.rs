//! Access tokens (RFC 9068, SMART App Launch): who the issuer says is there.
//!
//! Deliberately absent: fetching keys. The composition root brings them; a token never makes this process open a connection.

use std::collections::HashMap;

use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use wardline_domain::{TenantId, Timestamp};
use wardline_proto::reason::Reason;
use wardline_runtime::Refusal;
use wardline_runtime::caller::Scopes;
use wardline_runtime::session::LEEWAY;

use crate::config::Issuer;

/// The longest token read, in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// The issuers by URL.
pub(crate) struct Issuers(HashMap<String, Issuer>);

/// What a verified token says.
pub(crate) struct AccessToken {
    /// Its issuer.
    pub(crate) issuer: String,
    /// From the issuer's configuration, never from a claim.
    pub(crate) tenant: Option<TenantId>,
    /// The subject.
    pub(crate) subject: String,
    /// The `scope` claim as far as the issuer may grant it.
    pub(crate) scopes: Scopes,
    /// The thumbprint of the key it is bound to (RFC 9449 section 6.1).
    pub(crate) bound_to: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: OneOrMany,
    exp: f64,
    nbf: Option<f64>,
    scope: Option<String>,
    cnf: Option<Confirmation>,
}

#[derive(Deserialize)]
struct Confirmation {
    jkt: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

fn refused(detail: &'static str) -> Refusal {
    Refusal::new(Reason::AccessTokenInvalid).with("detail", detail)
}

impl Issuers {
    pub(crate) fn new(issuers: Vec<Issuer>) -> Self {
        Self(issuers.into_iter().map(|issuer| (issuer.url.clone(), issuer)).collect())
    }

    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<AccessToken, Refusal> {
        if token.len() > MAX_BYTES {
            return Err(refused("the token is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("the token is not a JWT"))?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err(refused("the algorithm is not RS256, ES256 or EdDSA"));
        }
        let kid = header.kid.ok_or(refused("the token names no key"))?;
        // Which issuer's key to try; believed only once the signature is verified with it.
        let claimed: Claims = unverified(token).ok_or(refused("a claim is missing"))?;
        let issuer = self.0.get(&claimed.iss).ok_or(refused("the issuer is not trusted"))?;
        let key = issuer.keys.get(&kid).ok_or(refused("the issuer has no such key"))?;
        let verified = jsonwebtoken::decode::<Claims>(token, key, &signature_only(header.alg))
            .map_err(|_| refused("the signature does not verify"))?;
        check(issuer, verified.claims, now)
    }
}

/// Times and names are checked here, with the clock given.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn unverified(token: &str) -> Option<Claims> {
    use base64::Engine as _;
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

fn check(issuer: &Issuer, claims: Claims, now: Timestamp) -> Result<AccessToken, Refusal> {
    // Seconds are far below 2^52.
    let (now, leeway) = ((now.as_millis() as f64) / 1000.0, LEEWAY.as_secs_f64());
    if claims.iss != issuer.url {
        return Err(refused("the issuer is not trusted"));
    }
    if !claims.aud.contains(&issuer.audience) {
        return Err(refused("the token is for another audience"));
    }
    if claims.exp + leeway < now {
        return Err(refused("the token has expired"));
    }
    if claims.nbf.is_some_and(|nbf| nbf - leeway > now) {
        return Err(refused("the token is not valid yet"));
    }
    Ok(AccessToken {
        issuer: claims.iss,
        tenant: issuer.tenant,
        subject: claims.sub,
        scopes: granted(issuer, claims.scope.as_deref().unwrap_or_default()),
        bound_to: claims.cnf.and_then(|cnf| cnf.jkt),
    })
}

/// An issuer of operators grants nothing in a tenant, and that of a tenant makes no operators.
fn granted(issuer: &Issuer, scope: &str) -> Scopes {
    let has = |name: &str| scope.split(' ').any(|one| one == name);
    let (allowed, of_tenant) = (issuer.allowed_scopes, issuer.tenant.is_some());
    Scopes {
        operator: !of_tenant && allowed.operator && has("operator"),
        tenant_admin: of_tenant && allowed.tenant_admin && has("tenant.admin"),
        directory_write: of_tenant && allowed.directory_write && has("directory.write"),
    }
}
