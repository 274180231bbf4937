//! Public commits (RFC 9420 section 12.4): what they do to the roster.
//!
//! Deliberately absent: signatures, MACs, tree hashes and the path's secrets; devices check those. Proposals by
//! reference and every proposal but Add, Remove and ExternalInit are refused.

use bytes::Bytes;

use super::header::{WIRE_PUBLIC, public, wire_format};
use super::key_package::package;
use super::leaf::{Source, leaf_node};
use super::reader::Reader;
use super::{AddedLeaf, Commit, Form, InvalidMls, LeafNode, MAX_ADDS};

/// ProposalOrRefType (RFC 9420 section 12.4).
const BY_VALUE: u8 = 1;

/// ProposalType (RFC 9420 section 17.4).
const PROPOSAL_ADD: u16 = 1;
const PROPOSAL_REMOVE: u16 = 3;
const PROPOSAL_EXTERNAL_INIT: u16 = 6;

/// What the proposals of a commit come to.
#[derive(Default)]
struct Proposals {
    removes: Vec<u32>,
    adds: Vec<AddedLeaf>,
    external_inits: usize,
}

/// Reads a public commit. Refuses proposals by reference, ReInit, PreSharedKey, Update, GroupContextExtensions, trailing
/// bytes, more than 128 adds, credentials that are not ours.
///
/// # Errors
/// As said, and when the proposals do not fit the sender or a path is missing (RFC 9420 sections 12.2 and 12.4).
pub fn commit(mls_message: &Bytes) -> Result<Commit, InvalidMls> {
    let mut reader = Reader::new(mls_message);
    if wire_format(&mut reader)? != WIRE_PUBLIC {
        return Err(InvalidMls("the commit is not a public message"));
    }
    let header = public(&mut reader)?;
    let proposals = proposals(reader.vector()?)?;
    let path_leaf = if reader.present()? { Some(path(&mut reader)?) } else { None };
    authentication(&mut reader, header.form)?;
    reader.finish()?;
    fits_sender(header.form, &proposals, path_leaf.is_some())?;
    Ok(Commit { header, removes: proposals.removes, adds: proposals.adds, path_leaf })
}

fn proposals(mut list: Reader<'_>) -> Result<Proposals, InvalidMls> {
    let mut read = Proposals::default();
    while !list.is_empty() {
        if list.u8()? != BY_VALUE {
            return Err(InvalidMls("a proposal is by reference"));
        }
        match list.u16()? {
            PROPOSAL_ADD if read.adds.len() == MAX_ADDS => return Err(InvalidMls("the commit adds more than 128")),
            PROPOSAL_ADD => read.adds.push(add(&mut list)?),
            PROPOSAL_REMOVE => read.removes.push(list.u32()?),
            PROPOSAL_EXTERNAL_INIT => {
                list.skip_opaque()?; // kem_output
                read.external_inits += 1;
            }
            _ => return Err(InvalidMls("a proposal is neither Add, Remove nor ExternalInit")),
        }
    }
    Ok(read)
}

fn add(reader: &mut Reader<'_>) -> Result<AddedLeaf, InvalidMls> {
    let package = package(reader)?;
    Ok(AddedLeaf { suite: package.suite, leaf: package.leaf, key_package_ref: package.reference })
}

/// Reads an UpdatePath (RFC 9420 section 7.6).
fn path(reader: &mut Reader<'_>) -> Result<LeafNode, InvalidMls> {
    let (leaf, source) = leaf_node(reader)?;
    if source != Source::Commit {
        return Err(InvalidMls("the path's leaf is not made for a commit"));
    }
    let mut nodes = reader.vector()?;
    while !nodes.is_empty() {
        nodes.skip_opaque()?; // encryption_key
        let mut secrets = nodes.vector()?;
        while !secrets.is_empty() {
            secrets.skip_opaque()?; // kem_output
            secrets.skip_opaque()?; // ciphertext
        }
    }
    Ok(leaf)
}

/// Reads what follows a commit: signature, confirmation tag and, of a member, membership tag.
fn authentication(reader: &mut Reader<'_>, form: Form) -> Result<(), InvalidMls> {
    reader.skip_opaque()?;
    reader.skip_opaque()?;
    match form {
        Form::MemberCommit(_) => reader.skip_opaque(),
        Form::NewMemberCommit | Form::PrivateApplication => Ok(()),
    }
}

/// A commit that devices must refuse may not end an epoch, as far as that shows without the group's state.
fn fits_sender(form: Form, proposals: &Proposals, path: bool) -> Result<(), InvalidMls> {
    let Proposals { removes, adds, external_inits } = proposals;
    if matches!(form, Form::MemberCommit(_)) {
        if *external_inits != 0 {
            return Err(InvalidMls("a member's commit has an ExternalInit"));
        }
        if !path && (adds.is_empty() || !removes.is_empty()) {
            return Err(InvalidMls("the commit lacks a path"));
        }
        return Ok(());
    }
    if *external_inits != 1 || !adds.is_empty() || removes.len() > 1 {
        return Err(InvalidMls("a joiner's commit has other proposals than one ExternalInit and at most one Remove"));
    }
    if path { Ok(()) } else { Err(InvalidMls("the commit lacks a path")) }
}
