//! What writing messages of 1 KiB costs: rows per second and the client's CPU a row, one row a statement and in batches of one
//! partition, by the driver alone and through the stores. Prints, asserts nothing.
//!
//! `WARDLINE_TEST_CQL=127.0.0.1:9042 cargo bench -p wardline-store-scylla`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;
use wardline_domain::ConversationId;
use wardline_domain::envelope::Sequence;
use wardline_store::Stores;
use wardline_store::conversations::{MessageRow, RowBatch};
use wardline_store::laws::sample::message;
use wardline_store_scylla::{Options, migrate, open};

/// Rows each measurement writes.
const ROWS: usize = 30 * CALL;

/// Requests under way.
const IN_FLIGHT: usize = 256;

/// Rows of one partition in a batch.
const BATCH: usize = 20;

/// Rows in one call of the stores.
const CALL: usize = 1280;

fn main() {
    let Ok(nodes) = std::env::var("WARDLINE_TEST_CQL") else {
        println!("skipped: WARDLINE_TEST_CQL is not set");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(nodes.split(',').map(str::to_owned).collect()));
}

async fn measure(nodes: Vec<String>) {
    let mut options = Options::new(nodes.clone(), format!("bench_{}", &Uuid::new_v4().simple().to_string()[..8]));
    options.replication = u32::try_from(nodes.len().min(3)).unwrap();
    options.write_timeout = std::time::Duration::from_secs(30);
    migrate(&options).await.unwrap();
    let session = Arc::new(SessionBuilder::new().known_nodes(&nodes).build().await.unwrap());
    let insert = format!(
        "INSERT INTO {}.messages (conversation, bucket, sequence, value) VALUES (?, 0, ?, ?) USING TIMESTAMP ?",
        options.keyspace
    );
    let mut insert = session.prepare(insert).await.unwrap();
    insert.set_is_idempotent(true);
    let stores = open(options.clone()).await.unwrap();
    for round in ["warming up", "measured"] {
        println!("{round}: {ROWS} rows of 1 KiB");
        report("driver, one row a statement", driver(&session, &insert, 1)).await;
        report("driver, batches of 20 rows of one partition", driver(&session, &insert, BATCH)).await;
        report("stores, rows of different partitions", through(&stores, 1)).await;
        report("stores, 20 rows of each partition", through(&stores, BATCH)).await;
    }
    session.query_unpaged(format!("DROP KEYSPACE {}", options.keyspace), ()).await.unwrap();
}

async fn report(what: &str, work: impl Future<Output = ()>) {
    let (begun, used) = (Instant::now(), cpu_seconds());
    work.await;
    let (seconds, used) = (begun.elapsed().as_secs_f64(), cpu_seconds() - used);
    let rows = ROWS as f64;
    println!("  {what}: {:.0} rows/s, {:.1} µs of CPU a row", rows / seconds, used / rows * 1e6);
}

/// CPU time of this process, user and system: fields 14 and 15 of /proc/self/stat, in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn conversation() -> [u8; 16] {
    Uuid::new_v4().into_bytes()
}

/// Writes rows as the driver takes them, `batch` of each partition at once.
async fn driver(session: &Session, insert: &PreparedStatement, batch: usize) {
    let value = Bytes::from(vec![7; 1024]);
    let writes = (0..ROWS / batch).map(|_| {
        let (conversation, value) = (conversation(), value.clone());
        async move {
            let row = |n: usize| (conversation, n as i64, value.clone(), 1_790_000_000_000_000_i64);
            if batch == 1 {
                session.execute_unpaged(insert, row(1)).await.unwrap();
                return;
            }
            let mut statements = Batch::new(BatchType::Unlogged);
            statements.set_is_idempotent(true);
            (0..batch).for_each(|_| statements.append_statement(insert.clone()));
            session.batch(&statements, (0..batch).map(row).collect::<Vec<_>>()).await.unwrap();
        }
    });
    futures::stream::iter(writes).buffer_unordered(IN_FLIGHT).collect::<()>().await;
}

/// Writes rows as the fold does: calls of many rows, two at once, `run` of each conversation.
async fn through(stores: &Stores, run: usize) {
    let call = |_| async {
        let mut of = conversation();
        let row = |n: usize| {
            if n.is_multiple_of(run) {
                of = conversation();
            }
            let row = message(1, (n % run) as u64 + 1, 1024 - 88);
            MessageRow { conversation: ConversationId::from_bytes(of), sequence: Sequence((n % run) as u64 + 1), ..row }
        };
        let messages = (0..CALL).map(row).collect();
        stores.conversations.put_rows(&RowBatch { messages, ..RowBatch::default() }).await.unwrap();
    };
    futures::stream::iter((0..ROWS / CALL).map(call)).buffer_unordered(2).collect::<()>().await;
}
