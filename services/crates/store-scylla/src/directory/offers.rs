//! What a device offers in one suite: which packages may still be served, the one that ends first before the others, and the
//! last-resort one. One value, so that serving one is one change.

use std::collections::BTreeSet;

use bytes::Bytes;
use wardline_domain::{Digest, Timestamp};
use wardline_store::Result;
use wardline_store::directory::{KeyPackageRow, KeyPackageStatus};
use wardline_store::encoding::{Decoder, Encoder};

/// A device's last-resort package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastResort {
    pub(super) reference: Digest,
    /// When it was served last.
    pub(super) used: Option<Timestamp>,
}

/// What a device offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Offer {
    unserved: BTreeSet<(Timestamp, Digest)>,
    pub(super) last_resort: Option<LastResort>,
}

impl Offer {
    pub(super) fn encode(&self) -> Bytes {
        let mut value = Encoder::new(48 + 40 * self.unserved.len());
        value.count(self.unserved.len());
        for (end, reference) in &self.unserved {
            value.time(*end).raw(reference.as_bytes());
        }
        value.option(self.last_resort, |value, last_resort| {
            value.raw(last_resort.reference.as_bytes()).option(last_resort.used, |value, used| {
                value.time(used);
            });
        });
        value.finish()
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self> {
        let mut value = Decoder::new("key_packages", bytes)?;
        let unserved = value.list(|value| Ok((value.time()?, value.digest()?)))?;
        let last_resort =
            value.option(|value| Ok(LastResort { reference: value.digest()?, used: value.option(Decoder::time)? }))?;
        value.finish(Self { unserved: unserved.into_iter().collect(), last_resort })
    }

    /// How many may be served that live at least until `end`.
    pub(super) fn count(&self, end: Timestamp) -> u32 {
        let count = self.unserved.range((end, Digest::default())..).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(super) fn add(&mut self, row: &KeyPackageRow) {
        self.unserved.insert((row.not_after, row.reference));
    }

    /// Takes the one that ends first but not before `end`, else names the last-resort one.
    pub(super) fn serve(&mut self, end: Timestamp, now: Timestamp) -> Option<Digest> {
        if let Some(first) = self.unserved.range((end, Digest::default())..).next().copied() {
            self.unserved.remove(&first);
            return Some(first.1);
        }
        let last_resort = self.last_resort.as_mut()?;
        last_resort.used = Some(now);
        Some(last_resort.reference)
    }

    /// Takes out those whose life ended before `now`.
    pub(super) fn take_ended(&mut self, now: Timestamp) -> Vec<Digest> {
        let alive = self.unserved.split_off(&(now, Digest::default()));
        let ended = std::mem::replace(&mut self.unserved, alive);
        ended.into_iter().map(|(_, reference)| reference).collect()
    }

    /// Those that may be served, the last-resort one excepted.
    pub(super) fn references(&self) -> impl Iterator<Item = Digest> {
        self.unserved.iter().map(|(_, reference)| *reference)
    }

    pub(super) fn status(&self, end: Timestamp) -> KeyPackageStatus {
        KeyPackageStatus {
            available: self.count(end),
            has_last_resort: self.last_resort.is_some(),
            last_resort_used: self.last_resort.and_then(|last_resort| last_resort.used),
        }
    }
}
