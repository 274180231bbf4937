//! Session tokens: a MAC over who calls, so that a call costs one HMAC and no look-up.
//!
//! Minted by the directory role only; verified by all with the same keys.

use wardline_domain::Timestamp;
use wardline_proto::reason::Reason;

use crate::Caller;

/// How long a session lasts.
pub const LIFETIME: std::time::Duration = std::time::Duration::from_secs(600);
/// How far clocks may differ.
pub const LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);

/// The keys of a deployment's session MAC: the first mints, all verify.
pub struct SessionKeys {
    #[allow(dead_code)]
    keys: Vec<zeroize::Zeroizing<[u8; 32]>>,
}

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionKeys({})", self.keys.len())
    }
}

#[allow(clippy::todo, unused_variables)]
impl SessionKeys {
    /// From 32-byte keys, the minting one first. `None` when there is none.
    pub fn new(keys: Vec<zeroize::Zeroizing<[u8; 32]>>) -> Option<Self> {
        if keys.is_empty() { None } else { Some(Self { keys }) }
    }

    /// A token for `caller`, base64url without padding.
    pub fn mint(&self, caller: &Caller) -> String {
        todo!()
    }

    /// The caller a token speaks for. `SessionExpired` after its time plus [`LEEWAY`]; `TokenInvalid` for anything else.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, Reason> {
        todo!()
    }
}
