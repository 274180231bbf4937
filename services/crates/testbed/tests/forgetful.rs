//! The disk that forgets, shown on real processes: this binary starts itself as a child, kills it, and looks at what
//! is left.
//!
//! The child runs the test named `child` with its task in the environment, and answers on lines that start with `@`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use rand::Rng;
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use wardline_testbed::forgetful::{Forgetful, Report};

const TASK: &str = "FORGETFUL_TASK";
const DIRECTORY: &str = "FORGETFUL_DIRECTORY";

// ---- the parent's side -------------------------------------------------------------------------------------------

struct Bed {
    root: TempDir,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("disk")).unwrap();
        Self { root }
    }

    fn disk(&self) -> std::path::PathBuf {
        self.root.path().join("disk")
    }

    fn forgetful(&self) -> Forgetful {
        Forgetful::new(self.disk(), self.root.path().join("journal")).unwrap()
    }

    fn start(&self, forgetful: &Forgetful, task: &str) -> Task {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(TASK, task)
            .env(DIRECTORY, self.disk());
        forgetful.command_env(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Task { child, lines }
    }

    /// Every file's content and every directory, by path.
    fn tree(&self) -> BTreeMap<String, Option<String>> {
        fn visit(root: &Path, at: &Path, tree: &mut BTreeMap<String, Option<String>>) {
            for entry in fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    tree.insert(name, None);
                    visit(root, &path, tree);
                } else {
                    tree.insert(name, Some(String::from_utf8(fs::read(&path).unwrap()).unwrap()));
                }
            }
        }
        let mut tree = BTreeMap::new();
        visit(&self.disk(), &self.disk(), &mut tree);
        tree
    }

    /// How many batches the database holds; `None` when it does not open.
    fn batches(&self, forgetful: &Forgetful) -> Option<u64> {
        let mut task = self.start(forgetful, "database-look");
        let found = task.number("found");
        task.kill();
        found
    }

    /// Runs a task until it says `@ready`, kills it, and forgets.
    fn cut(&self, forgetful: &Forgetful, task: &str) -> Report {
        let mut task = self.start(forgetful, task);
        while task.answer().as_deref() != Some("ready") {}
        task.kill();
        forgetful.forget().unwrap()
    }
}

struct Task {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Task {
    /// The child's next answer; `None` when it has ended.
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

