//! One subscriber.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{Cause, Failure, Position};

use super::encoding::decode;
use super::groups::{Change, Inbox, Term};
use super::shelf::Found;
use super::{Shared, no_such_partition, offset_at_or_above, position};
use crate::seam::{Event, FetchLimits, Group, Start, Started, Subscription};
use crate::topic::{Partition, Topic};

struct Cursor {
    term: Term,
    /// The offset to give out next, or the first one kept above it.
    next: u64,
    paused: bool,
}

pub(super) struct Reader {
    shared: Arc<Shared>,
    topic: Topic,
    limits: FetchLimits,
    id: u64,
    inbox: Arc<Inbox>,
    cursors: BTreeMap<u32, Cursor>,
    /// The partition that gave last: the others go first.
    last: u32,
}

impl Reader {
    pub(super) fn join(shared: Arc<Shared>, group: Group, topic: Topic, limits: FetchLimits) -> Self {
        let (id, inbox) = shared.groups.join(group, topic, shared.options.count(topic).get());
        Self { shared, topic, limits, id, inbox, cursors: BTreeMap::new(), last: u32::MAX }
    }

    /// The next batch that is readable now. Moves the cursor only when it returns one.
    async fn read(&mut self) -> Result<Option<Event>, Failure> {
        let after = self.cursors.range((Bound::Excluded(self.last), Bound::Unbounded));
        let order: Vec<u32> = after.chain(self.cursors.range(..=self.last)).map(|(index, _)| *index).collect();
        for index in order {
            if let Some(event) = self.read_partition(index).await? {
                self.last = index;
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    async fn read_partition(&mut self, index: u32) -> Result<Option<Event>, Failure> {
        let partition = Partition { topic: self.topic, index };
        let Some((shelf, cursor)) = self.shared.shelf(partition).zip(self.cursors.get_mut(&index)) else {
            return Ok(None);
        };
        if cursor.paused || self.inbox.term(index) != Some(cursor.term) {
            return Ok(None);
        }
        let (found, past) = match shelf.find(cursor.next, self.limits) {
            Found::Nothing => return Ok(None),
            Found::InMemory(found) => (found, None),
            Found::OnDisk(from, to) => (from_disk(&self.shared, partition, from, to, self.limits).await?, Some(to)),
        };
        // It may have moved to another member while the disk was read.
        if self.inbox.term(index) != Some(cursor.term) {
            return Ok(None);
        }
        let records: Vec<_> =
            found.into_iter().map(|(offset, value)| decode(offset, value)).collect::<Result<_, _>>()?;
        // Nothing on disk up to there: compaction or trimming removed it all meanwhile.
        cursor.next = records.last().map(|last| last.position.offset() + 1).or(past).unwrap_or(cursor.next);
        self.inbox.stand(index, cursor.next);
        Ok((!records.is_empty()).then_some(Event::Records { partition: index, records }))
    }
}

async fn from_disk(
    shared: &Arc<Shared>,
    partition: Partition,
    from: u64,
    to: u64,
    limits: FetchLimits,
) -> Result<Vec<(u64, Bytes)>, Failure> {
    let shared = Arc::clone(shared);
    let read = move || shared.layout.read(partition, (from, to), (limits.records, limits.bytes));
    match tokio::task::spawn_blocking(read).await {
        Ok(found) => found,
        Err(_) => Err(Failure::NotApplied(Cause::unavailable("the read was cancelled"))),
    }
}

#[async_trait]
impl Subscription for Reader {
    async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            // Asked before the look, so that the writer's last records are seen before the end is told.
            let ended = self.shared.queue.is_drained();
            match self.inbox.take_change() {
                Some(Change::Assigned(partition)) => {
                    self.cursors.remove(&partition);
                    return Ok(Event::Assigned(partition));
                }
                Some(Change::Revoked(partition)) => {
                    self.cursors.remove(&partition);
                    return Ok(Event::Revoked(partition));
                }
                None => {}
            }
            if let Some(event) = self.read().await? {
                return Ok(event);
            }
            if ended {
                return Err(Failure::NotApplied(Cause::unavailable("the log is closed")));
            }
            self.inbox.stirred.notified().await;
        }
    }

    async fn start(&mut self, partition: u32, from: Start) -> Result<Started, Failure> {
        let shelf =
            self.shared.shelf(Partition { topic: self.topic, index: partition }).ok_or_else(no_such_partition)?;
        let Some(term) = self.inbox.term(partition) else {
            return Err(Failure::NotApplied(Cause::unavailable("the partition is not assigned")));
        };
        let (floor, end) = shelf.extent();
        let next = match from {
            Start::Oldest => floor,
            Start::Newest => end,
            Start::At(at) => offset_at_or_above(at),
        };
        if next > end {
            return Err(Failure::NotApplied(Cause::corrupt("the start lies beyond the log's end")));
        }
        self.cursors.insert(partition, Cursor { term, next, paused: false });
        self.inbox.stand(partition, next);
        Ok(Started { oldest: (floor < end).then(|| position(floor)), end: position(end) })
    }

    fn pause(&mut self, partition: u32) {
        if let Some(cursor) = self.cursors.get_mut(&partition) {
            cursor.paused = true;
        }
    }

    fn resume(&mut self, partition: u32) {
        if let Some(cursor) = self.cursors.get_mut(&partition) {
            cursor.paused = false;
        }
    }

    /// Lag within one process is the end minus the checkpoint; nothing is kept here.
    fn ack(&mut self, _partition: u32, _through: Position) {}
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.groups.leave(self.id, self.shared.options.count(self.topic).get());
    }
}
