//! From the log to what the disk would hold: names first (a forward simulation of the directory tree and of what the
//! syncs kept of it), then the content of each file that is left (its undo records, newest first).

use super::journal::{self, Change, Record, Target};
use super::{Report, link_once};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    File(u64),
    Directory(usize),
}

type Entries = BTreeMap<OsString, Node>;

/// A directory and a name in it.
type Place<Name> = (usize, Name);

/// Directories by number; 0 is the watched one. Numbers are shared by the present tree and the kept one.
#[derive(Clone, Debug, Default)]
struct Tree {
    directories: HashMap<usize, Entries>,
}

impl Tree {
    fn entries(&self, directory: usize) -> impl Iterator<Item = (&OsString, &Node)> {
        self.directories.get(&directory).into_iter().flatten()
    }

    fn insert(&mut self, directory: usize, name: &OsStr, node: Node) {
        self.directories.entry(directory).or_default().insert(name.to_owned(), node);
    }

    fn remove(&mut self, directory: usize, name: &OsStr) -> Option<Node> {
        self.directories.get_mut(&directory)?.remove(name)
    }

    /// The directories on the way to a path, the watched one first, and the last name. `None` when one is missing.
    fn walk<'a>(&self, path: &'a Path) -> Option<(Vec<Place<&'a OsStr>>, Option<Node>)> {
        let mut steps = Vec::new();
        let mut node = Some(Node::Directory(0));
        for name in path {
            let Some(Node::Directory(directory)) = node else { return None };
            steps.push((directory, name));
            node = self.directories.get(&directory)?.get(name).copied();
        }
        Some((steps, node))
    }

    /// Every place where a node has a name.
    fn places(&self, node: Node) -> Vec<Place<OsString>> {
        let named = |(directory, entries): (&usize, &Entries)| {
            let directory = *directory;
            entries.iter().filter(|(_, other)| **other == node).map(|(name, _)| (directory, name.clone())).collect()
        };
        self.directories.iter().flat_map::<Vec<_>, _>(named).collect()
    }
}

/// The tree as the program saw it, and the tree as the disk keeps it.
#[derive(Debug)]
struct Names {
    present: Tree,
    kept: Tree,
    next_directory: usize,
    strict: bool,
    /// How many changes of names there have been, and how many when the names of a file were last kept.
    changes: u64,
    kept_at: HashMap<u64, u64>,
}

impl Names {
    fn new(initial: &[super::Entry], strict: bool) -> Self {
        let mut names = Self {
            present: Tree::default(),
            kept: Tree::default(),
            next_directory: 1,
            strict,
            changes: 0,
            kept_at: HashMap::new(),
        };
        names.present.directories.insert(0, Entries::new());
        for entry in initial {
            match entry.inode {
                Some(inode) => names.put(&entry.path, Node::File(inode)),
                None => names.make_directory(&entry.path),
            }
        }
        names.kept = names.present.clone();
        names
    }

    fn put(&mut self, path: &Path, node: Node) {
        if let Some((steps, _)) = self.present.walk(path)
            && let Some((directory, name)) = steps.last()
        {
            self.present.insert(*directory, name, node);
        }
    }

    fn make_directory(&mut self, path: &Path) {
        let number = self.next_directory;
        self.next_directory += 1;
        self.present.directories.insert(number, Entries::new());
        self.put(path, Node::Directory(number));
    }

    fn take(&mut self, path: &Path) -> Option<Node> {
        let (steps, _) = self.present.walk(path)?;
        let (directory, name) = steps.last()?;
        self.present.remove(*directory, name)
    }

    fn apply(&mut self, change: &Change) {
        if matches!(change, Change::Undo { .. } | Change::Sync { .. }) {
            return;
        }
        self.changes += 1;
        match change {
            Change::Create { inode, path } => self.put(path, Node::File(*inode)),
            Change::Remove { path } => drop(self.take(path)),
            Change::MakeDir { path } => self.make_directory(path),
            Change::Rename { from, to } => {
                let replaced = self.present.walk(to).and_then(|(_, node)| node);
                let moved = self.present.walk(from).and_then(|(_, node)| node);
                if moved != replaced // two names of one file: POSIX renames nothing
                    && let Some(node) = self.take(from)
                {
                    self.put(to, node);
                }
            }
            Change::Undo { .. } | Change::Sync { .. } => {}
        }
    }

    fn sync(&mut self, target: Target, path: &Path) {
        match target {
            Target::File(_) if self.strict => {}
            Target::File(inode) => {
                // Most syncs are of a file whose name has long been kept.
                if self.kept_at.insert(inode, self.changes) != Some(self.changes) {
                    self.keep_places_of(Node::File(inode));
                }
            }
            Target::Directory => {
                let Some((_, Some(Node::Directory(number)))) = self.present.walk(path) else { return };
                let entries = self.present.directories.get(&number).cloned().unwrap_or_default();
                let before = self.kept.directories.insert(number, entries.clone()).unwrap_or_default();
                if self.strict {
                    return;
                }
                self.keep_places_of(Node::Directory(number));
                let touched: BTreeSet<Node> = before.values().chain(entries.values()).copied().collect();
                let unmoved: BTreeSet<Node> = entries
                    .iter()
                    .filter(|(name, node)| before.get(*name) == Some(node))
                    .map(|(_, node)| *node)
                    .collect();
                for node in touched.difference(&unmoved) {
                    self.keep_places_of(*node);
                }
            }
        }
    }

