//! The signature keys that the directory holds for devices, cached: a device's keys never change.

use std::sync::Arc;

use quick_cache::sync::Cache;
use wardline_domain::{DeviceId, Digest, UserId};
use wardline_proto::reason::Reason;
use wardline_runtime::Refusal;
use wardline_store::Directory;

/// How many devices are remembered.
const CAPACITY: usize = 100_000;

pub(crate) struct RegisteredKeys {
    directory: Arc<dyn Directory>,
    cache: Cache<(UserId, DeviceId, u16), Digest>,
}

impl std::fmt::Debug for RegisteredKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegisteredKeys({})", self.cache.len())
    }
}

impl RegisteredKeys {
    pub(crate) fn new(directory: Arc<dyn Directory>) -> Self {
        Self { directory, cache: Cache::new(CAPACITY) }
    }

    /// SHA-256 of the device's signature key in a suite.
    pub(crate) async fn hash(&self, user: UserId, device: DeviceId, suite: u16) -> Result<Digest, Refusal> {
        if let Some(hash) = self.cache.get(&(user, device, suite)) {
            return Ok(hash);
        }
        let row = self.directory.device(user, device).await?.ok_or(Refusal::new(Reason::DeviceNotEnrolled))?;
        let key = row
            .mls_keys
            .iter()
            .find(|key| key.suite == suite && key.principal == user)
            .ok_or(Refusal::new(Reason::SuiteNotAllowed))?;
        let hash = Digest::of(&key.public_key);
        self.cache.insert((user, device, suite), hash);
        Ok(hash)
    }
}
