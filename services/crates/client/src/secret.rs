//! Bytes that must not print.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes: wiped when dropped, and `Debug` tells their length only.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `length` bytes from the operating system.
    pub(crate) fn random(length: usize) -> Self {
        let mut bytes = vec![0; length];
        fill_random(&mut bytes);
        Self::new(bytes)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// Fills `bytes` from the operating system.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    use rand::TryRngCore as _;
    rand::rngs::OsRng.try_fill_bytes(bytes).expect("the operating system always has random bytes once it has booted");
}
