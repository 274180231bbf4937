//! Keyspaces for tests on a real server.
//!
//! Creating a schema takes Cassandra seconds and emptying it a fraction of one, so keyspaces are used again within a run.
//! Their names say when they were made: each run drops those of earlier runs.

#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

pub(crate) mod proxy;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;
use wardline_store::Stores;
use wardline_store_scylla::{Options, migrate, open};

/// How many keyspaces a run makes at most. One law uses two at once.
const KEYSPACES: usize = 4;

/// After how many seconds a keyspace is left over from a run that has ended.
const LEFT_OVER: u64 = 1800;

const PREFIX: &str = "laws_";

/// Where sessions live: each test has a runtime of its own, which ends with it.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// The nodes under test; `None`, and a word about it, when there need not be any.
pub(crate) fn nodes() -> Option<Vec<String>> {
    const VARIABLE: &str = "WARDLINE_TEST_CQL";
    match std::env::var(VARIABLE) {
        Ok(nodes) => Some(nodes.split(',').map(str::to_owned).collect()),
        Err(_) => {
            assert!(
                std::env::var("CI").is_err_and(|_| true) || std::env::var("CI").unwrap() != "true",
                "{VARIABLE} is not set"
            );
            eprintln!("skipped: {VARIABLE} is not set");
            None
        }
    }
}

/// How the nodes are reached, patient with a server that has little to run on.
pub(crate) fn options(nodes: Vec<String>, keyspace: &str) -> Options {
    let mut options = Options::new(nodes, keyspace);
    options.replication = 1;
    options.read_timeout = std::time::Duration::from_secs(10);
    options.write_timeout = std::time::Duration::from_secs(10);
    options.lwt_timeout = std::time::Duration::from_secs(10);
    options
}

/// A name that no other run uses.
pub(crate) fn fresh_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    format!("{PREFIX}{now}_{}", &Uuid::new_v4().simple().to_string()[..8])
}

/// Runs work where sessions live.
pub(crate) async fn on_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    RUNTIME.spawn(work).await.unwrap()
}

/// A session for what only tests ask.
pub(crate) async fn raw(nodes: Vec<String>) -> Session {
    SessionBuilder::new().known_nodes(&nodes).build().await.unwrap()
}

/// Drops a keyspace.
pub(crate) async fn drop_keyspace(session: &Session, keyspace: &str) {
    let _ = session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {keyspace}"), ()).await;
}

async fn drop_left_over(session: &Session) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let all = session.query_unpaged("SELECT keyspace_name FROM system_schema.keyspaces", ()).await.unwrap();
    let all = all.into_rows_result().unwrap();
    for (keyspace,) in all.rows::<(String,)>().unwrap().map(Result::unwrap) {
        let made = keyspace.strip_prefix(PREFIX).and_then(|rest| rest.split('_').next()?.parse::<u64>().ok());
        if made.is_some_and(|made| made + LEFT_OVER < now) {
            drop_keyspace(session, &keyspace).await;
        }
    }
}

/// A keyspace with its schema, and stores on it.
struct Slot {
    keyspace: String,
    stores: Stores,
}

/// The keyspaces of this run.
struct Pool {
    nodes: Vec<String>,
    session: Session,
    free: Mutex<Vec<Slot>>,
    permits: Arc<Semaphore>,
    /// One change of the schema at a time, or the servers take longer for all.
    making: tokio::sync::Mutex<()>,
}

static POOL: OnceCell<Arc<Pool>> = OnceCell::const_new();

/// Empty stores that nobody else uses while this lives.
pub(crate) struct Lease {
    slot: Option<Slot>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// Takes a keyspace and empties it.
    pub(crate) async fn take(nodes: Vec<String>) -> Self {
        let pool = POOL.get_or_init(|| on_runtime(Pool::new(nodes))).await.clone();
        let permit = pool.permits.clone().acquire_owned().await.unwrap();
        let free = pool.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let making = pool.clone();
        let slot = on_runtime(async move {
            match free {
                Some(slot) => making.empty(slot).await,
                None => making.make().await,
            }
        })
        .await;
        Self { slot: Some(slot), pool, _permit: permit }
    }

    pub(crate) fn stores(&self) -> &Stores {
        &self.slot.as_ref().unwrap().stores
    }

    pub(crate) fn keyspace(&self) -> &str {
        &self.slot.as_ref().unwrap().keyspace
    }

    /// Opens the stores anew.
    pub(crate) async fn reopen(mut self) -> Self {
        let Slot { keyspace, stores } = self.slot.take().unwrap();
        drop(stores);
        let options = options(self.pool.nodes.clone(), &keyspace);
        let stores = on_runtime(async move { open(options).await.unwrap() }).await;
        self.slot = Some(Slot { keyspace, stores });
        self
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

impl Pool {
    async fn new(nodes: Vec<String>) -> Arc<Self> {
        let session = raw(nodes.clone()).await;
        drop_left_over(&session).await;
        let permits = Arc::new(Semaphore::new(KEYSPACES));
        Arc::new(Self { nodes, session, free: Mutex::default(), permits, making: tokio::sync::Mutex::default() })
    }

    async fn make(&self) -> Slot {
        let _alone = self.making.lock().await;
        let keyspace = fresh_name();
        let options = options(self.nodes.clone(), &keyspace);
        migrate(&options).await.unwrap();
        Slot { keyspace, stores: open(options).await.unwrap() }
    }

    async fn empty(&self, slot: Slot) -> Slot {
        let select = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
        let tables = self.session.query_unpaged(select, (&slot.keyspace,)).await.unwrap().into_rows_result().unwrap();
        for (table,) in tables.rows::<(String,)>().unwrap().map(Result::unwrap) {
            if table != "schema_migrations" {
                self.empty_table(&slot.keyspace, &table).await;
            }
        }
        slot
    }

    async fn empty_table(&self, keyspace: &str, table: &str) {
        let some = self.session.query_unpaged(format!("SELECT * FROM {keyspace}.{table} LIMIT 1"), ()).await.unwrap();
        if some.into_rows_result().unwrap().rows_num() > 0 {
            self.session.query_unpaged(format!("TRUNCATE {keyspace}.{table}"), ()).await.unwrap();
        }
    }
}
