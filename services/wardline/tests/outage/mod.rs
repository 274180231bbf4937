//! Single pieces of work on the engines and keys of a data directory, each done by a process of its own whose power is cut
//! right after it was answered, and looked for by another.
//!
//! The process is this test binary, run again for the test named `child` with its task in the environment. It answers on lines
//! that start with `@`.
//!
//! Deliberately absent: roles. What they promise rests on these pieces.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wardline::config::Embedded;
use wardline::engines::Engines;
use wardline::issuer::Issuer;
use wardline::keys::Keys;
use wardline_domain::envelope::Sequence;
use wardline_domain::{Digest, Failure, Position};
use wardline_log::fold::{self, Fold, Folds};
use wardline_log::{Event, EventLog, FetchLimits, Group, LogRecord, NewRecord, Partition, Start, Started, Topic};
use wardline_runtime::Clock;
use wardline_store::checkpoints::Checkpoint;
use wardline_store::conversations::RowBatch;
use wardline_store::laws::sample::{
    conversation, day, device, device_row, last_resort, log_entry, message, package, time, user, user_row,
};
use wardline_store::{Conversations, Stores};
use wardline_testbed::forgetful::Forgetful;

const TASK: &str = "WARDLINE_OUTAGE_TASK";
const DIRECTORY: &str = "WARDLINE_OUTAGE_DIRECTORY";

/// A record's payload; the long log holds so many that fjall changes journals under them.
const SMALL: usize = 200;
const LARGE: usize = 1 << 20;
const MANY: u64 = 80;
/// What the fold keeps and the log then drops.
const FOLDED: u64 = 6;

/// A disk that forgets, and one piece of work after the other on it. It promises no more than POSIX does: a name lasts when its
/// folder was synced.
pub(crate) struct Bed(TempDir);

impl Bed {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("disk")).unwrap();
        Self(root)
    }

    fn disk(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    /// A disk on which everything done so far is safe.
    pub(crate) fn forgetful(&self) -> Forgetful {
        Forgetful::new(self.disk(), self.0.path().join("journal")).unwrap().requiring_directory_syncs()
    }

    fn start(&self, forgetful: &Forgetful, task: &str) -> Process {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(TASK, task)
            .env(DIRECTORY, self.disk());
        forgetful.command_env(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Process { child, lines }
    }

    /// Does a task, kills the process when it has answered, and cuts the power.
    pub(crate) fn cut_after(&self, forgetful: &Forgetful, task: &str) -> Option<String> {
        let answer = self.answer(forgetful, task);
        forgetful.forget().unwrap();
        answer
    }

    /// What a task answers; `None` when it ends without.
    pub(crate) fn answer(&self, forgetful: &Forgetful, task: &str) -> Option<String> {
        self.start(forgetful, task).answer()
    }

    /// Cuts the power so long after a task's process began.
    pub(crate) fn cut_within(&self, forgetful: &Forgetful, task: &str, after: Duration) {
        let process = self.start(forgetful, task);
        // Nothing is waited for: the moment is the fault.
        std::thread::sleep(after);
        drop(process);
        forgetful.forget().unwrap();
    }
}

/// A process that is killed when it is let go of.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn answer(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(answer) = line.trim_end().strip_prefix('@') {
                return Some(answer.to_owned());
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does the task that the environment names; nothing when it names none. Waits for the kill.
pub(crate) fn serve_task() {
    let Ok(task) = env::var(TASK) else { return };
    let directory = env::var(DIRECTORY).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let disk = Path::new(&directory);
        let engines = match task.as_str() {
            "keys" => None,
            _ => Some(Engines::open(disk, &Embedded::default(), Clock::system()).await.unwrap()),
        };
        let answer = match &engines {
            None => keys(disk),
            Some(engines) => perform(&task, engines).await,
        };
        // The engines stay open until the kill: closing them would sync what the answer should have waited for.
        println!("\n@{answer}");
        let mut end = [0];
        let _ = io::stdin().read(&mut end).unwrap();
        drop(engines);
    });
}

async fn perform(task: &str, engines: &Engines) -> String {
    let (log, stores) = (&engines.log, &engines.stores);
    match task {
        "open" => "open".to_owned(),
        "append" => append(log, SMALL).await.to_string(),
        "append-many" => append_many(log).await.to_string(),
        "appended" => appended(log).await.to_string(),
        "user" => format!("{:?}", stores.directory.create_user(&user_row(1, 1, "osei", 1)).await.unwrap()),
        "has-user" => stores.directory.user(user(1)).await.unwrap().is_some().to_string(),
        "device" => {
            let entry = log_entry(1, device_row(1, 1, 1), Digest::default());
            format!("{:?}", stores.directory.append_device_log(&entry).await.unwrap())
        }
        "has-device" => {
            let log = stores.directory.device_log(user(1), 0, 10).await.unwrap();
            (log.len() == 1 && stores.directory.device(user(1), device(1)).await.unwrap().is_some()).to_string()
        }
        "packages" => {
            let rows = [package(1, 1, 1, 90), package(1, 1, 2, 90), last_resort(1, 1, 3, 90)];
            stores.directory.publish_key_packages(&rows, 10).await.unwrap().to_string()
        }
        "packages-left" => packages_left(stores).await.to_string(),
        "claim" => {
            let claimed =
                stores.directory.claim_key_packages(user(1), 1, &[device(1)], [9; 16], day(60), time(5)).await;
            claimed.unwrap().packages.len().to_string()
        }
        "blob" => {
            stores.blobs.put(conversation(1), &[Bytes::from_static(BLOB)]).await.unwrap();
            "put".to_owned()
        }
        "has-blob" => {
            let found = stores.blobs.get(conversation(1), Digest::of(BLOB)).await.unwrap();
            found.is_some_and(|bytes| bytes == BLOB).to_string()
        }
        "fold" => fold_and_trim(log, stores).await,
        "neither-in-log-nor-store" => lost(log, stores).await.to_string(),
        other => panic!("no such task: {other}"),
    }
}

