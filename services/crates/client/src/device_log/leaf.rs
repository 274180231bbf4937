//! Leaves of MLS groups against device logs: a leaf counts only when a log of its user, verified and pinned here, says that
//! the device was enrolled with the leaf's key. Pure but for reading the file.
//!
//! Deliberately absent: asking anybody. The logs are read before the step ([`super::follow::learn`]).

use openmls::prelude::{Credential as MlsCredential, LeafNode, Member, MlsGroup, RatchetTreeIn};
use rusqlite::Connection;
use wardline_domain::mls::{self, Credential};
use wardline_domain::{DeviceId, UserId};

use crate::core::Identity;
use crate::error::Error;
use crate::mls::group::credential_of;
use crate::store;

/// What a leaf claims.
pub(crate) struct Leaf {
    /// Whose it says it is; `None` when the credential is not of our form.
    credential: Option<Credential>,
    /// The signature key.
    key: Vec<u8>,
}

/// How a leaf got before this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A commit brings it: the device must not be revoked.
    Joins,
    /// It was in the tree before: a revoked device stays there until a commit removes it.
    Stays,
}

/// Whose leaf it claims to be that no device log vouches for; zeros when it does not say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stranger {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
}

impl Leaf {
    fn new(credential: &MlsCredential, key: &[u8]) -> Self {
        Self { credential: credential_of(credential), key: key.to_vec() }
    }

    /// Of a leaf node that openmls has verified.
    pub(crate) fn of(node: &LeafNode) -> Self {
        Self::new(node.credential(), node.signature_key().as_slice())
    }

    /// Whose it says it is.
    pub(crate) fn claimant(&self) -> Stranger {
        self.credential.as_ref().map_or(
            Stranger { user: UserId::from_bytes([0; 16]), device: DeviceId::from_bytes([0; 16]) },
            |credential| Stranger { user: credential.principal, device: credential.device },
        )
    }

    /// Whether a member's path leaves its identity and key as they were.
    pub(crate) fn is(&self, member: &Member) -> bool {
        self.key == member.signature_key && self.credential == credential_of(&member.credential)
    }
}

impl From<&mls::LeafNode> for Leaf {
    fn from(leaf: &mls::LeafNode) -> Self {
        Self { credential: Some(leaf.credential), key: leaf.signature_key.to_vec() }
    }
}

/// All leaves of a group.
pub(crate) fn of_group(group: &MlsGroup) -> Vec<Leaf> {
    group.members().map(|member| Leaf::new(&member.credential, &member.signature_key)).collect()
}

/// All leaves of a tree that came from the server, to learn their logs. Nothing of it is verified.
pub(crate) fn of_tree(tree: &RatchetTreeIn) -> Vec<Leaf> {
    tree.leaves().map(|leaf| Leaf::new(leaf.credential(), leaf.signature_key().as_slice())).collect()
}

/// The leaves that a commit would bring, to learn their logs. Nothing of it is verified; empty when it does not parse.
pub(crate) fn of_commit(mls_message: &bytes::Bytes) -> Vec<Leaf> {
    let Ok(commit) = mls::commit(mls_message) else { return Vec::new() };
    let joiner = commit.path_leaf.as_ref().filter(|_| commit.header.form == mls::Form::NewMemberCommit);
    commit.adds.iter().map(|add| &add.leaf).chain(joiner).map(Leaf::from).collect()
}

/// The user whose log is to be read before the leaf can be judged. A device's keys never change: what is pinned needs no
/// further look.
pub(crate) fn unknown_user(connection: &Connection, me: &Identity, leaf: &Leaf) -> Result<Option<UserId>, Error> {
    let tenant = me.account()?.tenant;
    let Some(credential) = leaf.credential.filter(|leaf| leaf.tenant == tenant && leaf.device != me.device) else {
        return Ok(None);
    };
    let logged = store::device_logs::device(connection, credential.principal, credential.device)?;
    let known = logged.is_some_and(|logged| logged.mls_keys.iter().any(|(.., key)| *key == leaf.key));
    Ok((!known).then_some(credential.principal))
}

/// The first of `leaves` that no device log vouches for.
pub(crate) fn stranger(
    connection: &Connection,
    me: &Identity,
    suite: u16,
    standing: Standing,
    leaves: &[Leaf],
) -> Result<Option<Stranger>, Error> {
    for leaf in leaves {
        if !is_vouched(connection, me, suite, standing, leaf)? {
            return Ok(Some(leaf.claimant()));
        }
    }
    Ok(None)
}

fn is_vouched(
    connection: &Connection,
    me: &Identity,
    suite: u16,
    standing: Standing,
    leaf: &Leaf,
) -> Result<bool, Error> {
    let account = me.account()?;
    let Some(credential) = leaf.credential.filter(|credential| credential.tenant == account.tenant) else {
        return Ok(false);
    };
    if credential.device == me.device {
        return Ok(credential.principal == account.user && leaf.key == me.signer.public());
    }
    let Some(logged) = store::device_logs::device(connection, credential.principal, credential.device)? else {
        return Ok(false);
    };
    let listed = logged.has_mls_key(credential.principal, suite, &leaf.key);
    Ok(listed && (standing == Standing::Stays || logged.active))
}
