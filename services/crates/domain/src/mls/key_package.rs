//! Key packages (RFC 9420 section 10) and their references (section 5.2).
//!
//! Deliberately absent: whether a lifetime is over. Nothing here asks a clock; the directory does.

use bytes::Bytes;

use super::header::{VERSION_MLS10, WIRE_KEY_PACKAGE, wire_format};
use super::leaf::{Source, extensions, leaf_node};
use super::reader::{Reader, encode_length};
use super::{InvalidMls, KeyPackage};
use crate::Digest;

/// The label that separates key package references from other hashes.
const REFERENCE_LABEL: &[u8] = b"MLS 1.0 KeyPackage Reference";
/// ExtensionType last_resort, as the IANA registry for MLS lists it.
const EXTENSION_LAST_RESORT: u16 = 0x000a;

/// Reads an MLSMessage with a KeyPackage.
///
/// # Errors
/// When it is something else, has bytes after it, is of a suite other than 1 and 2 or of a credential not ours.
pub fn key_package(mls_message: &Bytes) -> Result<KeyPackage, InvalidMls> {
    let mut reader = Reader::new(mls_message);
    if wire_format(&mut reader)? != WIRE_KEY_PACKAGE {
        return Err(InvalidMls("the message is not a key package"));
    }
    let package = package(&mut reader)?;
    reader.finish()?;
    Ok(package)
}

/// Reads a KeyPackage.
pub(super) fn package(reader: &mut Reader<'_>) -> Result<KeyPackage, InvalidMls> {
    let start = reader.clone();
    if reader.u16()? != VERSION_MLS10 {
        return Err(InvalidMls("the key package's version is not mls10"));
    }
    let suite = suite(reader)?;
    reader.skip_opaque()?; // init_key
    let (leaf, source) = leaf_node(reader)?;
    let Source::KeyPackage { not_before, not_after } = source else {
        return Err(InvalidMls("the key package's leaf is not made for one"));
    };
    let mut last_resort = false;
    extensions(reader, |kind| last_resort |= kind == EXTENSION_LAST_RESORT)?;
    reader.skip_opaque()?; // signature
    let reference = reference(reader.since(&start))?;
    Ok(KeyPackage { suite, leaf, not_before, not_after, last_resort, reference })
}

/// Reads a suite. Those known here hash with SHA-256, which references and Welcomes rely on.
pub(super) fn suite(reader: &mut Reader<'_>) -> Result<u16, InvalidMls> {
    match reader.u16()? {
        suite @ (1 | 2) => Ok(suite),
        _ => Err(InvalidMls("the cipher suite is neither 1 nor 2")),
    }
}

/// RefHash: the hash of the label and the value, each behind its length.
fn reference(package: &[u8]) -> Result<Digest, InvalidMls> {
    let (label_length, label_used) = encode_length(REFERENCE_LABEL.len())?;
    let (length, used) = encode_length(package.len())?;
    Ok(Digest::of_parts(&[&label_length[..label_used], REFERENCE_LABEL, &length[..used], package]))
}