    fn number(&mut self, word: &str) -> Option<u64> {
        self.answer()?.strip_prefix(word)?.trim().parse().ok()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn files<const N: usize>(expected: [(&str, Option<&str>); N]) -> BTreeMap<String, Option<String>> {
    expected.into_iter().map(|(path, content)| (path.to_owned(), content.map(str::to_owned))).collect()
}

// ---- the child's side --------------------------------------------------------------------------------------------

#[test]
fn child() {
    let Ok(task) = env::var(TASK) else { return };
    let directory = env::var(DIRECTORY).unwrap();
    let disk = Path::new(&directory);
    match task.as_str() {
        "prefix" => prefix(disk),
        "changes" => changes(disk),
        "names" => names(disk),
        "new" => new(disk),
        "threads" => threads(disk),
        "refused" => refused(disk),
        "append" => append(disk),
        "database" => database(disk, u64::MAX, |number| number % 2 == 0),
        "database-look" => database(disk, 0, |_| true),
        "database-named-8" => {
            drop(open_database(disk));
            File::open(disk.join("db/keyspaces")).unwrap().sync_all().unwrap();
            database(disk, 8, |number| number < 4);
        }
        "database-8" => database(disk, 8, |number| number < 4),
        other => panic!("no such task: {other}"),
    }
}

fn answer(text: impl std::fmt::Display) {
    println!("\n@{text}");
}

/// Says so and waits for the kill.
fn ready() {
    answer("ready");
    let mut end = [0];
    let _ = io::stdin().read(&mut end).unwrap();
}

fn prefix(disk: &Path) {
    let mut file = File::create(disk.join("log")).unwrap();
    file.write_all(b"synced, ").unwrap();
    file.sync_data().unwrap();
    file.write_all(b"not synced").unwrap();
    ready();
}

fn append(disk: &Path) {
    OpenOptions::new().append(true).open(disk.join("log")).unwrap().write_all(b" either").unwrap();
    ready();
}

fn changes(disk: &Path) {
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(disk.join(name)).unwrap();
    open("overwritten").write_all_at(b"XX", 2).unwrap();
    open("overwritten").write_all_at(b"YY", 3).unwrap();
    open("shrunk").set_len(2).unwrap();
    open("grown").set_len(100).unwrap();
    OpenOptions::new().append(true).open(disk.join("appended")).unwrap().write_all(b"+").unwrap();
    fs::write(disk.join("replaced"), b"other").unwrap();
    let parts = [io::IoSlice::new(b"<"), io::IoSlice::new(b">")];
    assert_eq!(open("vectored").write_vectored(&parts).unwrap(), 2);
    fs::copy(disk.join("overwritten"), disk.join("copied")).unwrap();
    let synced = open("synced");
    synced.write_all_at(b"kept", 0).unwrap();
    synced.sync_all().unwrap();
    synced.write_all_at(b"lost", 0).unwrap();
    const O_DSYNC: i32 = 0o10000;
    let mut through = OpenOptions::new().write(true).custom_flags(O_DSYNC).open(disk.join("through")).unwrap();
    through.write_all(b"kept").unwrap();
    ready();
}

fn names(disk: &Path) {
    fs::remove_file(disk.join("removed")).unwrap();
    fs::rename(disk.join("old"), disk.join("new")).unwrap();
    fs::rename(disk.join("winner"), disk.join("loser")).unwrap();
    fs::create_dir(disk.join("directory")).unwrap();
    fs::write(disk.join("directory/file"), b"never synced").unwrap();
    fs::rename(disk.join("tree"), disk.join("moved")).unwrap();
    // This rename enters the kernel past libc.
    let mut temporary = tempfile::NamedTempFile::new_in(disk).unwrap();
    temporary.write_all(b"1").unwrap();
    temporary.as_file().sync_all().unwrap();
    temporary.persist(disk.join("current")).unwrap();
    ready();
}

fn new(disk: &Path) {
    fs::create_dir(disk.join("a")).unwrap();
    fs::create_dir(disk.join("a/b")).unwrap();
    let mut file = File::create(disk.join("a/b/synced")).unwrap();
    file.write_all(b"content").unwrap();
    file.sync_all().unwrap();
    fs::write(disk.join("a/b/unsynced"), b"content").unwrap();
    fs::write(disk.join("a/listed"), b"content").unwrap();
    fs::rename(disk.join("from"), disk.join("a/to")).unwrap();
    File::open(disk.join("a")).unwrap().sync_all().unwrap();
    ready();
}

fn threads(disk: &Path) {
    let file = File::create(disk.join("shared")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (file, disk) = (&file, disk);
            scope.spawn(move || {
                let mut own = File::create(disk.join(format!("own-{thread}"))).unwrap();
                for at in 0..500 {
                    file.write_all_at(b"synced.", (at * 4 + thread) * 7).unwrap();
                    own.write_all(b"synced.").unwrap();
                    if at % 100 == 99 {
                        own.sync_data().unwrap();
                    }
                }
            });
        }
    });
    file.sync_all().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mut file, disk) = (&file, disk);
            scope.spawn(move || {
                let mut own = OpenOptions::new().append(true).open(disk.join(format!("own-{thread}"))).unwrap();
                for at in 0..500 {
                    file.write_all_at(b"unsynced", (at * 4 + thread) * 5).unwrap();
                    file.write_all(b"|").unwrap();
                    own.write_all(b"unsynced").unwrap();
                }
            });
        }
    });
    ready();
}

