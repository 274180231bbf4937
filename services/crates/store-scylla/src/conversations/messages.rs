//! Tables `messages` and `messages_kept`: conversation, sequence → ciphertext, in partitions of 1,024 sequences.
//!
//! Sequences are dense, so a page that reaches an empty partition has reached the end of the conversation, or what
//! retention has dropped. `messages_kept` tells these apart: without it a device that begins anew in an old conversation
//! would have every dropped partition looked up.

use std::ops::ControlFlow;

use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::ConversationId;
use wardline_domain::envelope::Sequence;
use wardline_store::Result;
use wardline_store::conversations::MessageRow;
use wardline_store::encoding::conversations::{MESSAGE_PARTITION_BITS, decode_message, encode_message};

use crate::batch::{Tally, Write};
use crate::number::{bound, from_cql, limit, to_cql};
use crate::session::Cql;
use crate::statements::Preparer;

const TABLE: &str = "messages";

/// How many messages come in a page. Cassandra bounds a page by rows alone, and a message may have 1 MiB.
const PAGE: i32 = 4;

/// How many partitions one call drops at most; the next call goes on.
const SWEEP_PARTITIONS: i64 = 1 << 12;

pub(super) struct Statements {
    put: PreparedStatement,
    get: PreparedStatement,
    page: PreparedStatement,
    drop: PreparedStatement,
    kept: PreparedStatement,
    put_first: PreparedStatement,
    put_dropped: PreparedStatement,
}

impl Statements {
    pub(super) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            put: p
                .write(
                    "INSERT INTO {ks}.messages (conversation, bucket, sequence, value) VALUES (?, ?, ?, ?) \
                     USING TIMESTAMP ?",
                )
                .await?,
            get: p
                .read("SELECT value FROM {ks}.messages WHERE conversation = ? AND bucket = ? AND sequence = ?")
                .await?,
            page: p
                .read_paged(
                    PAGE,
                    "SELECT sequence, value FROM {ks}.messages \
                     WHERE conversation = ? AND bucket = ? AND sequence > ? LIMIT ?",
                )
                .await?,
            drop: p.write("DELETE FROM {ks}.messages WHERE conversation = ? AND bucket = ?").await?,
            kept: p.read("SELECT first, dropped FROM {ks}.messages_kept WHERE conversation = ?").await?,
            put_first: p
                .write("UPDATE {ks}.messages_kept USING TIMESTAMP ? SET first = ? WHERE conversation = ?")
                .await?,
            put_dropped: p
                .write("UPDATE {ks}.messages_kept USING TIMESTAMP ? SET dropped = ? WHERE conversation = ?")
                .await?,
        })
    }
}

/// Which partitions of a conversation retention has left.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// The first one that is read.
    first: i64,
    /// All below are dropped.
    dropped: i64,
}

fn bucket(sequence: i64) -> i64 {
    sequence >> MESSAGE_PARTITION_BITS
}

/// What a page holds, and whether it wants more.
struct Page {
    rows: Vec<MessageRow>,
    limit: usize,
    bytes: usize,
    max_bytes: usize,
    full: bool,
}

