//! The one thread that writes: takes all that waits, commits it with one sync, shows it, answers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode};
use tokio::sync::oneshot;
use wardline_domain::{Failure, Position};

use super::encoding::{encode, row};
use super::layout::{Newest, Stale, unavailable};
use super::queue::{Answer, Request};
use super::{Environment, Shared, position};
use crate::seam::{NewRecord, Permit};
use crate::topic::{Partition, Topic};

/// Rows removed behind floors in one commit.
const SWEEP: u64 = 4096;

pub(super) fn spawn(
    shared: Arc<Shared>,
    environment: Environment,
    (newest, stale): (Newest, Stale),
) -> Result<JoinHandle<()>, Failure> {
    let mut writer = Writer { shared, environment, newest, stale, floors: HashMap::new() };
    writer.load_floors()?;
    std::thread::Builder::new().name("wardline-log".to_owned()).spawn(move || writer.run()).map_err(unavailable)
}

struct Writer {
    shared: Arc<Shared>,
    environment: Environment,
    newest: Newest,
    /// Superseded rows, removed by the commit after the one that superseded them.
    stale: Stale,
    floors: HashMap<Partition, Floor>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Floor {
    /// Below it nothing is given out.
    floor: u64,
    /// Below it all rows are removed.
    swept: u64,
}

/// What one commit holds for one partition.
struct Written {
    end: u64,
    records: Vec<(u64, Bytes)>,
}

/// Who waits for positions, and the room that the records take until they are durable.
type Waiter = (oneshot::Sender<Answer<Vec<Position>>>, Vec<Position>, Permit);

/// One commit in the making.
struct Commit {
    batch: OwnedWriteBatch,
    written: BTreeMap<Partition, Written>,
    floors: HashMap<Partition, Floor>,
    appended: Vec<Waiter>,
    trimmed: Vec<oneshot::Sender<Answer<()>>>,
}

impl Writer {
    fn load_floors(&mut self) -> Result<(), Failure> {
        for topic in Topic::ALL {
            for index in 0..self.shared.options.count(topic).get() {
                let partition = Partition { topic, index };
                let (floor, swept) = self.shared.layout.floor(partition)?;
                self.floors.insert(partition, Floor { floor, swept });
            }
        }
        Ok(())
    }

    fn run(mut self) {
        while let Some(requests) = self.shared.queue.take(!self.behind()) {
            if !self.turn(requests) {
                break;
            }
        }
        self.shared.queue.end();
        self.shared.groups.wake_all();
    }

    /// Whether rows that nobody may read are left.
    fn behind(&self) -> bool {
        !self.stale.is_empty() || self.floors.values().any(|floor| floor.swept < floor.floor)
    }

    /// Whether it was written. When not, the process has ended before any waiter is told, unless a test saw to it.
    fn turn(&mut self, requests: VecDeque<Request>) -> bool {
        let stale = std::mem::take(&mut self.stale);
        let mut commit = self.prepare(requests);
        self.sweep(&mut commit);
        for (partition, offset) in &stale {
            commit.batch.remove(&self.shared.layout.rows, &row(*partition, *offset)[..]);
        }
        let batch = std::mem::replace(&mut commit.batch, self.shared.layout.database.batch());
        if let Err(why) = self.write(batch) {
            self.shared.queue.close();
            (self.environment.fatal)(&why);
            return false;
        }
        self.show(&mut commit);
        for (partition, offset) in stale {
            self.shared.shelf(partition).inspect(|shelf| shelf.forget(offset));
        }
        for (answer, positions, permit) in commit.appended {
            drop(permit);
            // Whoever does not wait for the answer has it in the log all the same.
            let _ = answer.send(Ok(positions));
        }
        for answer in commit.trimmed {
            let _ = answer.send(Ok(()));
        }
        true
    }

    fn write(&self, batch: OwnedWriteBatch) -> Result<(), String> {
        if batch.is_empty() {
            return Ok(());
        }
        (self.environment.before_commit)().map_err(|error| error.to_string())?;
        // fdatasync also makes the journal's new length durable, which is all that a reader of it needs.
        batch.durability(Some(PersistMode::SyncData)).commit().map_err(|error| error.to_string())
    }