fn refused(disk: &Path) {
    use std::os::unix::fs::symlink;
    assert_eq!(symlink("target", disk.join("link")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let outside = disk.with_file_name("outside");
    fs::write(disk.join("inside"), b"").unwrap();
    assert_eq!(fs::rename(disk.join("inside"), &outside).unwrap_err().kind(), io::ErrorKind::CrossesDevices);
    ready();
}

fn open_database(disk: &Path) -> (Database, Keyspace) {
    let database = Database::builder(disk.join("db")).worker_threads(1).open().unwrap();
    let options = || KeyspaceCreateOptions::default().max_memtable_size(64 * 1024);
    let keyspace = database.keyspace("batches", options).unwrap();
    (database, keyspace)
}

/// Opens the database, says what it found, then writes batches: some synced, the others only handed to the kernel.
fn database(disk: &Path, batches: u64, is_synced: fn(u64) -> bool) {
    let (database, keyspace) = open_database(disk);
    let found = count(&keyspace);
    answer(format!("found {found}"));
    for number in found..found.saturating_add(batches) {
        let mode = if is_synced(number) { PersistMode::SyncAll } else { PersistMode::Buffer };
        let mut batch = database.batch().durability(Some(mode));
        batch.insert(&keyspace, number.to_be_bytes().to_vec(), value(number));
        batch.insert(&keyspace, [b"twin".as_slice(), &number.to_be_bytes()].concat(), value(number));
        batch.commit().unwrap();
        answer(format!("{} {number}", if is_synced(number) { "synced" } else { "buffered" }));
    }
    ready();
}

fn value(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(250)
}

/// How many batches are there; they must be the first ones, each whole.
fn count(keyspace: &Keyspace) -> u64 {
    let mut found = 0;
    let mut twins = 0;
    for entry in keyspace.iter() {
        let (key, content) = entry.into_inner().unwrap();
        let twin = key.starts_with(b"twin");
        let next = if twin { &mut twins } else { &mut found };
        let number: [u8; 8] = key[key.len() - 8..].try_into().unwrap();
        assert_eq!(u64::from_be_bytes(number), *next, "a batch in the middle is missing");
        assert_eq!(content, value(*next));
        *next += 1;
    }
    assert_eq!(found, twins, "half a batch");
    found
}

// ---- the laws ----------------------------------------------------------------------------------------------------

#[test]
fn exactly_the_synced_prefix_remains() {
    let bed = Bed::new();
    let report = bed.cut(&bed.forgetful(), "prefix");
    assert_eq!(bed.tree(), files([("log", Some("synced, "))]));
    let expected = Report { files_restored: 1, bytes_undone: 10, names_undone: 0, syncs_kept: 1, syncs_ignored: 0 };
    assert_eq!(report, expected);
}

#[test]
fn without_its_sync_the_prefix_is_lost_too() {
    let bed = Bed::new();
    let report = bed.cut(&bed.forgetful().without_sync_of("lo*"), "prefix");
    assert_eq!(bed.tree(), files([]));
    assert_eq!((report.syncs_kept, report.syncs_ignored), (0, 1));
}

#[test]
fn every_kind_of_change_of_content_is_undone() {
    let bed = Bed::new();
    let untouched = ["overwritten", "shrunk", "grown", "appended", "replaced", "vectored", "copied"];
    for name in untouched {
        fs::write(bed.disk().join(name), b"0123456789").unwrap();
    }
    for name in ["synced", "through"] {
        fs::write(bed.disk().join(name), b"0123456789").unwrap();
    }
    let report = bed.cut(&bed.forgetful(), "changes");
    let mut expected = files(untouched.map(|name| (name, Some("0123456789"))));
    expected.extend(files(["synced", "through"].map(|name| (name, Some("kept456789")))));
    assert_eq!(bed.tree(), expected);
    assert_eq!(report.files_restored, 8);
    assert_eq!(report.names_undone, 0);
}

#[test]
fn changes_of_names_are_undone() {
    let bed = Bed::new();
    for name in ["removed", "old", "winner", "loser", "current"] {
        fs::write(bed.disk().join(name), name).unwrap();
    }
    fs::create_dir(bed.disk().join("tree")).unwrap();
    fs::write(bed.disk().join("tree/leaf"), "leaf").unwrap();
    let before = bed.tree();
    let report = bed.cut(&bed.forgetful().without_sync_of("*"), "names");
    assert_eq!(bed.tree(), before);
    assert_eq!((report.syncs_kept, report.syncs_ignored), (0, 1));
    assert!(report.names_undone >= 10, "{report:?}");
}

#[test]
fn a_sync_keeps_the_names_it_covers() {
    let bed = Bed::new();
    fs::write(bed.disk().join("from"), "moved").unwrap();
    bed.cut(&bed.forgetful(), "new");
    // A synced file keeps its path; a synced directory its entries, but not the content of the files in it.
    let kept =
        [("a", None), ("a/b", None), ("a/b/synced", Some("content")), ("a/listed", Some("")), ("a/to", Some("moved"))];
    assert_eq!(bed.tree(), files(kept));
}

#[test]
fn a_strict_disk_keeps_only_names_whose_directory_was_synced() {
    let bed = Bed::new();
    fs::write(bed.disk().join("from"), "stays").unwrap();
    bed.cut(&bed.forgetful().requiring_directory_syncs(), "new");
    assert_eq!(bed.tree(), files([("from", Some("stays"))]));
}

#[test]
fn writes_of_many_threads_are_undone_in_order() {
    let bed = Bed::new();
    let report = bed.cut(&bed.forgetful(), "threads");
    let tree = bed.tree();
    assert_eq!(tree["shared"].as_ref().unwrap(), &"synced.".repeat(2000));
    for thread in 0..4 {
        assert_eq!(tree[&format!("own-{thread}")].as_ref().unwrap(), &"synced.".repeat(500));
    }
    assert_eq!(report.files_restored, 5);
    assert_eq!(report.bytes_undone, 2000 * (8 + 1 + 8));
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let bed = Bed::new();
    bed.cut(&bed.forgetful(), "refused");
    assert_eq!(bed.tree(), files([]));
}

#[test]
fn a_shared_writable_mapping_ends_the_process() {
    let bed = Bed::new();
    let file = bed.disk().join("mapped");
    fs::write(&file, "content").unwrap();
    // In C, because a mapping is unsafe code.
    let program = bed.root.path().join("map");
    let source = program.with_extension("c");
    let main =
        "int main(int n, char **a) { return mmap(0, 1, PROT_WRITE, MAP_SHARED, open(a[n - 1], O_RDWR), 0) != 0; }";
    fs::write(&source, format!("#include <fcntl.h>\n#include <sys/mman.h>\n{main}\n")).unwrap();
    assert!(Command::new("cc").arg("-o").args([&program, &source]).status().unwrap().success());
    let forgetful = bed.forgetful();
    let mut command = Command::new(&program);
    forgetful.command_env(&mut command);
    let output = command.arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(134));
    assert!(String::from_utf8(output.stderr).unwrap().contains("shared writable mapping"));
}

#[test]
fn a_cut_reaches_back_over_a_restart() {
    let bed = Bed::new();
    let forgetful = bed.forgetful();
    for task in ["prefix", "append"] {
        let mut task = bed.start(&forgetful, task);
        while task.answer().as_deref() != Some("ready") {}
        task.kill();
    }
    assert_eq!(bed.tree(), files([("log", Some("synced, not synced either"))]));
    forgetful.forget().unwrap();
    assert_eq!(bed.tree(), files([("log", Some("synced, "))]));
}

#[test]
fn a_living_process_cannot_lose_its_power() {
    let bed = Bed::new();
    let forgetful = bed.forgetful();
    let mut task = bed.start(&forgetful, "prefix");
    while task.answer().as_deref() != Some("ready") {}
    assert!(forgetful.forget().is_err());
    task.kill();
    forgetful.forget().unwrap();
}

#[test]
fn fjall_keeps_every_synced_batch_over_many_cuts() {
    let bed = Bed::new();
    let forgetful = bed.forgetful();
    let mut random = rand::rng();
    let mut synced = 0;
    for round in 0..10 {
        let mut task = bed.start(&forgetful, "database");
        let found = task.number("found").unwrap_or_else(|| panic!("round {round}: the database does not open"));
        assert!(found >= synced, "round {round}: {found} batches found of {synced} synced");
        for _ in 0..random.random_range(1..120) {
            let answer = task.answer().unwrap();
            if let Some(number) = answer.strip_prefix("synced ") {
                synced = number.parse::<u64>().unwrap() + 1;
            }
        }
        task.kill();
        forgetful.forget().unwrap();
    }
}

#[test]
fn fjall_loses_exactly_what_was_not_synced() {
    let bed = Bed::new();
    let forgetful = bed.forgetful();
    bed.cut(&forgetful, "database-8");
    assert_eq!(bed.batches(&forgetful), Some(4));
}

#[test]
fn without_journal_syncs_fjall_loses_synced_batches() {
    let bed = Bed::new();
    let created = bed.forgetful();
    assert_eq!(bed.batches(&created), Some(0));

    let forgetful = bed.forgetful().without_sync_of("*.jnl");
    let report = bed.cut(&forgetful, "database-8");
    assert!(report.syncs_ignored >= 4, "{report:?}");
    assert_eq!(bed.batches(&forgetful), Some(0), "the ablation went unnoticed");
}

/// fjall does not sync the folder in which it makes a keyspace. ext4, XFS and btrfs keep the name all the same; on a
/// disk that keeps only what POSIX promises, the owner of the database has to sync it.
#[test]
fn on_a_strict_disk_a_new_keyspace_needs_a_sync_of_its_folder() {
    for (task, kept) in [("database-8", 0), ("database-named-8", 4)] {
        let bed = Bed::new();
        fs::create_dir(bed.disk().join("db")).unwrap();
        let forgetful = bed.forgetful().requiring_directory_syncs();
        bed.cut(&forgetful, task);
        assert_eq!(bed.batches(&forgetful), Some(kept), "{task}");
    }
}