const BLOB: &[u8] = b"a sealed Welcome, too large for its record";
const PARTITION: Partition = Partition { topic: Topic::Conversations, index: 0 };

/// Public halves only.
fn keys(disk: &Path) -> String {
    let keys = Keys::load_or_make(&disk.join("dev")).unwrap();
    let issuer = Issuer::load_or_make(&disk.join("dev"), "https://issuer.invalid", Clock::system()).unwrap();
    format!("{:?} {}", keys.authority.unwrap().verifying_key().as_bytes(), issuer.jwks())
}

async fn packages_left(stores: &Stores) -> u32 {
    stores.directory.key_package_status(user(1), device(1), 1, day(60)).await.unwrap().available
}

async fn append(log: &Arc<dyn EventLog>, bytes: usize) -> u64 {
    let record =
        NewRecord { key: Bytes::from_static(b"key"), payload: Bytes::from(vec![7; bytes]), headers: Vec::new() };
    let size = NonZeroU32::new(u32::try_from(record.key.len() + record.payload.len()).unwrap()).unwrap();
    let positions = log.append(log.reserve(size).unwrap(), PARTITION, vec![record]).await.unwrap();
    positions[0].offset() + 1
}

async fn append_many(log: &Arc<dyn EventLog>) -> u64 {
    let mut end = 0;
    for _ in 0..MANY {
        end = append(log, LARGE).await;
    }
    end
}

/// (oldest kept, end) as offsets.
async fn extent(log: &Arc<dyn EventLog>) -> (u64, u64) {
    let mut reader = log.subscribe(Group::Everyone, PARTITION.topic, FetchLimits::default()).await.unwrap();
    loop {
        if matches!(reader.next().await.unwrap(), Event::Assigned(index) if index == PARTITION.index) {
            let Started { oldest, end } = reader.start(PARTITION.index, Start::Oldest).await.unwrap();
            return (oldest.map_or(end.offset(), Position::offset), end.offset());
        }
    }
}

async fn appended(log: &Arc<dyn EventLog>) -> u64 {
    extent(log).await.1
}

/// Makes a row of each record.
struct Rows(Arc<dyn Conversations>);

#[async_trait]
impl Folds for Rows {
    type Fold = Rows;

    async fn assigned(&self, _: u32, _: Option<&Checkpoint>, _: Started) -> Result<Rows, Failure> {
        Ok(Self(Arc::clone(&self.0)))
    }

    async fn revoked(&self, _: u32, _: Rows) {}
}

#[async_trait]
impl Fold for Rows {
    type Effects = Vec<u64>;

    async fn apply(&mut self, batch: &[LogRecord]) -> Result<Vec<u64>, Failure> {
        Ok(batch.iter().map(|record| record.position.offset() + 1).collect())
    }

    async fn effects(&mut self, numbers: &Vec<u64>) -> Result<(), Failure> {
        let messages = numbers.iter().map(|number| message(1, *number, SMALL)).collect();
        self.0.put_rows(&RowBatch { messages, ..RowBatch::default() }).await
    }
}

/// Folds records into rows until the log has dropped what the checkpoint covers: all but its last record.
async fn fold_and_trim(log: &Arc<dyn EventLog>, stores: &Stores) -> String {
    for _ in 0..FOLDED {
        append(log, SMALL).await;
    }
    let stop = CancellationToken::new();
    let options = fold::Options {
        topic: PARTITION.topic,
        group: Group::Named("rows"),
        limits: FetchLimits::default(),
        start: Start::Oldest,
        checkpointed: true,
        trim_every: Duration::from_millis(1),
    };
    let rows = Arc::new(Rows(Arc::clone(&stores.conversations)));
    let running =
        tokio::spawn(fold::run(Arc::clone(log), Arc::clone(&stores.checkpoints), rows, options, stop.clone()));
    while extent(log).await.0 + 1 < FOLDED {
        tokio::task::yield_now().await;
    }
    // The fold must not write on while it is decided what the disk has: it has nothing more to do.
    drop(running);
    format!("dropped below {}", FOLDED - 1)
}

/// How many of the folded records are neither rows nor in the log any more.
async fn lost(log: &Arc<dyn EventLog>, stores: &Stores) -> u64 {
    let (oldest, end) = extent(log).await;
    assert_eq!(end, FOLDED, "the log itself lost records");
    let rows = stores.conversations.messages(conversation(1), Sequence(0), 100, usize::MAX).await.unwrap();
    let is_row = |number: u64| rows.iter().any(|row| row.sequence == Sequence(number));
    let lost = (1..=FOLDED).filter(|number| !is_row(*number) && *number <= oldest).count() as u64;
    let place = stores.checkpoints.get((PARTITION.topic.name(), PARTITION.index)).await.unwrap();
    // Without a place that survived, nothing may have been dropped.
    lost.max(if place.is_none() { oldest } else { 0 })
}
