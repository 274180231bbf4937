//! What the fold leaves behind, undisturbed and disturbed.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::failure::CauseKind;
use wardline_domain::{Failure, Position, Timestamp, UserId};
use wardline_log::fold::{Fold as _, Folds as _};
use wardline_log::laws::{Fault, MemoryLog};
use wardline_log::{EventLog, LogRecord, Started, Topic};
use wardline_proto::convert::ids::bytes16;
use wardline_proto::internal::v1 as wire;
use wardline_receipt::{PartitionFold, Receipts};
use wardline_runtime::health::FoldHealth;
use wardline_store::Stores;
use wardline_store::laws::faulty::{Faults, faulty_with_switch};
use wardline_store::watermarks::WatermarkRow;

use self::support::{conversation, device, stores, user};

type Reported = (u8, u64, u64, u64);

fn record(nth: u64, reports: &[Reported], senders: &[u8]) -> LogRecord {
    let report = |(by, delivered, read, skipped_through): &Reported| wire::DeviceReceiptRecord {
        user_id: bytes16(user(*by / 10).as_bytes()),
        device_id: bytes16(device(*by).as_bytes()),
        delivered: *delivered,
        read: *read,
        skipped_through: *skipped_through,
    };
    let payload = wire::ReceiptRecord {
        conversation_id: bytes16(conversation().as_bytes()),
        flushed_at_us: 1000 + nth,
        devices: reports.iter().map(report).collect(),
        sender_user_ids: senders.iter().map(|n| bytes16(user(*n).as_bytes())).collect(),
    };
    raw(nth, payload.encode_to_vec().into())
}

fn raw(nth: u64, payload: Bytes) -> LogRecord {
    let position = Position::new(1, nth * 2).unwrap();
    LogRecord { position, appended_at: Timestamp::default(), key: Bytes::new(), payload, headers: Vec::new() }
}

/// User 1 writes; users 2 (devices 20 and 21) and 3 get and read it; device 30 is away and resyncs.
fn shift() -> Vec<LogRecord> {
    vec![
        record(1, &[(20, 4, 0, 0), (21, 3, 0, 0), (30, 2, 0, 0)], &[1]),
        record(2, &[(20, 0, 4, 0), (10, 4, 4, 0)], &[1, 2]),
        raw(3, Bytes::from_static(b"\xff")),
        record(4, &[(30, 0, 0, 9)], &[1]),
        record(5, &[(30, 12, 12, 0), (20, 3, 2, 0)], &[1, 2]),
    ]
}

/// Stored rows, and per user what it knows in the end.
#[derive(Debug, PartialEq)]
struct Left {
    rows: Vec<WatermarkRow>,
    told: BTreeMap<(UserId, Bytes), wire::WatermarkRecord>,
    dead_letters: usize,
}

/// States only grow, so the later one of a device holds all of the earlier ones; an earlier one that comes again late is
/// merged away as `put_receipts_of` would.
fn newer(told: &wire::WatermarkRecord, known: Option<&wire::WatermarkRecord>) -> bool {
    known.is_none_or(|known| (told.delivered, told.read, told.when_us) >= (known.delivered, known.read, known.when_us))
}

async fn left(log: &MemoryLog, stores: &Stores) -> Left {
    let mut told = BTreeMap::new();
    for record in log.records(Topic::Feeds).into_values().flatten() {
        let record = wire::FeedRecord::decode(record.payload).unwrap();
        let Some(wire::feed_record::Body::ReceiptSummary(summary)) = record.body else { panic!("a summary") };
        let to = UserId::try_from(&summary.user_id[..]).unwrap();
        for watermark in summary.watermarks {
            let key = (to, watermark.device_id.clone());
            if newer(&watermark, told.get(&key)) {
                told.insert(key, watermark);
            }
        }
    }
    let dead_letters = log.records(Topic::DeadLetters).into_values().flatten().map(|record| record.payload);
    let dead_letters = dead_letters.collect::<std::collections::BTreeSet<_>>().len();
    Left { rows: stores.watermarks.of(conversation()).await.unwrap(), told, dead_letters }
}

async fn fold(log: &Arc<MemoryLog>, stores: &Stores) -> PartitionFold {
    let partition = log.partitions(Topic::Receipts).partition_of(conversation().as_bytes());
    let log: Arc<dyn EventLog> = Arc::clone(log) as _;
    let receipts = Receipts::new(log, Arc::clone(&stores.watermarks), FoldHealth::default());
    receipts.assigned(partition, None, Started { oldest: None, end: Position::default() }).await.unwrap()
}

/// Folds with whatever fails: each failure ends the process (`dies`) or is tried again. A process that died falls back to
/// its checkpoint, here always two batches old.
async fn stubborn(log: &Arc<MemoryLog>, stores: &Stores, batch: usize, dies: bool) {
    let records = shift();
    let (mut owner, mut done) = (fold(log, stores).await, 0);
    'next: while done < records.len() {
        let end = records.len().min(done + batch);
        let effects = loop {
            if let Ok(effects) = owner.apply(&records[done..end]).await {
                break effects;
            }
        };
        while owner.effects(&effects).await.is_err() {
            if dies {
                owner = fold(log, stores).await;
                done = done.saturating_sub(2 * batch);
                continue 'next;
            }
        }
        done = end;
    }
}