    /// Makes the kept names of a node its present ones, with the directories that lead to them.
    fn keep_places_of(&mut self, node: Node) {
        for (directory, name) in self.kept.places(node) {
            self.kept.remove(directory, &name);
        }
        for (directory, name) in self.present.places(node) {
            self.kept.insert(directory, &name, node);
            let above = Node::Directory(directory);
            if directory != 0 && self.kept.places(above) != self.present.places(above) {
                self.keep_places_of(above);
            }
        }
    }
}

/// Sets the watched directory back to what the disk would hold.
pub(super) fn undo(
    watched: &Path,
    journal: &Path,
    records: &[Record],
    counts: &dyn Fn(&OsStr) -> bool,
    strict: bool,
) -> io::Result<Report> {
    let mut report = Report::default();
    let mut syncs: Vec<(u64, Target, &Path)> = Vec::new();
    for record in records {
        if let Change::Sync { target, path, since } = &record.change {
            let mut shown = path.clone().into_os_string();
            if *target == Target::Directory {
                shown.push("/");
            }
            if counts(&shown) {
                report.syncs_kept += 1;
                syncs.push((*since, *target, path));
            } else {
                report.syncs_ignored += 1;
            }
        }
    }
    syncs.sort_by_key(|(since, ..)| *since);

    let mut names = Names::new(&journal::read_initial(&journal.join("initial"))?, strict);
    let mut synced_to: HashMap<u64, u64> = HashMap::new();
    let mut due = syncs.into_iter().peekable();
    let end = (u64::MAX, None);
    for (at, record) in records.iter().map(|record| (record.at, Some(record))).chain([end]) {
        while let Some((since, target, path)) = due.next_if(|(since, ..)| *since <= at) {
            names.sync(target, path);
            if let Target::File(inode) = target {
                synced_to.insert(inode, since);
            }
        }
        if let Some(record) = record {
            names.apply(&record.change);
        }
    }

    let pool = journal.join("pool");
    let mut remaining = BTreeSet::new();
    realise(&names.kept, 0, watched, &pool, &mut remaining, &mut report)?;
    restore_content(&pool, records, &synced_to, &remaining, &mut report)?;
    Ok(report)
}

/// Makes a directory hold exactly what is kept of it.
fn realise(
    kept: &Tree,
    directory: usize,
    at: &Path,
    pool: &Path,
    remaining: &mut BTreeSet<u64>,
    report: &mut Report,
) -> io::Result<()> {
    let wanted: BTreeMap<&OsString, &Node> = kept.entries(directory).collect();
    let mut right: BTreeSet<OsString> = BTreeSet::new();
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        let is_directory = entry.file_type()?.is_dir();
        let keep = match wanted.get(&entry.file_name()) {
            Some(Node::Directory(_)) => is_directory,
            Some(Node::File(inode)) => !is_directory && entry.ino() == *inode,
            None => false,
        };
        if keep {
            right.insert(entry.file_name());
            continue;
        }
        report.names_undone += 1;
        if is_directory {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    for (name, node) in wanted {
        let path = at.join(name);
        let missing = !right.contains(name);
        report.names_undone += u64::from(missing);
        match node {
            Node::File(inode) => {
                remaining.insert(*inode);
                if missing {
                    link_once(&pool.join(inode.to_string()), &path)?;
                }
            }
            Node::Directory(number) => {
                if missing {
                    fs::create_dir(&path)?;
                }
                realise(kept, *number, &path, pool, remaining, report)?;
            }
        }
    }
    Ok(())
}

fn restore_content(
    pool: &Path,
    records: &[Record],
    synced_to: &HashMap<u64, u64>,
    remaining: &BTreeSet<u64>,
    report: &mut Report,
) -> io::Result<()> {
    let mut restored = BTreeSet::new();
    for record in records.iter().rev() {
        let Change::Undo { inode, old_length, offset, count, old, changed } = &record.change else { continue };
        if !remaining.contains(inode) || synced_to.get(inode).is_some_and(|since| record.at < *since) {
            continue;
        }
        let file = OpenOptions::new().write(true).open(pool.join(inode.to_string()))?;
        let length = file.metadata()?.len();
        file.set_len(*old_length)?;
        match old {
            Some(old) => file.write_all_at(old, *offset)?,
            None if length > *offset => write_zeros(&file, *offset, *count)?,
            None => {} // grown back by set_len, and so zeros already
        }
        restored.insert(*inode);
        report.bytes_undone += changed;
    }
    report.files_restored = restored.len() as u64;
    Ok(())
}

fn write_zeros(file: &File, mut offset: u64, mut count: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 64 * 1024];
    while count > 0 {
        let step = count.min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..step as usize], offset)?;
        offset += step;
        count -= step;
    }
    Ok(())
}
