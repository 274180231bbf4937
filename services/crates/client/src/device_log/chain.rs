//! Entries, their canonical bytes and hashes, and what a chain of them must satisfy. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ed25519_dalek::{Signature, VerifyingKey};
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto as _;
use openmls_traits::types::SignatureScheme;
use wardline_domain::{DeviceId, Digest, UserId};
use wardline_proto::v1;

use crate::error::Error;

/// What the canonical bytes start with.
const DOMAIN: &[u8] = b"wardline device log v1\0";

/// One entry, parsed.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose log.
    pub user: UserId,
    /// From 1, dense.
    pub version: u64,
    /// SHA-256 over the previous entry.
    pub previous_hash: Digest,
    /// Whether the device ended; else it joined.
    pub revoked: bool,
    /// Which device, with its keys as they stood.
    pub device: LoggedDevice,
    /// Who signed; `None` for the tenant authority, which may only revoke.
    pub signer: Option<DeviceId>,
    /// Over the canonical bytes.
    pub signature: Vec<u8>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.version)
    }
}

/// A device as a log has it.
#[derive(Clone, PartialEq, Eq)]
pub struct LoggedDevice {
    /// Its id.
    pub id: DeviceId,
    /// The JWK text of its authentication key.
    pub auth_key: String,
    /// Its MLS keys: principal, suite, public key.
    pub mls_keys: Vec<(UserId, u16, Vec<u8>)>,
    /// Whether it may be used.
    pub active: bool,
}

impl LoggedDevice {
    /// Whether it was enrolled with this MLS key.
    pub(crate) fn has_mls_key(&self, principal: UserId, suite: u16, key: &[u8]) -> bool {
        self.mls_keys.iter().any(|(by, of, held)| *by == principal && *of == suite && held == key)
    }
}

impl std::fmt::Debug for LoggedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoggedDevice({} MLS keys, active: {})", self.mls_keys.len(), self.active)
    }
}

/// A verified log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceLog {
    /// The head's version; 0 when empty.
    pub version: u64,
    /// The head's hash; zeros when empty.
    pub hash: Digest,
    /// The devices, by id.
    pub devices: BTreeMap<DeviceId, LoggedDevice>,
}

/// The canonical bytes of an entry: what is signed.
pub fn canonical_bytes(entry: &Entry) -> Vec<u8> {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend_from_slice(entry.user.as_bytes());
    bytes.extend_from_slice(&entry.version.to_be_bytes());
    bytes.extend_from_slice(entry.previous_hash.as_bytes());
    bytes.push(if entry.revoked { v1::DeviceChange::Revoked as u8 } else { v1::DeviceChange::Enrolled as u8 });
    bytes.extend_from_slice(entry.device.id.as_bytes());
    extend_with_length(&mut bytes, &[entry.device.auth_key.as_bytes()]);
    for (principal, suite, key) in &entry.device.mls_keys {
        extend_with_length(&mut bytes, &[principal.as_bytes(), &suite.to_be_bytes(), key]);
    }
    bytes
}

fn extend_with_length(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(parts.iter().flat_map(|part| part.iter()));
}

/// What the next entry names as `previous_hash`: SHA-256(canonical bytes ‖ signer's id ‖ signature). An entry of the tenant
/// authority has no signer's id; sixteen zeros stand for it.
pub fn entry_hash(entry: &Entry) -> Digest {
    let signer = entry.signer.map_or([0; 16], |signer| *signer.as_bytes());
    Digest::of_parts(&[&canonical_bytes(entry), &signer, &entry.signature])
}

/// A public key that signs entries.
pub(crate) enum Key {
    Ed25519([u8; 32]),
    /// Uncompressed SEC 1.
    P256(Vec<u8>),
}

impl Key {
    /// From a JWK's text.
    pub(crate) fn from_jwk(text: &str) -> Option<Self> {
        let jwk: serde_json::Value = serde_json::from_str(text).ok()?;
        let coordinate = |name: &str| BASE64URL.decode(jwk.get(name)?.as_str()?).ok();
        match (jwk.get("kty")?.as_str()?, jwk.get("crv")?.as_str()?) {
            ("OKP", "Ed25519") => Some(Self::Ed25519(coordinate("x")?.try_into().ok()?)),
            ("EC", "P-256") => {
                let (x, y) = (coordinate("x")?, coordinate("y")?);
                (x.len() == 32 && y.len() == 32).then(|| Self::P256([&[4][..], &x, &y].concat()))
            }
            _ => None,
        }
    }

    pub(crate) fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => {
                let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(key), Signature::from_slice(signature)) else {
                    return false;
                };
                key.verify_strict(bytes, &signature).is_ok()
            }
            Self::P256(key) => der(signature).is_some_and(|signature| {
                let scheme = SignatureScheme::ECDSA_SECP256R1_SHA256;
                RustCrypto::default().verify_signature(scheme, bytes, key, &signature).is_ok()
            }),
        }
    }
}

