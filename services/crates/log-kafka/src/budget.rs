//! Bytes that may wait for durability.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wardline_log::{Permit, Refused};

/// About two round trips of a busy cluster.
const RETRY_AFTER: Duration = Duration::from_millis(20);

pub(crate) struct Budget {
    bytes: u32,
    free: Arc<AtomicU32>,
}

impl Budget {
    pub(crate) fn new(bytes: u32) -> Self {
        Self { bytes, free: Arc::new(AtomicU32::new(bytes)) }
    }

    pub(crate) fn reserve(&self, bytes: NonZeroU32) -> Result<Permit, Refused> {
        if bytes.get() > self.bytes {
            return Err(Refused::TooLarge);
        }
        let take = |free: u32| free.checked_sub(bytes.get());
        self.free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .map_err(|_| Refused::Overloaded { retry_after: RETRY_AFTER })?;
        let free = Arc::clone(&self.free);
        Ok(Permit::new(bytes, move || {
            free.fetch_add(bytes.get(), Ordering::AcqRel);
        }))
    }

    /// Bytes that are reserved now.
    pub(crate) fn used(&self) -> u32 {
        self.bytes.saturating_sub(self.free.load(Ordering::Relaxed))
    }
}
