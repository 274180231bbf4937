//! Who may open a link: holders of the cluster's link key. A call carries `authorization: Bearer 1.<seconds>.<mac>`, the MAC
//! over the time it was made at, so that what was overheard is soon worthless.
//!
//! Deliberately absent: TLS. It belongs under the listener and to [`crate::Options::link_tls`].

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use wardline_domain::Timestamp;
use wardline_proto::reason::Reason;
use wardline_runtime::{Clock, Refusal};
use zeroize::Zeroizing;

/// How long a bearer is good for, and how far clocks may differ.
const VALID_FOR: Duration = Duration::from_secs(300);
/// Separates this MAC from others under the same key.
const LABEL: &[u8] = b"wardline presence link 1";

/// The key that all presence instances of a deployment share.
#[derive(Clone)]
pub struct LinkKey(Zeroizing<[u8; 32]>);

impl LinkKey {
    /// From 32 random bytes.
    pub const fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    fn mac(&self, seconds: u64) -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&*self.0).expect("HMAC takes keys of every length");
        mac.update(LABEL);
        mac.update(&seconds.to_be_bytes());
        mac.finalize().into_bytes().into()
    }

    fn bearer(&self, now: Timestamp) -> MetadataValue<Ascii> {
        let seconds = now.as_micros() / 1_000_000;
        let text = format!("Bearer 1.{seconds}.{}", hex::encode(self.mac(seconds)));
        MetadataValue::try_from(text).expect("digits and hex are ASCII")
    }

    fn accepts(&self, bearer: &str, now: Timestamp) -> bool {
        let Some((seconds, mac)) = bearer.strip_prefix("Bearer 1.").and_then(|rest| rest.split_once('.')) else {
            return false;
        };
        let (Ok(seconds), Ok(mac)) = (seconds.parse::<u64>(), hex::decode(mac)) else { return false };
        let is_ours: bool = self.mac(seconds).as_slice().ct_eq(&mac).into();
        is_ours && (now.as_micros() / 1_000_000).abs_diff(seconds) <= VALID_FOR.as_secs()
    }
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey")
    }
}

/// Puts the bearer into calls.
#[derive(Debug, Clone)]
pub(crate) struct LinkPass {
    pub(crate) key: LinkKey,
    pub(crate) clock: Clock,
}

impl Interceptor for LinkPass {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.key.bearer(self.clock.now()));
        Ok(request)
    }
}

/// Refuses calls without a good bearer.
#[derive(Debug, Clone)]
pub struct LinkGate {
    pub(crate) key: LinkKey,
    pub(crate) clock: Clock,
}

impl Interceptor for LinkGate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match bearer {
            Some(bearer) if self.key.accepts(bearer, self.clock.now()) => Ok(request),
            Some(_) => Err(Refusal::new(Reason::TokenInvalid).into()),
            None => Err(Refusal::new(Reason::TokenMissing).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Only a bearer made with the key, not long ago, passes.
    #[test]
    fn a_bearer_needs_the_key_and_the_time() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let key = LinkKey::new(Zeroizing::new([1; 32]));
        let bearer = key.bearer(now);
        let bearer = bearer.to_str().unwrap();
        assert!(key.accepts(bearer, now.plus(VALID_FOR)));
        assert!(!key.accepts(bearer, now.plus(VALID_FOR + Duration::from_secs(1))));
        assert!(!LinkKey::new(Zeroizing::new([2; 32])).accepts(bearer, now));
        for garbage in ["", "Bearer ", "Bearer 1.5", "Bearer 1.x.00", "Bearer 1.1800000000.00"] {
            assert!(!key.accepts(garbage, now));
        }
    }
}