/// r ‖ s (64 bytes) as the DER that MLS' verifier wants.
fn der(signature: &[u8]) -> Option<Vec<u8>> {
    if signature.len() != 64 {
        return None;
    }
    let integer = |number: &[u8]| {
        let significant = number.iter().position(|byte| *byte != 0).unwrap_or(number.len() - 1);
        let mut bytes = number[significant..].to_vec();
        if bytes[0] & 0x80 != 0 {
            bytes.insert(0, 0);
        }
        [&[2, bytes.len() as u8][..], &bytes].concat()
    };
    let body = [integer(&signature[..32]), integer(&signature[32..])].concat();
    Some([&[0x30, body.len() as u8][..], &body].concat())
}

/// Verifies that `entry` follows `log`, and applies it.
///
/// # Errors
/// [`Error::Untrusted`] when the version or hash does not follow, the signer may not sign, or the signature does not verify.
pub(crate) fn verify_entry(log: &mut DeviceLog, entry: &Entry, authority: &[[u8; 32]]) -> Result<(), Error> {
    if entry.version != log.version + 1 || entry.previous_hash != log.hash {
        return Err(Error::Untrusted("a device log entry does not follow the one before it"));
    }
    let bytes = canonical_bytes(entry);
    let signed = match entry.signer {
        // Who controls the server holds the authority's key too: it may end a device, never put one in.
        None if !entry.revoked => return Err(Error::Untrusted("an enrolment that no device of the user has signed")),
        None => authority.iter().any(|key| Key::Ed25519(*key).verifies(&bytes, &entry.signature)),
        Some(signer) => signing_key(log, entry, signer).is_some_and(|key| key.verifies(&bytes, &entry.signature)),
    };
    if !signed {
        return Err(Error::Untrusted("a device log entry's signature does not verify"));
    }
    apply(log, entry)?;
    log.version = entry.version;
    log.hash = entry_hash(entry);
    Ok(())
}

/// The key of whoever may sign: an earlier active device, or the first device itself.
fn signing_key(log: &DeviceLog, entry: &Entry, signer: DeviceId) -> Option<Key> {
    let itself = entry.version == 1 && !entry.revoked && signer == entry.device.id;
    let key = if itself {
        &entry.device.auth_key
    } else {
        &log.devices.get(&signer).filter(|device| device.active)?.auth_key
    };
    Key::from_jwk(key)
}

