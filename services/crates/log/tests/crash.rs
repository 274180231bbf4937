//! What a crash leaves: a prefix of the log that holds all that was acknowledged.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use wardline_domain::partition::PartitionCount;
use wardline_log::embedded::{Environment, Options, Retention, open, open_in};
use wardline_log::{
    Cause, Event, EventLog, Failure, FetchLimits, Group, LogRecord, NewRecord, Partition, Refused, Start, Topic,
};

const CHILD: &str = "WARDLINE_LOG_CRASH_CHILD";
const AT: Partition = Partition { topic: Topic::Conversations, index: 0 };

fn record(n: usize) -> NewRecord {
    // Longer than a page, and with the journal's own marks inside.
    let payload = [&n.to_le_bytes()[..], b"\x01\x02\x03FJL\x03\x01", &vec![n as u8; 5000]].concat();
    NewRecord { key: n.to_string().into(), payload: payload.into(), headers: vec![] }
}

fn number(record: &LogRecord) -> usize {
    let number = usize::from_le_bytes(record.payload[..8].try_into().unwrap());
    assert_eq!(record.payload, self::record(number).payload, "what is read is what was appended");
    number
}

async fn append(log: &dyn EventLog, to: Partition, record: NewRecord) -> Result<(), Failure> {
    let permit = log.reserve(NonZeroU32::new(6000).unwrap()).unwrap();
    log.append(permit, to, vec![record]).await.map(drop)
}

/// All that one partition holds now.
async fn read(log: &dyn EventLog, of: Partition) -> Vec<LogRecord> {
    let mut subscription = log.subscribe(Group::Everyone, of.topic, FetchLimits::default()).await.unwrap();
    let mut read = Vec::new();
    let mut end = None;
    loop {
        let done = |read: &Vec<LogRecord>, end| read.last().is_some_and(|last| Some(last.position.as_u64() + 1) == end);
        match subscription.next().await.unwrap() {
            Event::Assigned(index) if index == of.index => {
                let started = subscription.start(index, Start::Oldest).await.unwrap();
                end = started.oldest.map(|_| started.end.as_u64());
                if end.is_none() {
                    return read;
                }
            }
            Event::Records { records, .. } => {
                read.extend(records);
                if done(&read, end) {
                    return read;
                }
            }
            Event::Assigned(_) | Event::Revoked(_) => {}
        }
    }
}

fn journal(dir: &Path) -> PathBuf {
    let journals = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    journals.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).max().unwrap()
}

/// A closed log of five records, and where in its journal the last one's batch begins and ends.
async fn five_records(dir: &Path) -> (usize, usize) {
    let mut length = Vec::new();
    {
        let log = open(Options::small(dir)).await.unwrap();
        for n in 0..5 {
            append(&*log, AT, record(n)).await.unwrap();
            let bytes = std::fs::read(journal(dir)).unwrap();
            // By blocks first: the journal is laid out far ahead.
            let blocks = bytes.chunks(4096).rposition(|block| !vec![0; block.len()].eq(block)).unwrap() + 1;
            let used = bytes[..blocks * 4096].iter().rposition(|byte| *byte != 0).unwrap() + 1;
            length.push(used);
        }
    }
    // Without the space laid out ahead, but for a little.
    let file = std::fs::OpenOptions::new().write(true).open(journal(dir)).unwrap();
    file.set_len(length[4] as u64 + 5000).unwrap();
    (length[3], length[4])
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Opens a copy whose journal was damaged, and reads what is left.
async fn damaged(dir: &Path, damage: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<usize>, Failure> {
    let at = tempfile::tempdir().unwrap();
    copy(dir, at.path());
    let path = journal(at.path());
    let mut bytes = std::fs::read(&path).unwrap();
    damage(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    let log = open(Options::small(at.path())).await?;
    let left = read(&*log, AT).await.iter().map(number).collect();
    // It can be written again, and that survives too.
    append(&*log, AT, record(9)).await.unwrap();
    drop(log);
    let log = open(Options::small(at.path())).await.unwrap();
    assert_eq!(number(read(&*log, AT).await.last().unwrap()), 9);
    Ok(left)
}

#[tokio::test]
async fn a_journal_cut_anywhere_in_its_last_batch_leaves_the_batches_before() {
    let dir = tempfile::tempdir().unwrap();
    let (start, end) = five_records(dir.path()).await;
    assert_eq!(damaged(dir.path(), |_| {}).await.unwrap(), [0, 1, 2, 3, 4]);
    for at in [start, start + 1, start + 13, start + 40, start + 3000, end - 5, end - 1] {
        assert_eq!(damaged(dir.path(), |bytes| bytes.truncate(at)).await.unwrap(), [0, 1, 2, 3], "cut at {at}");
        // The file keeps its length where it was laid out ahead: the same with zeros.
        let zeros = |bytes: &mut Vec<u8>| bytes[at..].fill(0);
        assert_eq!(damaged(dir.path(), zeros).await.unwrap(), [0, 1, 2, 3], "zeros from {at}");
    }
}

#[tokio::test]
async fn pages_of_the_last_batch_out_of_order_leave_the_batches_before() {
    let dir = tempfile::tempdir().unwrap();
    let (start, end) = five_records(dir.path()).await;
    for hole in
        [start..start + 10, start + 2..start + 60, start + 100..start + 2000, end - 2000..end - 15, end - 12..end - 8]
    {
        let lose = |bytes: &mut Vec<u8>| bytes[hole.clone()].fill(0);
        assert_eq!(damaged(dir.path(), lose).await.unwrap(), [0, 1, 2, 3], "{hole:?} lost");
    }
}

#[tokio::test]
async fn damage_before_the_last_batch_is_corrupt_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (start, _) = five_records(dir.path()).await;
    for at in [start - 20, start - 3000, start - 5010, start - 5070] {
        let at_first = damaged(dir.path(), |bytes| bytes[at] ^= 0x55).await;
        let cause = match at_first {
            Err(Failure::NotApplied(cause)) => cause,
            other => panic!("damage at {at} gave {other:?}"),
        };
        assert!(cause.detail.contains("damaged"), "{cause}");
    }
}

#[tokio::test]
async fn other_partition_counts_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(Options::small(dir.path())).await.unwrap());
    let options = Options { feeds: PartitionCount::new(8).unwrap(), ..Options::small(dir.path()) };
    let Err(Failure::NotApplied(cause)) = open(options).await else { panic!("it opened") };
    let expected = Cause::corrupt("topic feeds was created with 4 partitions and is configured with 8");
    assert_eq!(cause, expected);
}

