//! Leaf nodes and credentials (RFC 9420 section 7.2): who a leaf belongs to.
//!
//! Deliberately absent: encryption keys, capabilities and extensions, beyond their being well-formed; X.509 credentials.

use super::reader::Reader;
use super::{Credential, InvalidMls, LeafNode};
use crate::ids::{DeviceId, TenantId, UserId};

/// CredentialType basic (RFC 9420 section 17.5).
const CREDENTIAL_BASIC: u16 = 1;
/// The first byte of our credential.
const CREDENTIAL_VERSION: u8 = 1;
/// What our credential takes.
const CREDENTIAL_LENGTH: usize = 1 + 3 * 16;

/// Where a leaf node comes from (RFC 9420 section 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A key package, with its lifetime in seconds since the Unix epoch.
    KeyPackage { not_before: u64, not_after: u64 },
    /// An Update proposal.
    Update,
    /// The path of a commit.
    Commit,
}

impl Credential {
    /// Its bytes.
    pub fn encode(&self) -> [u8; 49] {
        let mut bytes = [CREDENTIAL_VERSION; CREDENTIAL_LENGTH];
        bytes[1..17].copy_from_slice(self.tenant.as_bytes());
        bytes[17..33].copy_from_slice(self.principal.as_bytes());
        bytes[33..].copy_from_slice(self.device.as_bytes());
        bytes
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// When the length is not 49 or the first byte not 0x01.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidMls> {
        let refused = InvalidMls("the credential is not one of ours");
        let bytes: &[u8; CREDENTIAL_LENGTH] = bytes.try_into().map_err(|_| refused)?;
        if bytes[0] != CREDENTIAL_VERSION {
            return Err(refused);
        }
        Ok(Self {
            tenant: TenantId::try_from(&bytes[1..17]).map_err(|_| refused)?,
            principal: UserId::try_from(&bytes[17..33]).map_err(|_| refused)?,
            device: DeviceId::try_from(&bytes[33..]).map_err(|_| refused)?,
        })
    }
}

/// Reads a leaf node, signature included.
pub(super) fn leaf_node(reader: &mut Reader<'_>) -> Result<(LeafNode, Source), InvalidMls> {
    reader.skip_opaque()?; // encryption_key
    let signature_key = reader.shared()?;
    if reader.u16()? != CREDENTIAL_BASIC {
        return Err(InvalidMls("the credential is not basic"));
    }
    let credential = Credential::decode(reader.opaque()?)?;
    capabilities(reader)?;
    let source = source(reader)?;
    extensions(reader, |_| ())?;
    reader.skip_opaque()?; // signature
    Ok((LeafNode { credential, signature_key }, source))
}

/// Reads capabilities: versions, suites, extensions, proposals and credentials, each a list of 16-bit numbers.
fn capabilities(reader: &mut Reader<'_>) -> Result<(), InvalidMls> {
    for _ in 0..5 {
        let mut list = reader.vector()?;
        while !list.is_empty() {
            list.u16()?;
        }
    }
    Ok(())
}

fn source(reader: &mut Reader<'_>) -> Result<Source, InvalidMls> {
    match reader.u8()? {
        1 => Ok(Source::KeyPackage { not_before: reader.u64()?, not_after: reader.u64()? }),
        2 => Ok(Source::Update),
        3 => reader.skip_opaque().map(|()| Source::Commit), // parent_hash
        _ => Err(InvalidMls("the leaf node's source is unknown")),
    }
}

/// Reads a list of extensions and shows the type of each.
pub(super) fn extensions(reader: &mut Reader<'_>, mut seen: impl FnMut(u16)) -> Result<(), InvalidMls> {
    let mut list = reader.vector()?;
    while !list.is_empty() {
        seen(list.u16()?);
        list.skip_opaque()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_version_tenant_principal_device() {
        let credential = Credential {
            tenant: TenantId::from_bytes([2; 16]),
            principal: UserId::from_bytes([3; 16]),
            device: DeviceId::from_bytes([4; 16]),
        };
        let bytes = credential.encode();
        assert_eq!(bytes[0], 1);
        assert_eq!((bytes[1], bytes[16], bytes[17], bytes[32], bytes[33], bytes[48]), (2, 2, 3, 3, 4, 4));
        assert_eq!(Credential::decode(&bytes), Ok(credential));
    }

    #[test]
    fn other_versions_and_lengths_are_refused() {
        let mut bytes = [1; 49];
        assert!(Credential::decode(&bytes).is_ok());
        assert!(Credential::decode(&bytes[..48]).is_err());
        assert!(Credential::decode(&[1; 50]).is_err());
        bytes[0] = 2;
        assert!(Credential::decode(&bytes).is_err());
    }
}
