//! Session tokens: a MAC over who calls, so that a call costs one HMAC and no look-up.
//!
//! Minted by the directory role only; verified by all with the same keys. A token is base64url without padding of: version
//! (1), key id (1), flags (1), session (16), tenant (16), user (16), device (16), key thumbprint (32), end in µs (8,
//! big-endian), HMAC-SHA256 of all before it (32). Absent ids are zeros; the flags say which are there.
//!
//! Deliberately absent: revocation, which [`crate::auth`] adds.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use wardline_domain::{DeviceId, Digest, TenantId, Timestamp, UserId};
use wardline_proto::reason::Reason;
use zeroize::Zeroizing;

use crate::Caller;
use crate::caller::Scopes;

/// How long a session lasts.
pub const LIFETIME: std::time::Duration = std::time::Duration::from_secs(600);
/// How far clocks may differ.
pub const LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);

const VERSION: u8 = 1;
const BODY_BYTES: usize = 3 + 4 * 16 + 32 + 8;
const MAC_BYTES: usize = 32;
const TOKEN_BYTES: usize = BODY_BYTES + MAC_BYTES;

const HAS_TENANT: u8 = 1;
const HAS_USER: u8 = 1 << 1;
const HAS_DEVICE: u8 = 1 << 2;
const OPERATOR: u8 = 1 << 3;
const TENANT_ADMIN: u8 = 1 << 4;
const DIRECTORY_WRITE: u8 = 1 << 5;

/// The keys of a deployment's session MAC: the first mints, all verify.
///
/// Rotation: add the new key behind the old one everywhere, then put it first, then drop the old one after [`LIFETIME`]. A
/// token names its key by a byte that is derived from the key, so the order may change.
pub struct SessionKeys {
    keys: Vec<Zeroizing<[u8; 32]>>,
}

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionKeys({})", self.keys.len())
    }
}

impl SessionKeys {
    /// From 32-byte keys, the minting one first. `None` when there is none.
    pub fn new(keys: Vec<Zeroizing<[u8; 32]>>) -> Option<Self> {
        if keys.is_empty() { None } else { Some(Self { keys }) }
    }

    /// A token for `caller`, base64url without padding.
    pub fn mint(&self, caller: &Caller) -> String {
        let Some(key) = self.keys.first() else {
            unreachable!("new() refuses an empty list");
        };
        let mut token = encode(caller, key_id(key)).to_vec();
        let tag = mac(key, &token).finalize().into_bytes();
        token.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(token)
    }

    /// A key for another purpose of the role that mints: every instance derives the same. It changes when the minting key does.
    pub fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let Some(key) = self.keys.first() else {
            unreachable!("new() refuses an empty list");
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_slice()).expect("HMAC takes keys of any length");
        mac.update(b"wardline session derived\0");
        mac.update(purpose);
        mac.finalize().into_bytes().into()
    }

    /// The caller a token speaks for. `SessionExpired` after its time plus [`LEEWAY`]; `TokenInvalid` for anything else.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Caller, Reason> {
        // The longest text is refused before it is decoded.
        if token.len() != TOKEN_BYTES.div_ceil(3) * 4 - (3 - TOKEN_BYTES % 3) % 3 {
            return Err(Reason::TokenInvalid);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| Reason::TokenInvalid)?;
        let (body, tag) = bytes.split_first_chunk::<BODY_BYTES>().ok_or(Reason::TokenInvalid)?;
        let [version, id, ..] = *body;
        let mut candidates = self.keys.iter().filter(|key| key_id(key) == id);
        // `verify_slice` compares in constant time.
        if version != VERSION || !candidates.any(|key| mac(key, body).verify_slice(tag).is_ok()) {
            return Err(Reason::TokenInvalid);
        }
        let caller = decode(body).ok_or(Reason::TokenInvalid)?;
        if now > caller.expires_at.plus(LEEWAY) { Err(Reason::SessionExpired) } else { Ok(caller) }
    }
}

fn mac(key: &[u8; 32], body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(b"wardline session v1\0");
    mac.update(body);
    mac
}

/// Tells keys of one deployment apart; two that share it are both tried.
fn key_id(key: &[u8; 32]) -> u8 {
    let [id, ..] = *Digest::of_parts(&[b"wardline session key id\0", key]).as_bytes();
    id
}

