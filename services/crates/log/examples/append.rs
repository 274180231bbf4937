//! What the embedded log costs over its database: the same records through the log, by many waiters, and straight into the
//! database with a sync a batch. Run by hand: `cargo run --release -p wardline-log --example append`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use wardline_log::embedded::{Options, open};
use wardline_log::{EventLog, NewRecord, Partition, Topic};

const RECORDS: usize = 400_000;
const PAYLOAD: usize = 1024;

#[tokio::main]
async fn main() {
    let payload = Bytes::from(vec![7; PAYLOAD]);
    for waiters in [1, 64, 256, 1024] {
        let count = if waiters == 1 { RECORDS / 20 } else { RECORDS };
        let raw = raw(waiters, count, &payload);
        let log = through_the_log(waiters, count, &payload).await;
        println!("{waiters:5} at a time: database {raw:8.0} rec/s, log {log:8.0} rec/s, {:.2} of it", log / raw);
    }
}

/// Batches of as many records as there are waiters, one thread.
fn raw(at_a_time: usize, count: usize, payload: &Bytes) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::builder(dir.path()).manual_journal_persist(true).worker_threads(1).open().unwrap();
    let rows = database.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    let began = Instant::now();
    for first in (0..count as u64).step_by(at_a_time) {
        let mut batch = database.batch().durability(Some(PersistMode::SyncData));
        for n in first..first + at_a_time as u64 {
            batch.insert(&rows, &n.to_be_bytes()[..], payload.clone());
        }
        batch.commit().unwrap();
    }
    count as f64 / began.elapsed().as_secs_f64()
}

/// As many tasks as waiters, each appending one record and waiting for its answer, over four partitions.
async fn through_the_log(waiters: usize, count: usize, payload: &Bytes) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let log: Arc<dyn EventLog> = open(Options::small(dir.path())).await.unwrap();
    let bytes = NonZeroU32::new(PAYLOAD as u32 + 16).unwrap();
    let began = Instant::now();
    let tasks = (0..waiters).map(|waiter| {
        let (log, payload) = (Arc::clone(&log), payload.clone());
        tokio::spawn(async move {
            let to = Partition { topic: Topic::Conversations, index: waiter as u32 % 4 };
            for _ in 0..count / waiters {
                let record =
                    NewRecord { key: Bytes::from_static(&[1; 16]), payload: payload.clone(), headers: Vec::new() };
                let permit = log.reserve(bytes).unwrap();
                log.append(permit, to, vec![record]).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    count as f64 / began.elapsed().as_secs_f64()
}
