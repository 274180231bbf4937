//! Canonical bytes of rosters and deltas, as the members table keeps them.
//!
//! Deliberately absent: chunking; the store cuts. Deltas and rosters begin differently, so that one is never read as the
//! other.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{InvalidRoster, Leaf, Role, Roster, RosterDelta};
use crate::codec::{Decoder, Encoder, Refused};
use crate::envelope::Epoch;
use crate::ids::{DeviceId, TenantId, UserId};

/// Versions of the encodings. A new one gets a new byte.
const ROSTER_V1: u8 = 0x01;
const DELTA_V1: u8 = 0x81;
/// What a leaf takes: three ids, a digest, the epoch, two bytes.
const LEAF_BYTES: usize = 90;

impl Roster {
    /// The whole roster in canonical bytes (version byte first).
    pub fn encode(&self) -> Bytes {
        let mut out = Encoder::with_capacity(13 + self.leaves.len() * (4 + LEAF_BYTES));
        out.u8(ROSTER_V1).u64(self.version).count(self.leaves.len());
        for (index, leaf) in &self.leaves {
            out.u32(*index);
            write_leaf(&mut out, leaf);
        }
        out.into_vec().into()
    }

    /// Reads what [`Roster::encode`] wrote.
    ///
    /// # Errors
    /// On every other byte string.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRoster> {
        read_roster(Decoder::new(bytes)).map_err(InvalidRoster)
    }
}

impl RosterDelta {
    /// The delta in canonical bytes (version byte first).
    pub fn encode(&self) -> Bytes {
        let mut out = Encoder::with_capacity(13 + self.leaves.len() * (5 + LEAF_BYTES));
        out.u8(DELTA_V1).u64(self.to).count(self.leaves.len());
        for (index, leaf) in &self.leaves {
            out.u32(*index).u8(u8::from(leaf.is_some()));
            if let Some(leaf) = leaf {
                write_leaf(&mut out, leaf);
            }
        }
        out.into_vec().into()
    }

    /// Reads what [`RosterDelta::encode`] wrote.
    ///
    /// # Errors
    /// On every other byte string.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRoster> {
        read_delta(Decoder::new(bytes)).map_err(InvalidRoster)
    }
}

fn read_roster(mut input: Decoder<'_>) -> Result<Roster, Refused> {
    if input.u8()? != ROSTER_V1 {
        return Err("the version is unknown");
    }
    let version = input.u64()?;
    let leaves = read_indexed(&mut input, read_leaf)?;
    input.end()?;
    Ok(Roster::new(version, leaves))
}

fn read_delta(mut input: Decoder<'_>) -> Result<RosterDelta, Refused> {
    if input.u8()? != DELTA_V1 {
        return Err("the version is unknown");
    }
    let to = input.u64()?;
    let leaves = read_indexed(&mut input, |input| if input.flag()? { read_leaf(input).map(Some) } else { Ok(None) })?;
    input.end()?;
    Ok(RosterDelta { to, leaves })
}

/// Reads a count and as many entries, their indexes rising.
fn read_indexed<T>(
    input: &mut Decoder<'_>,
    mut read: impl FnMut(&mut Decoder<'_>) -> Result<T, Refused>,
) -> Result<BTreeMap<u32, T>, Refused> {
    let mut entries = BTreeMap::new();
    for _ in 0..input.u32()? {
        let index = input.u32()?;
        if entries.last_key_value().is_some_and(|(last, _)| *last >= index) {
            return Err("the leaves are not sorted");
        }
        entries.insert(index, read(input)?);
    }
    Ok(entries)
}

fn write_leaf(out: &mut Encoder, leaf: &Leaf) {
    out.raw(leaf.tenant.as_bytes())
        .raw(leaf.user.as_bytes())
        .raw(leaf.device.as_bytes())
        .raw(leaf.key_hash.as_bytes())
        .u8(leaf.role as u8)
        .u64(leaf.joined.0)
        .u8(u8::from(leaf.removal_pending));
}

fn read_leaf(input: &mut Decoder<'_>) -> Result<Leaf, Refused> {
    Ok(Leaf {
        tenant: TenantId::from_bytes(input.array()?),
        user: UserId::from_bytes(input.array()?),
        device: DeviceId::from_bytes(input.array()?),
        key_hash: input.digest()?,
        role: read_role(input.u8()?)?,
        joined: Epoch(input.u64()?),
        removal_pending: input.flag()?,
    })
}

const fn read_role(number: u8) -> Result<Role, Refused> {
    match number {
        1 => Ok(Role::Member),
        2 => Ok(Role::Admin),
        3 => Ok(Role::Archive),
        4 => Ok(Role::Gateway),
        _ => Err("a role is unknown"),
    }
}
