//! Entries of a user's device log as they are signed and hashed: byte for byte what the protocol's comment on
//! `DeviceLogEntry` says. Clients compute the same.
//!
//! Deliberately absent: who may sign. That is the enrolment's.

use wardline_domain::{DeviceId, Digest, UserId};
use wardline_store::directory::{DeviceLogChange, MlsKeyRow};

/// What the canonical bytes start with.
const DOMAIN: &[u8] = b"wardline device log v1\0";

/// What of an entry is signed.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Whose log.
    pub user: UserId,
    /// From 1, dense.
    pub version: u64,
    /// The hash of the entry before; zeros for the first.
    pub previous_hash: Digest,
    /// What happened.
    pub change: DeviceLogChange,
    /// To which device.
    pub device: DeviceId,
    /// Its authentication key's JWK, as sent.
    pub auth_key: &'a str,
    /// Its MLS keys, in order.
    pub mls_keys: &'a [MlsKeyRow],
}

impl Entry<'_> {
    /// The bytes that are signed.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut bytes = DOMAIN.to_vec();
        bytes.extend_from_slice(self.user.as_bytes());
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(self.previous_hash.as_bytes());
        bytes.push(self.change as u8);
        bytes.extend_from_slice(self.device.as_bytes());
        push(&mut bytes, &[self.auth_key.as_bytes()]);
        for key in self.mls_keys {
            push(&mut bytes, &[key.principal.as_bytes(), &key.suite.to_be_bytes(), &key.public_key]);
        }
        bytes
    }

    /// What the next entry names as its `previous_hash`. For the tenant authority, sixteen zeros stand for the signer's id.
    pub fn hash(&self, signer: Option<DeviceId>, signature: &[u8]) -> Digest {
        let signer = signer.map_or([0; 16], |signer| *signer.as_bytes());
        Digest::of_parts(&[&self.canonical_bytes(), &signer, signature])
    }
}

fn push(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;

    use super::*;

    #[test]
    fn golden_vector_of_canonical_bytes_and_hash() {
        let user = UserId::from_bytes([1; 16]);
        let keys = [MlsKeyRow { principal: user, suite: 1, public_key: Bytes::from_static(&[9, 9]) }];
        let entry = Entry {
            user,
            version: 1,
            previous_hash: Digest::default(),
            change: DeviceLogChange::Enrolled,
            device: DeviceId::from_bytes([2; 16]),
            auth_key: "k",
            mls_keys: &keys,
        };
        let mut expected = b"wardline device log v1\0".to_vec();
        expected.extend([1; 16]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0; 32]);
        expected.push(1);
        expected.extend([2; 16]);
        expected.extend([0, 0, 0, 1, b'k', 0, 0, 0, 20]);
        expected.extend([1; 16]);
        expected.extend([0, 1, 9, 9]);
        assert_eq!(entry.canonical_bytes(), expected);
        expected.extend([0; 16]);
        expected.extend([7; 64]);
        assert_eq!(entry.hash(None, &[7; 64]), Digest::of(&expected));
    }
}