async fn calm(batch: usize) -> Left {
    let (stores, _dir) = stores();
    let log = Arc::new(MemoryLog::new(|_| Fault::Works));
    stubborn(&log, &stores, batch, false).await;
    left(&log, &stores).await
}

#[tokio::test]
async fn watermarks_say_what_happened_and_what_was_passed_over() {
    let left = calm(100).await;
    let row = |n: u8| left.rows.iter().find(|row| row.device == device(n)).unwrap();
    assert_eq!((row(20).delivered, row(20).read), (4, 4));
    assert_eq!((row(21).delivered, row(21).read), (3, 0));
    assert_eq!((row(30).delivered, row(30).skipped.clone()), (12, vec![(3, 9)]));
    assert_eq!(left.dead_letters, 1);
}

#[tokio::test]
async fn senders_are_told_of_others_and_readers_of_their_other_devices() {
    let left = calm(100).await;
    let told = |n: u8| -> Vec<_> {
        let of_user = left.told.iter().filter(|((to, _), _)| *to == user(n));
        of_user.map(|((_, device), _)| device.clone()).collect()
    };
    let devices = |all: &[u8]| {
        let mut ids: Vec<_> = all.iter().map(|n| bytes16(device(*n).as_bytes())).collect();
        ids.sort();
        ids
    };
    assert_eq!(told(1), devices(&[10, 20, 21, 30]));
    assert_eq!(told(2), devices(&[10, 20, 30]));
    assert_eq!(told(3), devices(&[30]));
}

#[tokio::test]
async fn how_the_log_is_cut_into_batches_leaves_no_trace() {
    let whole = calm(100).await;
    for batch in 1..5 {
        assert_eq!(calm(batch).await, whole);
    }
}

/// The law: a process that dies at any append, after the watermarks were written, still tells everybody, and reports
/// nothing that was skipped.
#[tokio::test]
async fn a_failure_at_any_append_leaves_no_trace() {
    let expected = calm(100).await;
    for fault in [Fault::NotApplied, Fault::UnknownApplied, Fault::UnknownNotApplied] {
        for dies in [false, true] {
            let mut nth = 0;
            loop {
                let (stores, _dir) = stores();
                let log = Arc::new(MemoryLog::new(move |call| if call == nth { fault } else { Fault::Works }));
                stubborn(&log, &stores, 2, dies).await;
                assert_eq!(left(&log, &stores).await, expected, "{fault:?} at {nth}, dies: {dies}");
                if log.calls() <= nth {
                    break;
                }
                nth += 1;
            }
        }
    }
}

#[tokio::test]
async fn failing_stores_leave_no_trace() {
    let expected = calm(100).await;
    for seed in 0..20 {
        let (stores, _dir) = stores();
        let (failing, _switch) = faulty_with_switch(stores.clone(), seed, Faults::default());
        let log = Arc::new(MemoryLog::new(|_| Fault::Works));
        stubborn(&log, &failing, 1 + seed as usize % 3, seed % 2 == 0).await;
        assert_eq!(left(&log, &stores).await, expected, "seed {seed}");
    }
}

/// A batch whose summaries are some MiB: every one of 200 senders is told of every one of 200 devices.
fn many() -> LogRecord {
    let reports: Vec<Reported> = (0..200).map(|by| (by, 1, 0, 0)).collect();
    record(1, &reports, &(50..250).collect::<Vec<_>>())
}

/// The law: however many are told, the log is asked for no more than a wave at once.
#[tokio::test]
async fn summaries_go_out_in_waves() {
    let (stores, _dir) = stores();
    let log = Arc::new(MemoryLog::new(|_| Fault::Works).with_budget(4 << 20));
    let mut owner = fold(&log, &stores).await;
    let effects = owner.apply(&[many()]).await.unwrap();
    owner.effects(&effects).await.unwrap();
    let told: usize = log.records(Topic::Feeds).into_values().flatten().map(|record| record.payload.len()).sum();
    assert!(told > 2 << 20, "{told} bytes make no waves");
    assert!(log.largest() <= 1 << 20, "{} bytes at once", log.largest());
    assert_eq!(left(&log, &stores).await.told.len(), 200 * 200);
}

/// The law: what the log can never take is said to be so, and not tried for ever.
#[tokio::test]
async fn what_never_fits_halts() {
    let (stores, _dir) = stores();
    let log = Arc::new(MemoryLog::new(|_| Fault::Works).with_budget(1 << 10));
    let mut owner = fold(&log, &stores).await;
    let effects = owner.apply(&[many()]).await.unwrap();
    let failure = owner.effects(&effects).await.unwrap_err();
    assert!(matches!(&failure, Failure::NotApplied(cause) if cause.kind == CauseKind::Corrupt), "{failure}");
}
