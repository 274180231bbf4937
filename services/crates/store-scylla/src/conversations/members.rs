//! Table `members`: conversation, version → a delta, every 64th with the whole roster, in chunks.

use std::ops::ControlFlow;

use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::ConversationId;
use wardline_domain::roster::{InvalidRoster, Roster, RosterDelta};
use wardline_store::Result;
use wardline_store::conversations::{MembersRow, SNAPSHOT_EVERY};
use wardline_store::encoding::{Decoder, Encoder};

use crate::batch::{Tally, Write};
use crate::blobs::{Joined, cut};
use crate::number::{bound, corrupt, from_cql, to_cql};
use crate::session::Cql;
use crate::statements::Preparer;

const TABLE: &str = "members";

/// How many chunks come in a page: a few large ones, or the deltas between two snapshots.
const PAGE: i32 = 64;

pub(super) struct Statements {
    put: PreparedStatement,
    range: PreparedStatement,
    newest_below: PreparedStatement,
}

impl Statements {
    pub(super) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            put: p
                .write(
                    "INSERT INTO {ks}.members (conversation, version, chunk, chunks, value) VALUES (?, ?, ?, ?, ?) \
                     USING TIMESTAMP ?",
                )
                .await?,
            range: p
                .read_paged(
                    PAGE,
                    "SELECT version, chunk, chunks, value FROM {ks}.members \
                     WHERE conversation = ? AND version >= ? AND version <= ?",
                )
                .await?,
            newest_below: p
                .read(
                    "SELECT version FROM {ks}.members WHERE conversation = ? AND version < ? \
                     ORDER BY version DESC LIMIT 1",
                )
                .await?,
        })
    }
}

/// A version's value: its delta, then the whole roster where there is one.
fn encode(row: &MembersRow) -> Bytes {
    let delta = row.delta.encode();
    let snapshot = row.snapshot.as_ref().map(|roster| roster.encode());
    let mut value = Encoder::new(16 + delta.len() + snapshot.as_ref().map_or(0, Bytes::len));
    value.time(row.accepted_at).bytes(&delta).option(snapshot, |value, snapshot| {
        value.bytes(&snapshot);
    });
    value.finish()
}

/// A version as it was read.
struct Version {
    version: u64,
    delta: RosterDelta,
    snapshot: Option<Bytes>,
}

fn unreadable(error: InvalidRoster) -> wardline_store::Failure {
    corrupt(format!("members: {error}"))
}

fn decode(version: u64, bytes: Bytes) -> Result<Version> {
    let mut value = Decoder::new(TABLE, bytes)?;
    value.time()?;
    let delta = RosterDelta::decode(&value.bytes()?).map_err(unreadable)?;
    if delta.to != version {
        return Err(corrupt("members: a delta to another version than its key's"));
    }
    let snapshot = value.option(Decoder::bytes)?;
    value.finish(Version { version, delta, snapshot })
}

/// Builds a roster of versions as they come. A version that a torn batch left out, in part or whole, ends it: what lies
/// behind is written again before any head names it.
struct Fold {
    base: u64,
    roster: Option<Roster>,
    version: i64,
    chunks: Joined,
    ended: bool,
}

impl Fold {
    /// Begins with the whole roster at `base`; with the empty one when that is 0.
    fn new(base: u64) -> Self {
        let roster = (base == 0).then(Roster::default);
        Self { base, roster, version: -1, chunks: Joined::default(), ended: false }
    }

    fn take(&mut self, (version, chunk, chunks, value): (i64, i32, i32, Bytes)) -> Result<ControlFlow<()>> {
        if version != self.version {
            self.close()?;
            self.version = version;
        }
        if self.ended {
            return Ok(ControlFlow::Break(()));
        }
        self.chunks.add(chunk, chunks, value);
        Ok(ControlFlow::Continue(()))
    }

    /// Applies the version whose chunks have all come.
    fn close(&mut self) -> Result<()> {
        if self.version < 0 || self.ended {
            return Ok(());
        }
        let Some(value) = std::mem::take(&mut self.chunks).value() else {
            self.ended = true;
            return Ok(());
        };
        let read = decode(from_cql(TABLE, self.version)?, value)?;
        match &mut self.roster {
            None => self.roster = self.begin(read)?,
            Some(roster) if roster.version().checked_add(1) == Some(read.version) => {
                roster.apply(&read.delta).map_err(unreadable)?;
            }
            Some(_) => self.ended = true,
        }
        self.ended |= self.roster.is_none();
        Ok(())
    }

    fn begin(&self, first: Version) -> Result<Option<Roster>> {
        let Some(snapshot) = first.snapshot.filter(|_| first.version == self.base) else { return Ok(None) };
        let roster = Roster::decode(&snapshot).map_err(unreadable)?;
        if roster.version() != first.version {
            return Err(corrupt("members: a snapshot of another version than its key's"));
        }
        Ok(Some(roster))
    }
}

impl Cql {
    pub(super) async fn put_members(&self, rows: &[MembersRow]) -> Result<Tally> {
        let statement = &self.statements.conversations.members.put;
        let mut writes = Vec::with_capacity(rows.len());
        for row in rows {
            let (version, at) = (to_cql(TABLE, row.version)?, to_cql(TABLE, row.accepted_at.as_micros())?);
            for (chunk, chunks, value) in cut(&encode(row))? {
                let bytes = value.len();
                let values = (*row.conversation.as_bytes(), version, chunk, chunks, value, at);
                writes.push(Write { partition: row.conversation, statement, values, bytes });
            }
        }
        Ok(self.write_all("members.put", writes).await)
    }

    /// Reads from the nearest version that should have a snapshot. Where a torn batch left it out, from the one before.
    pub(super) async fn roster(&self, conversation: ConversationId, at_most: u64) -> Result<Roster> {
        let mut base = at_most - at_most % SNAPSHOT_EVERY;
        loop {
            let mut fold = Fold::new(base);
            let statement = &self.statements.conversations.members.range;
            let values = (conversation.as_bytes(), bound(base), bound(at_most));
            self.pages("members.get", statement, values, |row| fold.take(row)).await?;
            fold.close()?;
            if let Some(roster) = fold.roster {
                return Ok(roster);
            }
            base = self.snapshot_below(conversation, base).await?;
        }
    }

    /// The version below `base` whose snapshot leads to the greatest that is stored below it; 0 for none.
    async fn snapshot_below(&self, conversation: ConversationId, base: u64) -> Result<u64> {
        let statement = &self.statements.conversations.members.newest_below;
        let found = self.one::<(i64,)>("members.newest", statement, (conversation.as_bytes(), bound(base))).await?;
        let newest = found.map_or(Ok(0), |(version,)| from_cql(TABLE, version))?;
        Ok(newest - newest % SNAPSHOT_EVERY)
    }
}
