//! Which partition of a topic a key belongs to.

use std::num::NonZeroU32;

use crate::digest::Digest;

/// A number of partitions: a power of two, so that doubling it moves keys only from p to p + n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionCount(NonZeroU32);

impl PartitionCount {
    /// `None` unless `count` is a power of two, at most 2^24.
    pub const fn new(count: u32) -> Option<Self> {
        if !count.is_power_of_two() || count > 1 << 24 {
            return None;
        }
        match NonZeroU32::new(count) {
            Some(count) => Some(Self(count)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The partition of a 16-byte id. The hash is named `sha256-be32`: the first four bytes of SHA-256(key), big-endian,
    /// masked. It must never change: every cluster's data depends on it (golden vectors in tests/golden.rs).
    pub fn partition_of(self, key: &[u8; 16]) -> u32 {
        let digest = Digest::of(key);
        let [a, b, c, d, ..] = *digest.as_bytes();
        u32::from_be_bytes([a, b, c, d]) & (self.get() - 1)
    }
}
