//! What keys and values look like in Redis.
//!
//! Keys are binary: the prefix, a letter for the kind, the id's bytes. A presence key says that some user may be attached, and
//! no key names two users: nothing here says who talks to whom. A user's key holds the user's id, which is random and means
//! nothing outside the directory; who may read it is whoever may read Redis (`MONITOR` and the slow log show keys).
//!
//! Deliberately absent: decoding errors. A value that this version does not understand is no hint, as if it were not there.

use wardline_domain::{Position, Timestamp, UserId};
use wardline_registry::{Owner, Presence};

/// The first byte of every value: what is written otherwise some day is unknown to this version, not misread.
const VERSION: u8 = 1;

/// Makes keys under one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    pub(crate) fn under(prefix: &str) -> Self {
        Self { prefix: prefix.as_bytes().to_vec() }
    }

    fn key(&self, kind: u8, id: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + 3 + id.len());
        key.extend_from_slice(&self.prefix);
        key.extend_from_slice(&[b':', kind, b':']);
        key.extend_from_slice(id);
        key
    }

    pub(crate) fn owner(&self, partition: u32) -> Vec<u8> {
        self.key(b'o', &partition.to_be_bytes())
    }

    pub(crate) fn presence(&self, user: UserId) -> Vec<u8> {
        self.key(b'p', user.as_bytes())
    }

    pub(crate) fn bucket(&self, key: &[u8; 16]) -> Vec<u8> {
        self.key(b'b', key)
    }

    pub(crate) fn session(&self, session: &[u8; 16]) -> Vec<u8> {
        self.key(b's', session)
    }
}

/// An owner: version, term, address. The script that announces compares the term's bytes.
pub(crate) fn owner_value(owner: &Owner) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&owner.term.as_u64().to_be_bytes());
    value.extend_from_slice(owner.address.as_bytes());
    value
}

pub(crate) fn owner_of(value: &[u8]) -> Option<Owner> {
    let rest = value.strip_prefix(&[VERSION])?;
    let (term, address) = rest.split_first_chunk::<8>()?;
    let address = std::str::from_utf8(address).ok()?.to_owned();
    Some(Owner { term: Position::from_u64(u64::from_be_bytes(*term)), address })
}

/// Presence: version, devices, when known, and when active if ever. Microseconds.
pub(crate) fn presence_value(presence: &Presence) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&presence.devices.to_be_bytes());
    value.extend_from_slice(&presence.at.as_micros().to_be_bytes());
    if let Some(active) = presence.active_at {
        value.extend_from_slice(&active.as_micros().to_be_bytes());
    }
    value
}

pub(crate) fn presence_of(value: &[u8]) -> Option<Presence> {
    let rest = value.strip_prefix(&[VERSION])?;
    let (devices, rest) = rest.split_first_chunk::<4>()?;
    let (at, rest) = rest.split_first_chunk::<8>()?;
    let active_at = match rest.len() {
        0 => None,
        _ => Some(time(rest.try_into().ok()?)),
    };
    Some(Presence { devices: u32::from_be_bytes(*devices), active_at, at: time(*at) })
}

fn time(micros: [u8; 8]) -> Timestamp {
    Timestamp::from_micros(u64::from_be_bytes(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_prefixes_are_apart() {
        let keys = Keys::under("one");
        let id = [7; 16];
        let all = [keys.presence(UserId::from_bytes(id)), keys.bucket(&id), keys.session(&id)];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
        assert_ne!(keys.owner(1), Keys::under("two").owner(1));
        assert_eq!(keys.owner(1), b"one:o:\0\0\0\x01");
    }

    #[test]
    fn values_are_read_as_written() {
        let owner = Owner { term: Position::from_u64(u64::MAX - 1), address: "http://instance-1:7443".to_owned() };
        assert_eq!(owner_of(&owner_value(&owner)), Some(owner));
        for active_at in [None, Some(Timestamp::from_micros(u64::MAX))] {
            let presence = Presence { devices: 3, active_at, at: Timestamp::from_micros(5) };
            assert_eq!(presence_of(&presence_value(&presence)), Some(presence));
        }
    }

    #[test]
    fn what_is_not_understood_is_not_there() {
        let presence =
            Presence { devices: 3, active_at: Some(Timestamp::from_micros(1)), at: Timestamp::from_micros(5) };
        let value = presence_value(&presence);
        for cut in (0..value.len()).filter(|cut| *cut != value.len() - 8) {
            assert_eq!(presence_of(&value[..cut]), None, "{cut}");
        }
        assert_eq!(presence_of(&[&[2], &value[1..]].concat()), None);
        assert_eq!(presence_of(&[&value[..], &[0]].concat()), None);
        assert_eq!(owner_of(b""), None);
        assert_eq!(owner_of(&[VERSION, 1, 2, 3]), None);
        assert_eq!(owner_of(&[VERSION, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]), None);
    }
}
