//! Writes MLS messages of any content (RFC 9420 section 6), valid or not, with placeholders for signatures and secrets.

use bytes::Bytes;
use wardline_domain::mls::Credential;
use wardline_domain::{ConversationId, Digest};

/// A vector behind its length.
pub fn vector(content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32;
    let mut out = match content.len() {
        0..64 => vec![length as u8],
        64..16_384 => (length as u16 | 0x4000).to_be_bytes().to_vec(),
        _ => (length | 0x8000_0000).to_be_bytes().to_vec(),
    };
    out.extend(content);
    out
}

#[derive(Debug, Clone, Copy)]
pub enum Source {
    KeyPackage,
    Update,
    Commit,
}

pub fn leaf_node(credential: &Credential, key: &[u8], source: Source) -> Vec<u8> {
    leaf_node_of(1, &vector(&credential.encode()), key, source)
}

pub fn leaf_node_of(credential_type: u16, credential: &[u8], key: &[u8], source: Source) -> Vec<u8> {
    let mut out = vector(&[7; 32]);
    out.extend(vector(key));
    out.extend(credential_type.to_be_bytes());
    out.extend(credential);
    for list in [&[0, 1][..], &[0, 1, 0, 2], &[0xf1, 0xa0], &[], &[0, 1]] {
        out.extend(vector(list));
    }
    match source {
        Source::KeyPackage => {
            out.push(1);
            out.extend(1_000u64.to_be_bytes());
            out.extend(2_000u64.to_be_bytes());
        }
        Source::Update => out.push(2),
        Source::Commit => {
            out.push(3);
            out.extend(vector(&[9; 32]));
        }
    }
    out.extend(vector(&[]));
    out.extend(vector(&[5; 64]));
    out
}

/// A KeyPackage, without MLSMessage around it.
pub fn key_package(suite: u16, credential: &Credential, key: &[u8], last_resort: bool) -> Vec<u8> {
    key_package_of(suite, &leaf_node(credential, key, Source::KeyPackage), last_resort)
}

pub fn key_package_of(suite: u16, leaf: &[u8], last_resort: bool) -> Vec<u8> {
    let mut out = vec![0, 1];
    out.extend(suite.to_be_bytes());
    out.extend(vector(&[8; 32]));
    out.extend(leaf);
    out.extend(vector(if last_resort { &[0, 0x0a, 0] } else { &[0xf1, 0xa0, 1, 1] }));
    out.extend(vector(&[5; 64]));
    out
}

/// An MLSMessage.
pub fn framed(wire_format: u16, body: &[u8]) -> Bytes {
    let mut out = vec![0, 1];
    out.extend(wire_format.to_be_bytes());
    out.extend(body);
    out.into()
}

#[derive(Debug, Clone)]
pub enum Proposal {
    Add(Vec<u8>),
    Remove(u32),
    ExternalInit,
    Reference,
    Raw(u16, Vec<u8>),
}

impl Proposal {
    fn write(&self, out: &mut Vec<u8>) {
        let (kind, body): (u16, Vec<u8>) = match self {
            Self::Reference => {
                out.push(2);
                return out.extend(vector(&[6; 32]));
            }
            Self::Add(package) => (1, package.clone()),
            Self::Remove(leaf) => (3, leaf.to_be_bytes().to_vec()),
            Self::ExternalInit => (6, vector(&[4; 32])),
            Self::Raw(kind, body) => (*kind, body.clone()),
        };
        out.push(1);
        out.extend(kind.to_be_bytes());
        out.extend(body);
    }
}

/// A PublicMessage with a commit.
#[derive(Debug, Clone)]
pub struct Commit {
    pub conversation: ConversationId,
    pub generation: u32,
    pub epoch: u64,
    /// The committer's leaf; `None` for a joiner.
    pub sender: Option<u32>,
    pub authenticated_data: Vec<u8>,
    pub proposals: Vec<Proposal>,
    /// The path's leaf node.
    pub path: Option<Vec<u8>>,
}

impl Commit {
    pub fn encode(&self) -> Bytes {
        let mut group = self.conversation.as_bytes().to_vec();
        group.extend(self.generation.to_be_bytes());
        let mut out = vector(&group);
        out.extend(self.epoch.to_be_bytes());
        match self.sender {
            Some(leaf) => {
                out.push(1);
                out.extend(leaf.to_be_bytes());
            }
            None => out.push(4),
        }
        out.extend(vector(&self.authenticated_data));
        out.push(3);
        let mut proposals = Vec::new();
        self.proposals.iter().for_each(|proposal| proposal.write(&mut proposals));
        out.extend(vector(&proposals));
        match &self.path {
            None => out.push(0),
            Some(leaf) => {
                out.push(1);
                out.extend(leaf);
                out.extend(vector(&path_node()));
            }
        }
        out.extend(vector(&[5; 64])); // signature
        out.extend(vector(&[3; 32])); // confirmation_tag
        if self.sender.is_some() {
            out.extend(vector(&[2; 32])); // membership_tag
        }
        framed(1, &out)
    }
}

/// An UpdatePathNode with two secrets.
fn path_node() -> Vec<u8> {
    let mut secrets = Vec::new();
    for _ in 0..2 {
        secrets.extend(vector(&[1; 32]));
        secrets.extend(vector(&[2; 48]));
    }
    let mut node = vector(&[7; 32]);
    node.extend(vector(&secrets));
    node
}

/// A PrivateMessage.
pub fn private(conversation: ConversationId, epoch: u64, content_type: u8, authenticated_data: &[u8]) -> Bytes {
    let mut group = conversation.as_bytes().to_vec();
    group.extend(0u32.to_be_bytes());
    let mut out = vector(&group);
    out.extend(epoch.to_be_bytes());
    out.push(content_type);
    out.extend(vector(authenticated_data));
    out.extend(vector(&[1; 28]));
    out.extend(vector(&[2; 300]));
    framed(2, &out)
}

/// A Welcome for these references.
pub fn welcome(suite: u16, joiners: &[Digest]) -> Bytes {
    let mut secrets = Vec::new();
    for (number, joiner) in joiners.iter().enumerate() {
        secrets.extend(vector(joiner.as_bytes()));
        secrets.extend(vector(&[1; 32]));
        secrets.extend(vector(&[number as u8; 90]));
    }
    let mut out = suite.to_be_bytes().to_vec();
    out.extend(vector(&secrets));
    out.extend(vector(&[4; 500]));
    framed(3, &out)
}
