//! Welcomes (RFC 9420 section 12.4.3.1): whom they are for, and one joiner's share.
//!
//! Deliberately absent: what they say. Both parts are encrypted.

use bytes::Bytes;

use super::InvalidMls;
use super::header::{VERSION_MLS10, WIRE_WELCOME, wire_format};
use super::key_package::suite;
use super::reader::{Reader, encode_length};
use crate::Digest;

/// A Welcome, checked as far as its joiners.
struct Welcome<'a> {
    suite: u16,
    /// The list of EncryptedGroupSecrets.
    secrets: Reader<'a>,
    encrypted_group_info: &'a [u8],
}

/// The KeyPackageRefs that an MLSMessage with a Welcome is for, in its order.
///
/// # Errors
/// When it is something else, has bytes after it or is of a suite other than 1 and 2.
pub fn welcome_refs(mls_message: &Bytes) -> Result<Vec<Digest>, InvalidMls> {
    let mut secrets = welcome(mls_message)?.secrets;
    let mut references = Vec::new();
    while !secrets.is_empty() {
        references.push(joiner(&mut secrets)?.0);
    }
    Ok(references)
}

/// The Welcome cut down to one joiner's secrets, so that 1,000 joiners are not each sent 1,000 secrets.
///
/// # Errors
/// As [`welcome_refs`], and when the Welcome is not for `wanted`.
pub fn slice_welcome(mls_message: &Bytes, wanted: Digest) -> Result<Bytes, InvalidMls> {
    let Welcome { suite, mut secrets, encrypted_group_info } = welcome(mls_message)?;
    let mut found = None;
    while !secrets.is_empty() {
        let (reference, entry) = joiner(&mut secrets)?;
        if found.is_none() && reference == wanted {
            found = Some(entry);
        }
    }
    let entry = found.ok_or(InvalidMls("the Welcome is not for this joiner"))?;
    let (entry_length, entry_used) = encode_length(entry.len())?;
    let (info_length, info_used) = encode_length(encrypted_group_info.len())?;
    let parts: [&[u8]; 7] = [
        &VERSION_MLS10.to_be_bytes(),
        &WIRE_WELCOME.to_be_bytes(),
        &suite.to_be_bytes(),
        &entry_length[..entry_used],
        entry,
        &info_length[..info_used],
        encrypted_group_info,
    ];
    Ok(Bytes::from(parts.concat()))
}

fn welcome(mls_message: &Bytes) -> Result<Welcome<'_>, InvalidMls> {
    let mut reader = Reader::new(mls_message);
    if wire_format(&mut reader)? != WIRE_WELCOME {
        return Err(InvalidMls("the message is not a Welcome"));
    }
    let suite = suite(&mut reader)?;
    let secrets = reader.vector()?;
    let encrypted_group_info = reader.opaque()?;
    reader.finish()?;
    Ok(Welcome { suite, secrets, encrypted_group_info })
}

/// Reads one EncryptedGroupSecrets: its joiner, and its bytes.
fn joiner<'a>(secrets: &mut Reader<'a>) -> Result<(Digest, &'a [u8]), InvalidMls> {
    let start = secrets.clone();
    let reference =
        Digest::try_from(secrets.opaque()?).map_err(|_| InvalidMls("a joiner is not a SHA-256 reference"))?;
    secrets.skip_opaque()?; // kem_output
    secrets.skip_opaque()?; // ciphertext
    Ok((reference, secrets.since(&start)))
}
