//! The head cell: what the fold keeps of a conversation beside its roster, and its canonical bytes.
//!
//! Deliberately absent: the roster (it has its own table) and the conversation's id (it is the cell's key).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::RECENT_SENDERS;
use crate::Digest;
use crate::codec::{Decoder, Encoder, Refused};
use crate::envelope::{Epoch, Generation, Sequence};
use crate::ids::{DeviceId, MessageId, TenantId};
use crate::position::Position;
use crate::record::{BlobRef, ConversationKind, GroupStateRef, MembershipRule, Policy};

/// The version of the encoding. A new one gets a new byte.
const HEAD_V1: u8 = 0x01;

/// What stands in the head cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The last record applied.
    pub last: Position,
    /// That record's digest.
    pub last_digest: Digest,
    /// The position of the Create record.
    pub created: Position,
    /// That record's content digest (of tenant, kind, suite, policy, creator, group state; not of its acceptance time), so
    /// that a repeated Create is told from another one.
    pub create_digest: Digest,
    /// The home tenant.
    pub tenant: TenantId,
    /// The kind.
    pub kind: ConversationKind,
    /// The MLS cipher suite.
    pub suite: u16,
    /// The latest sequence.
    pub sequence: Sequence,
    /// The chain hash at `sequence`.
    pub chain: Digest,
    /// The MLS group's generation.
    pub generation: Generation,
    /// The MLS group's epoch.
    pub epoch: Epoch,
    /// The message id of the commit that led to `epoch`; `None` at epoch 0.
    pub epoch_winner: Option<MessageId>,
    /// The roster's version.
    pub members_version: u64,
    /// The policy.
    pub policy: Policy,
    /// The group state of `epoch`.
    pub group_state: GroupStateRef,
    /// Set aside, and why.
    pub quarantined: Option<String>,
    /// The newest id of the most recent senders (devices), with the position it was seen at. Members only.
    pub newest: BTreeMap<DeviceId, Newest>,
    /// No id that has an outcome is greater, but for those of the devices in `newest`: the greatest id evicted from there,
    /// seen of a device that was no member, or possible before the conversation existed.
    pub floor: Option<MessageId>,
}

/// A sender's newest id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The id: no id of the sender that has an outcome is greater.
    pub message: MessageId,
    /// Where it was seen: what makes a sender recent.
    pub at: Position,
}

/// The bytes are not those of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a head: {0}")]
pub struct InvalidHead(pub &'static str);

impl Head {
    /// Canonical bytes: version byte first, maps sorted.
    pub fn encode(&self) -> Bytes {
        let mut out = Encoder::with_capacity(512 + self.newest.len() * 40);
        out.u8(HEAD_V1).u64(self.last.as_u64()).raw(self.last_digest.as_bytes());
        out.u64(self.created.as_u64()).raw(self.create_digest.as_bytes());
        out.raw(self.tenant.as_bytes()).u8(self.kind as u8).u16(self.suite);
        out.u64(self.sequence.0).raw(self.chain.as_bytes());
        out.u32(self.generation.0).u64(self.epoch.0).message(self.epoch_winner);
        out.u64(self.members_version);
        write_policy(&mut out, &self.policy);
        write_group_state(&mut out, &self.group_state);
        match &self.quarantined {
            None => out.u8(0),
            Some(reason) => out.u8(1).text(reason),
        };
        out.count(self.newest.len());
        for (device, newest) in &self.newest {
            out.raw(device.as_bytes()).raw(newest.message.as_bytes()).u64(newest.at.as_u64());
        }
        out.message(self.floor);
        out.into_vec().into()
    }

    /// Reads what [`Head::encode`] wrote.
    ///
    /// # Errors
    /// On every other byte string.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidHead> {
        read_head(Decoder::new(bytes)).map_err(InvalidHead)
    }
}

fn read_head(mut input: Decoder<'_>) -> Result<Head, Refused> {
    if input.u8()? != HEAD_V1 {
        return Err("the version is unknown");
    }
    // The fields are evaluated in the order written here, which is the order of the bytes.
    let head = Head {
        last: Position::from_u64(input.u64()?),
        last_digest: input.digest()?,
        created: Position::from_u64(input.u64()?),
        create_digest: input.digest()?,
        tenant: TenantId::from_bytes(input.array()?),
        kind: read_kind(input.u8()?)?,
        suite: input.u16()?,
        sequence: Sequence(input.u64()?),
        chain: input.digest()?,
        generation: Generation(input.u32()?),
        epoch: Epoch(input.u64()?),
        epoch_winner: input.message()?,
        members_version: input.u64()?,
        policy: read_policy(&mut input)?,
        group_state: read_group_state(&mut input)?,
        quarantined: if input.flag()? { Some(input.text()?) } else { None },
        newest: read_newest(&mut input)?,
        floor: input.message()?,
    };
    input.end()?;
    Ok(head)
}

fn read_newest(input: &mut Decoder<'_>) -> Result<BTreeMap<DeviceId, Newest>, Refused> {
    let count = usize::try_from(input.u32()?).map_err(|_| "too many senders")?;
    if count > RECENT_SENDERS {
        return Err("too many senders");
    }
    let mut newest = BTreeMap::new();
    for _ in 0..count {
        let device = DeviceId::from_bytes(input.array()?);
        if newest.last_key_value().is_some_and(|(last, _)| *last >= device) {
            return Err("the senders are not sorted");
        }
        let message = MessageId::from_bytes(input.array()?);
        newest.insert(device, Newest { message, at: Position::from_u64(input.u64()?) });
    }
    Ok(newest)
}

pub(super) fn write_policy(out: &mut Encoder, policy: &Policy) {
    out.u64(policy.version).u8(policy.membership as u8).u32(policy.retention_days);
}

fn read_policy(input: &mut Decoder<'_>) -> Result<Policy, Refused> {
    Ok(Policy { version: input.u64()?, membership: read_membership(input.u8()?)?, retention_days: input.u32()? })
}

pub(super) fn write_group_state(out: &mut Encoder, state: &GroupStateRef) {
    out.u32(state.generation.0).u64(state.epoch.0);
    for blob in [&state.group_info, &state.ratchet_tree, &state.sealed_group_data] {
        out.raw(blob.digest.as_bytes()).u32(blob.length);
    }
}

fn read_group_state(input: &mut Decoder<'_>) -> Result<GroupStateRef, Refused> {
    Ok(GroupStateRef {
        generation: Generation(input.u32()?),
        epoch: Epoch(input.u64()?),
        group_info: read_blob(input)?,
        ratchet_tree: read_blob(input)?,
        sealed_group_data: read_blob(input)?,
    })
}

fn read_blob(input: &mut Decoder<'_>) -> Result<BlobRef, Refused> {
    Ok(BlobRef { digest: input.digest()?, length: input.u32()? })
}

const fn read_kind(number: u8) -> Result<ConversationKind, Refused> {
    match number {
        1 => Ok(ConversationKind::Group),
        2 => Ok(ConversationKind::Direct),
        3 => Ok(ConversationKind::SelfNotes),
        4 => Ok(ConversationKind::Inbox),
        _ => Err("a kind is unknown"),
    }
}

const fn read_membership(number: u8) -> Result<MembershipRule, Refused> {
    match number {
        1 => Ok(MembershipRule::Members),
        2 => Ok(MembershipRule::Admins),
        _ => Err("a membership rule is unknown"),
    }
}