fn encode(caller: &Caller, key_id: u8) -> [u8; BODY_BYTES] {
    let set = |flag: u8, present: bool| if present { flag } else { 0 };
    let flags = set(HAS_TENANT, caller.tenant.is_some())
        | set(HAS_USER, caller.user.is_some())
        | set(HAS_DEVICE, caller.device.is_some())
        | set(OPERATOR, caller.scopes.operator)
        | set(TENANT_ADMIN, caller.scopes.tenant_admin)
        | set(DIRECTORY_WRITE, caller.scopes.directory_write);
    let mut body = [0; BODY_BYTES];
    body[..3].copy_from_slice(&[VERSION, key_id, flags]);
    body[3..19].copy_from_slice(&caller.session);
    body[19..35].copy_from_slice(&caller.tenant.map_or([0; 16], |tenant| *tenant.as_bytes()));
    body[35..51].copy_from_slice(&caller.user.map_or([0; 16], |user| *user.as_bytes()));
    body[51..67].copy_from_slice(&caller.device.map_or([0; 16], |device| *device.as_bytes()));
    body[67..99].copy_from_slice(caller.key.as_bytes());
    body[99..].copy_from_slice(&caller.expires_at.as_micros().to_be_bytes());
    body
}

fn decode(body: &[u8; BODY_BYTES]) -> Option<Caller> {
    let flags = body[2];
    let id = |from: usize| body.get(from..from + 16)?.try_into().ok();
    let given = |flag: u8, from: usize| -> Option<Option<[u8; 16]>> {
        if flags & flag == 0 { Some(None) } else { id(from).map(Some) }
    };
    Some(Caller {
        session: id(3)?,
        tenant: given(HAS_TENANT, 19)?.map(TenantId::from_bytes),
        user: given(HAS_USER, 35)?.map(UserId::from_bytes),
        device: given(HAS_DEVICE, 51)?.map(DeviceId::from_bytes),
        key: Digest::try_from(body.get(67..99)?).ok()?,
        scopes: Scopes {
            operator: flags & OPERATOR != 0,
            tenant_admin: flags & TENANT_ADMIN != 0,
            directory_write: flags & DIRECTORY_WRITE != 0,
        },
        expires_at: Timestamp::from_micros(u64::from_be_bytes(body.get(99..)?.try_into().ok()?)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const END: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    fn keys(seeds: &[u8]) -> SessionKeys {
        SessionKeys::new(seeds.iter().map(|seed| Zeroizing::new([*seed; 32])).collect()).unwrap()
    }

    fn caller(parts: u8) -> Caller {
        Caller {
            session: [9; 16],
            tenant: (parts & 1 != 0).then_some(TenantId::from_bytes([1; 16])),
            user: (parts & 2 != 0).then_some(UserId::from_bytes([2; 16])),
            device: (parts & 4 != 0).then_some(DeviceId::from_bytes([3; 16])),
            key: Digest::of(b"key"),
            scopes: Scopes {
                operator: parts & 8 != 0,
                tenant_admin: parts & 16 != 0,
                directory_write: parts & 32 != 0,
            },
            expires_at: END,
        }
    }

    #[test]
    fn every_shape_of_caller_comes_back_as_it_was() {
        for parts in 0..64 {
            let caller = caller(parts);
            assert_eq!(keys(&[1]).verify(&keys(&[1]).mint(&caller), END), Ok(caller));
        }
    }

    #[test]
    fn a_token_ends_after_its_time_and_the_leeway() {
        let (keys, token) = (keys(&[1]), keys(&[1]).mint(&caller(7)));
        assert!(keys.verify(&token, END.plus(LEEWAY)).is_ok());
        assert_eq!(keys.verify(&token, END.plus(LEEWAY + Duration::from_micros(1))), Err(Reason::SessionExpired));
    }

    #[test]
    fn a_key_is_rotated_without_ending_sessions() {
        let token = keys(&[1]).mint(&caller(7));
        assert!(keys(&[1, 2]).verify(&token, END).is_ok());
        assert!(keys(&[2, 1]).verify(&token, END).is_ok());
        assert_eq!(keys(&[2]).verify(&token, END), Err(Reason::TokenInvalid));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let keys = keys(&[1, 2]);
        let token = URL_SAFE_NO_PAD.decode(keys.mint(&caller(63))).unwrap();
        for bit in 0..token.len() * 8 {
            let mut forged = token.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.verify(&URL_SAFE_NO_PAD.encode(forged), END), Err(Reason::TokenInvalid), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_none_is_believed(text in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(keys(&[1]).verify(&text, END), Err(Reason::TokenInvalid));
            prop_assert_eq!(keys(&[1]).verify(&URL_SAFE_NO_PAD.encode(bytes), END), Err(Reason::TokenInvalid));
        }

        #[test]
        fn another_spelling_of_a_token_is_refused(at in 0usize..186, byte in 0u8..128) {
            let keys = keys(&[1]);
            let mut token = keys.mint(&caller(63)).into_bytes();
            prop_assume!(token[at] != byte);
            token[at] = byte;
            let token = String::from_utf8(token).unwrap();
            prop_assert_eq!(keys.verify(&token, END), Err(Reason::TokenInvalid));
        }
    }
}
