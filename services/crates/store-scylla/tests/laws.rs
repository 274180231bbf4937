//! The laws over a real server.

#![allow(clippy::unwrap_used)]

mod support;

use async_trait::async_trait;
use support::{Lease, nodes};
use wardline_store::Stores;
use wardline_store::laws::Harness;

/// Stores on a keyspace that is empty at the start.
struct CqlHarness(Lease);

#[async_trait]
impl Harness for CqlHarness {
    async fn start() -> Option<Self> {
        Some(Self(Lease::take(nodes()?).await))
    }

    fn stores(&self) -> &Stores {
        self.0.stores()
    }

    async fn reopen(self) -> Self {
        Self(self.0.reopen().await)
    }

    /// A process of ours holds nothing that could be lost.
    async fn crash(self) -> Option<Self> {
        None
    }

    fn expires_when_told(&self) -> bool {
        false
    }
}

wardline_store::store_laws!(CqlHarness);