impl Page {
    fn take(&mut self, row: MessageRow) -> ControlFlow<()> {
        self.bytes = self.bytes.saturating_add(row.sealed.len());
        if self.bytes > self.max_bytes && !self.rows.is_empty() {
            self.full = true;
            return ControlFlow::Break(());
        }
        self.rows.push(row);
        self.full = self.rows.len() >= self.limit;
        if self.full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Cql {
    pub(super) async fn put_messages(&self, rows: &[MessageRow]) -> Result<Tally> {
        let statement = &self.statements.conversations.messages.put;
        let write = |row: &MessageRow| {
            let (sequence, value) = (to_cql(TABLE, row.sequence.0)?, encode_message(row));
            let (bytes, bucket) = (value.len(), bucket(sequence));
            let at = to_cql(TABLE, row.accepted_at.as_micros())?;
            let values = (*row.conversation.as_bytes(), bucket, sequence, value, at);
            Ok(Write { partition: (row.conversation, bucket), statement, values, bytes })
        };
        let writes = rows.iter().map(write).collect::<Result<Vec<_>>>()?;
        Ok(self.write_all("messages.put", writes).await)
    }

    pub(super) async fn message(&self, conversation: ConversationId, sequence: Sequence) -> Result<Option<MessageRow>> {
        let Ok(at) = i64::try_from(sequence.0) else { return Ok(None) };
        let statement = &self.statements.conversations.messages.get;
        let key = (conversation.as_bytes(), bucket(at), at);
        let found = self.one::<(Bytes,)>("messages.get", statement, key).await?;
        found.map(|(value,)| decode_message(conversation, sequence.0, value)).transpose()
    }

    /// Messages above `after`, as far as the limits go.
    pub(super) async fn messages(
        &self,
        conversation: ConversationId,
        after: Sequence,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<MessageRow>> {
        let mut page = Page { rows: Vec::new(), limit, bytes: 0, max_bytes, full: limit == 0 };
        let Some(mut after) = i64::try_from(after.0).ok().filter(|after| *after < i64::MAX) else {
            return Ok(page.rows);
        };
        let mut at = bucket(after + 1);
        while !page.full {
            let before = page.rows.len();
            self.messages_of(conversation, at, after, &mut page).await?;
            if page.full {
                break;
            }
            let last = page.rows.get(before..).and_then(<[MessageRow]>::last).map(|row| row.sequence.0);
            match last {
                // The partition's last sequence: the next partition may have more.
                Some(last) if bucket(from_u64(last) + 1) > at => at += 1,
                Some(_) => break,
                None => match self.first_kept(conversation).await? {
                    first if first > at => at = first,
                    _ => break,
                },
            }
            after = after.max((at << MESSAGE_PARTITION_BITS) - 1);
        }
        Ok(page.rows)
    }

    async fn messages_of(&self, conversation: ConversationId, bucket: i64, after: i64, page: &mut Page) -> Result<()> {
        let statement = &self.statements.conversations.messages.page;
        let wanted = limit(page.limit - page.rows.len());
        let take = |(sequence, value): (i64, Bytes)| {
            Ok(page.take(decode_message(conversation, from_cql(TABLE, sequence)?, value)?))
        };
        self.pages("messages.page", statement, (conversation.as_bytes(), bucket, after, wanted), take).await
    }

    async fn kept(&self, conversation: ConversationId) -> Result<Kept> {
        let statement = &self.statements.conversations.messages.kept;
        type Cells = (Option<i64>, Option<i64>);
        let found = self.one::<Cells>("messages_kept.get", statement, (conversation.as_bytes(),)).await?;
        let (first, dropped) = found.unwrap_or_default();
        Ok(Kept { first: first.unwrap_or(0), dropped: dropped.unwrap_or(0) })
    }

    async fn first_kept(&self, conversation: ConversationId) -> Result<i64> {
        Ok(self.kept(conversation).await?.first)
    }

    /// Deletes the partitions that lie at or below `through` as a whole: nothing reads them any more, then they go, then it
    /// is written that they are gone. What a crash leaves undone the next call does.
    pub(super) async fn drop_messages(&self, conversation: ConversationId, through: Sequence) -> Result<()> {
        let statements = &self.statements.conversations.messages;
        let first = bucket(bound(through.0.saturating_add(1)));
        let kept = self.kept(conversation).await?;
        if kept.first < first {
            let values = (first, first, conversation.as_bytes());
            self.write("messages_kept.put", &statements.put_first, values).await?;
        }
        let end = first.max(kept.first).min(kept.dropped.saturating_add(SWEEP_PARTITIONS));
        if kept.dropped >= end {
            return Ok(());
        }
        let writes = (kept.dropped..end).map(|bucket| Write {
            partition: bucket,
            statement: &statements.drop,
            values: (*conversation.as_bytes(), bucket),
            bytes: 0,
        });
        self.write_all("messages.drop", writes.collect()).await.end()?;
        self.write("messages_kept.put", &statements.put_dropped, (end, end, conversation.as_bytes())).await
    }
}

/// A sequence that was read: it fits.
fn from_u64(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX - 1)
}
