//! The Kafka engine keeps the laws.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use wardline_log::EventLog;
use wardline_log::laws::{BUDGET_BYTES, Harness, Promises, Release, Subject};

use self::support::{Topics, brokers};

struct Kafka {
    brokers: Vec<String>,
}

struct Opened {
    topics: Arc<Topics>,
    log: Option<Arc<dyn EventLog>>,
}

#[async_trait]
impl Harness for Kafka {
    async fn fresh(&self) -> Box<dyn Subject> {
        let topics = Topics::create(self.brokers.clone()).await;
        assert_eq!(topics.options.budget_bytes, BUDGET_BYTES);
        let log = Some(topics.open().await);
        Box::new(Opened { topics, log })
    }
}

#[async_trait]
impl Subject for Opened {
    fn log(&self) -> Arc<dyn EventLog> {
        Arc::clone(self.log.as_ref().unwrap())
    }

    fn promises(&self) -> Promises {
        // Kafka keeps records by time and compacts when it sees fit.
        Promises { trims: false, compacts: false, restarts: true, budgets: true }
    }

    async fn reopen(&mut self) {
        self.log = None;
        self.log = Some(self.topics.open().await);
    }

    /// A broker acknowledges when it will.
    fn hold(&self) -> Option<Release> {
        None
    }
}

wardline_log::laws!(match brokers() {
    Some(brokers) => Kafka { brokers },
    None => return,
});
