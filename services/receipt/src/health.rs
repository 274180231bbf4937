//! Which partitions wait for an engine.
//!
//! Deliberately absent: what to do about it. The composition root turns it into a health status.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// Tells which partitions wait for an engine. Cheap to clone; all clones tell the same.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<BTreeSet<u32>>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeSet::new())))
    }
}

impl Health {
    /// Whether no partition waits.
    pub fn is_well(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The partitions that wait, now and from now on.
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.0.subscribe()
    }

    pub(crate) fn paused(&self, partition: u32) {
        self.0.send_if_modified(|waiting| waiting.insert(partition));
    }

    pub(crate) fn resumed(&self, partition: u32) {
        self.0.send_if_modified(|waiting| waiting.remove(&partition));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_well_again_when_the_last_partition_goes_on() {
        let health = Health::default();
        let watcher = health.subscribe();
        health.paused(3);
        health.paused(5);
        health.resumed(3);
        assert!(!health.is_well());
        assert!(watcher.borrow().contains(&5));
        health.resumed(5);
        assert!(health.is_well());
    }
}