    fn prepare(&mut self, requests: VecDeque<Request>) -> Commit {
        let mut commit = Commit {
            batch: OwnedWriteBatch::with_capacity(self.shared.layout.database.clone(), requests.len()),
            written: BTreeMap::new(),
            floors: HashMap::new(),
            appended: Vec::with_capacity(requests.len()),
            trimmed: Vec::new(),
        };
        for request in requests {
            match request {
                Request::Append { to, batch, permit, answer } => {
                    let positions = self.append(&mut commit, to, batch);
                    commit.appended.push((answer, positions, permit));
                }
                Request::Trim { partition, floor, answer } => {
                    // A reader that was overtaken by the owner of the checkpoint still gets all that it would have got:
                    // it must not fold a log with a hole.
                    let unread = self.shared.groups.lowest(partition).unwrap_or(u64::MAX);
                    let floor = floor.min(self.end(&commit, partition)).min(unread);
                    // Others read a compacted topic from its oldest record at every start.
                    if !partition.topic.compacted() {
                        self.raise(&mut commit, partition, floor);
                    }
                    commit.trimmed.push(answer);
                }
            }
        }
        commit
    }

    fn end(&self, commit: &Commit, partition: Partition) -> u64 {
        let shown = || self.shared.shelf(partition).map_or(0, |shelf| shelf.extent().1);
        commit.written.get(&partition).map_or_else(shown, |written| written.end)
    }

    fn append(&mut self, commit: &mut Commit, to: Partition, batch: Vec<NewRecord>) -> Vec<Position> {
        let first = self.end(commit, to);
        let at = (self.environment.clock)();
        let rows = &self.shared.layout.rows;
        let new = || Written { end: first, records: Vec::new() };
        let written = commit.written.entry(to).or_insert_with(new);
        let mut positions = Vec::with_capacity(batch.len());
        for record in batch {
            let offset = written.end;
            let value = encode(&record, at);
            commit.batch.insert(rows, &row(to, offset)[..], value.clone());
            if to.topic.compacted() {
                let keys = self.newest.entry(to).or_default();
                let older = keys.insert(record.key.as_ref().into(), offset);
                self.stale.extend(older.map(|older| (to, older)));
            }
            written.records.push((offset, value));
            written.end += 1;
            positions.push(position(offset));
        }
        if let Some(keep) = self.environment.retention.of(to.topic) {
            let floor = written.end.saturating_sub(keep);
            self.raise(commit, to, floor);
        }
        positions
    }

    fn raise(&mut self, commit: &mut Commit, partition: Partition, to: u64) {
        let Some(floor) = self.floors.get_mut(&partition) else { return };
        if to > floor.floor {
            floor.floor = to;
            commit.floors.insert(partition, *floor);
        }
    }

    /// Removes some rows below the floors and records how far that came, in the same commit. Rows of this very commit stay
    /// until the next: the database does not order an insertion and a removal of one row within a batch.
    fn sweep(&mut self, commit: &mut Commit) {
        let mut left = SWEEP;
        for (partition, floor) in self.floors.iter_mut().filter(|(_, floor)| floor.swept < floor.floor) {
            let shown = self.shared.shelf(*partition).map_or(0, |shelf| shelf.extent().1);
            let to = floor.floor.min(floor.swept + left).min(shown).max(floor.swept);
            left -= to - floor.swept;
            let rows = &self.shared.layout.rows;
            for offset in floor.swept..to {
                commit.batch.remove(rows, &row(*partition, offset)[..]);
            }
            if floor.swept < to {
                floor.swept = to;
                commit.floors.insert(*partition, *floor);
            }
        }
        for (partition, floor) in &commit.floors {
            self.shared.layout.put_floor(&mut commit.batch, *partition, floor.floor, floor.swept);
        }
    }

    /// Makes what is durable now readable, and wakes each subscriber at most once.
    fn show(&mut self, commit: &mut Commit) {
        for (partition, written) in std::mem::take(&mut commit.written) {
            let Some(shelf) = self.shared.shelf(partition) else { continue };
            shelf.publish(written.records, written.end);
            self.shared.groups.note(partition);
        }
        for (partition, floor) in &commit.floors {
            if let Some(shelf) = self.shared.shelf(*partition) {
                shelf.raise(floor.floor);
            }
        }
        self.shared.groups.wake();
    }
}