#[tokio::test]
async fn a_failed_commit_is_fatal_and_its_waiters_are_told_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (broken, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let environment = Environment {
        before_commit: {
            let broken = Arc::clone(&broken);
            Arc::new(
                move || if broken.load(Ordering::Acquire) { Err(std::io::Error::other("the disk")) } else { Ok(()) },
            )
        },
        fatal: {
            let told = Arc::clone(&told);
            Arc::new(move |message| told.lock().unwrap().push(message.to_owned()))
        },
        ..Environment::default()
    };
    let log = open_in(Options::small(dir.path()), environment).await.unwrap();
    append(&*log, AT, record(0)).await.unwrap();
    broken.store(true, Ordering::Release);
    assert!(matches!(append(&*log, AT, record(1)).await, Err(Failure::Unknown(_))));
    assert_eq!(*told.lock().unwrap(), ["the disk"]);
    assert_eq!(log.reserve(NonZeroU32::MIN).unwrap_err(), Refused::Closed);
    drop(log);
    let log = open(Options::small(dir.path())).await.unwrap();
    assert_eq!(read(&*log, AT).await.len(), 1, "what was acknowledged before is there");
}

#[tokio::test]
async fn audit_is_kept_up_to_its_bound_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Partition { topic: Topic::Audit, index: 0 };
    let small = || Environment { retention: Retention { audit: 10, dead_letters: 10 }, ..Environment::default() };
    {
        let log = open_in(Options::small(dir.path()), small()).await.unwrap();
        for n in 0..25 {
            append(&*log, audit, record(n)).await.unwrap();
        }
    }
    let log = open_in(Options::small(dir.path()), small()).await.unwrap();
    let left: Vec<_> = read(&*log, audit).await.iter().map(number).collect();
    assert_eq!(left, (15..25).collect::<Vec<_>>());
}

/// The child: appends without end and prints what was acknowledged, until it is killed.
#[tokio::main]
async fn append_until_killed(dir: &Path) {
    let log = open(Options::small(dir)).await.unwrap();
    let next = read(&*log, AT).await.last().map_or(0, |last| number(last) + 1);
    let mut n = next;
    loop {
        let appended = (n..n + 16).map(|n| append(&*log, AT, record(n)));
        for answer in futures::future::join_all(appended).await {
            answer.unwrap();
            println!("acknowledged {n}");
            n += 1;
        }
    }
}

#[test]
fn a_killed_process_leaves_all_that_it_acknowledged() {
    if let Some(dir) = std::env::var_os(CHILD) {
        append_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_process_leaves_all_that_it_acknowledged", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(n) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged.insert(n.parse::<usize>().unwrap(), round);
            }
            if acknowledged.values().filter(|of| **of == round).count() == 100 * round {
                // No destructor runs.
                child.kill().unwrap();
                break;
            }
        }
        child.wait().unwrap();
        let left = left_in(dir.path());
        assert!(left.len() >= acknowledged.len(), "round {round}: all that was acknowledged is there");
        assert!(left.iter().copied().eq(0..left.len()), "round {round}: without gap, in order");
    }
}

#[tokio::main]
async fn left_in(dir: &Path) -> Vec<usize> {
    let log = open(Options::small(dir)).await.unwrap();
    read(&*log, AT).await.iter().map(number).collect()
}