fn apply(log: &mut DeviceLog, entry: &Entry) -> Result<(), Error> {
    let known = log.devices.get(&entry.device.id);
    match (entry.revoked, known) {
        (false, None) => {}
        (true, Some(device)) if device.active => {}
        _ => return Err(Error::Untrusted("a device log entry does not fit the devices before it")),
    }
    let device = LoggedDevice { active: !entry.revoked, ..entry.device.clone() };
    log.devices.insert(device.id, device);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::dpop::AuthKey;

    const USER: UserId = UserId::from_bytes([1; 16]);

    fn device(id: u8, key: &AuthKey) -> LoggedDevice {
        LoggedDevice {
            id: DeviceId::from_bytes([id; 16]),
            auth_key: key.jwk(),
            mls_keys: vec![(USER, 1, vec![id; 32])],
            active: true,
        }
    }

    fn entry(log: &DeviceLog, device: LoggedDevice, revoked: bool, signer: Option<DeviceId>, key: &AuthKey) -> Entry {
        let mut entry = Entry {
            user: USER,
            version: log.version + 1,
            previous_hash: log.hash,
            revoked,
            device,
            signer,
            signature: Vec::new(),
        };
        entry.signature = key.sign(&canonical_bytes(&entry)).to_vec();
        entry
    }

    #[test]
    fn canonical_bytes_are_as_the_protocol_says() {
        let key = AuthKey::from_seed(&[7; 32]);
        let mut entry = entry(&DeviceLog::default(), device(2, &key), false, None, &key);
        entry.device.auth_key = "k".to_owned();
        entry.device.mls_keys = vec![(USER, 1, vec![9, 9])];
        let mut expected = b"wardline device log v1\0".to_vec();
        expected.extend([1; 16]); // user
        expected.extend([0, 0, 0, 0, 0, 0, 0, 1]); // version
        expected.extend([0; 32]); // previous hash
        expected.push(1); // enrolled
        expected.extend([2; 16]); // device
        expected.extend([0, 0, 0, 1, b'k']); // auth key
        expected.extend([0, 0, 0, 20]); // MLS key: principal, suite, key
        expected.extend([1; 16]);
        expected.extend([0, 1, 9, 9]);
        assert_eq!(canonical_bytes(&entry), expected);
    }

    #[test]
    fn a_chain_of_vouched_devices_verifies_and_a_revoked_one_may_not_sign() {
        let (first, second, third) = (AuthKey::generate(), AuthKey::generate(), AuthKey::generate());
        let mut log = DeviceLog::default();
        let one = device(1, &first);
        let entry_one = entry(&log, one.clone(), false, Some(one.id), &first);
        verify_entry(&mut log, &entry_one, &[]).unwrap();
        let two = device(2, &second);
        let entry_two = entry(&log, two.clone(), false, Some(one.id), &first);
        verify_entry(&mut log, &entry_two, &[]).unwrap();
        let end_of_one = entry(&log, one.clone(), true, Some(two.id), &second);
        verify_entry(&mut log, &end_of_one, &[]).unwrap();
        assert!(!log.devices[&one.id].active && log.devices[&two.id].active);

        // A revoked device vouches for nobody.
        let late = entry(&log, device(3, &third), false, Some(one.id), &first);
        assert!(matches!(verify_entry(&mut log, &late, &[]), Err(Error::Untrusted(_))));
        // A device does not vouch for itself unless it is the first.
        let own = entry(&log, device(3, &third), false, Some(DeviceId::from_bytes([3; 16])), &third);
        assert!(matches!(verify_entry(&mut log, &own, &[]), Err(Error::Untrusted(_))));
        // An entry that forks off an earlier head.
        let fork = entry(&DeviceLog::default(), device(3, &third), false, Some(two.id), &second);
        assert!(matches!(verify_entry(&mut log, &fork, &[]), Err(Error::Untrusted(_))));
        // A changed byte.
        let mut changed = entry(&log, device(3, &third), false, Some(two.id), &second);
        changed.device.mls_keys[0].2[0] ^= 1;
        assert!(matches!(verify_entry(&mut log, &changed, &[]), Err(Error::Untrusted(_))));
        assert_eq!(log.version, 3, "a refused entry changes nothing");
    }

    #[test]
    fn the_authority_may_revoke_with_a_key_it_published() {
        let (first, authority) = (AuthKey::generate(), AuthKey::generate());
        let Some(Key::Ed25519(published)) = Key::from_jwk(&authority.jwk()) else { panic!("an Ed25519 key") };
        let mut log = DeviceLog::default();
        let one = device(1, &first);
        let joined = entry(&log, one.clone(), false, Some(one.id), &first);
        verify_entry(&mut log, &joined, &[published]).unwrap();
        let ended = entry(&log, one.clone(), true, None, &authority);
        assert!(verify_entry(&mut log.clone(), &ended, &[]).is_err());
        verify_entry(&mut log, &ended, &[published]).unwrap();
        assert!(!log.devices[&one.id].active);
    }

    #[test]
    fn the_authority_may_not_enrol() {
        let (first, second, authority) = (AuthKey::generate(), AuthKey::generate(), AuthKey::generate());
        let Some(Key::Ed25519(published)) = Key::from_jwk(&authority.jwk()) else { panic!("an Ed25519 key") };
        let mut log = DeviceLog::default();
        let from_nothing = entry(&log, device(1, &first), false, None, &authority);
        assert!(matches!(verify_entry(&mut log, &from_nothing, &[published]), Err(Error::Untrusted(_))));
        let one = device(1, &first);
        let joined = entry(&log, one.clone(), false, Some(one.id), &first);
        verify_entry(&mut log, &joined, &[published]).unwrap();
        let forged = entry(&log, device(2, &second), false, None, &authority);
        assert!(matches!(verify_entry(&mut log, &forged, &[published]), Err(Error::Untrusted(_))));
        assert_eq!((log.version, log.devices.len()), (1, 1), "a refused entry changes nothing");
    }

    #[test]
    fn p256_signatures_of_64_bytes_verify() {
        use openmls_basic_credential::SignatureKeyPair;
        use openmls_traits::signatures::Signer as _;
        let pair = SignatureKeyPair::new(SignatureScheme::ECDSA_SECP256R1_SHA256).unwrap();
        let public = pair.to_public_vec();
        let jwk = format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#,
            BASE64URL.encode(&public[1..33]),
            BASE64URL.encode(&public[33..65])
        );
        let signature = raw(&pair.sign(b"entry").unwrap());
        let key = Key::from_jwk(&jwk).unwrap();
        assert!(key.verifies(b"entry", &signature));
        assert!(!key.verifies(b"other", &signature));
    }

    /// DER to r ‖ s.
    fn raw(der: &[u8]) -> Vec<u8> {
        let r_length = der[3] as usize;
        let (r, rest) = (&der[4..4 + r_length], &der[4 + r_length..]);
        let s = &rest[2..];
        let fixed = |number: &[u8]| {
            let number = &number[number.len().saturating_sub(32)..];
            [vec![0; 32 - number.len()], number.to_vec()].concat()
        };
        [fixed(r), fixed(s)].concat()
    }
}
