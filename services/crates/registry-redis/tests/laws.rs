//! The laws on a real Redis, each under a prefix of its own.
//!
//! Needs `WARDLINE_TEST_REDIS` (host:port).

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use async_trait::async_trait;
use support::{answers, unique};
use wardline_registry::Registry;
use wardline_registry::laws::Harness;
use wardline_registry_redis::{Options, RedisRegistry, open};

struct OnRedis(RedisRegistry);

#[async_trait]
impl Harness for OnRedis {
    async fn start() -> Option<Self> {
        let address = support::configured("WARDLINE_TEST_REDIS")?;
        let mut options = Options::new(address, unique());
        // The laws are about answers; a busy machine may take its time.
        options.deadline = Duration::from_secs(5);
        let registry = open(&options).unwrap();
        answers(&registry).await;
        Some(Self(registry))
    }

    fn registry(&self) -> &dyn Registry {
        &self.0
    }

    async fn pass(&self, time: Duration) {
        // The clock is the server's: there is no moving it.
        tokio::time::sleep(time).await;
    }
}

wardline_registry::registry_laws!(OnRedis);
