//! The seam of conversations over its tables, and the tables `heads` and `conversations_of`.

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::conversation::{Head, OutcomeKey};
use wardline_domain::envelope::Sequence;
use wardline_domain::roster::Roster;
use wardline_domain::{ConversationId, Timestamp, UserId};

use super::cells::{Cell, split};
use super::codec::{Decoder, Encoder, array_at};
use super::engine::{Engine, Table, key, unusable};
use super::{Embedded, members, messages, outcomes};
use crate::Result;
use crate::conversations::{Conversations, HeadRow, MembershipRow, MessageRow, OutcomeRow, RowBatch};
use crate::encoding::conversations::{decode_message, decode_outcome};

/// Up to this many single reads run inline.
const INLINE_READS: usize = 16;

/// A batch's rows as keys and values.
struct Rows {
    messages: Vec<(Vec<u8>, Bytes)>,
    outcomes: Vec<(Vec<u8>, Bytes)>,
    members: Vec<(Vec<u8>, Bytes)>,
    memberships: Vec<Cell>,
}

impl Rows {
    fn encode(rows: &RowBatch) -> Self {
        Self {
            messages: rows.messages.iter().map(messages::encode).collect(),
            outcomes: rows.outcomes.iter().map(outcomes::encode).collect(),
            members: rows.members.iter().flat_map(members::encode).collect(),
            memberships: rows.memberships.iter().map(membership_cell).collect(),
        }
    }

    fn write(self, engine: &Engine) -> Result<()> {
        let mut batch = engine.batch();
        for (key, value) in self.messages {
            batch.insert(&engine.tables.messages.keyspace, key, value);
        }
        for (key, value) in self.outcomes {
            batch.insert(&engine.tables.outcomes.keyspace, key, value);
        }
        members::insert(engine, &mut batch, self.members);
        let _guards = engine.raise_into(&mut batch, &engine.tables.conversations_of, self.memberships)?;
        engine.commit(batch)
    }
}

fn membership_key(user: UserId, conversation: &[u8]) -> Vec<u8> {
    key(&[user.as_bytes(), conversation])
}

fn membership_cell(row: &MembershipRow) -> Cell {
    let mut value = Encoder::new(1);
    value.flag(row.member);
    Cell { key: membership_key(row.user, row.conversation.as_bytes()), at: row.position, value: value.finish() }
}

fn memberships(
    engine: &Engine,
    user: UserId,
    after: Option<ConversationId>,
    limit: usize,
) -> Result<Vec<MembershipRow>> {
    let table = &engine.tables.conversations_of;
    // A key that is longer by a byte is the least one above.
    let first = match after {
        None => membership_key(user, &[]),
        Some(after) => key(&[user.as_bytes(), after.as_bytes(), &[0]]),
    };
    let range = table.range(&first, &membership_key(user, &[0xff; 16]));
    range
        .take(limit)
        .map(|row| {
            let (key, stored) = row?;
            let (position, value) = split(table, stored)?;
            let mut value = Decoder::new(table.name, value)?;
            let conversation = ConversationId::from_bytes(array_at(table.name, &key, 16)?);
            let member = value.flag()?;
            value.finish(MembershipRow { user, conversation, member, position })
        })
        .collect()
}

fn head(table: &Table, conversation: ConversationId) -> Result<Option<Head>> {
    let Some(stored) = table.get(conversation.as_bytes())? else { return Ok(None) };
    let (position, value) = split(table, stored)?;
    let head = Head::decode(&value).map_err(|error| unusable(format!("heads: {error}")))?;
    if head.last != position {
        return Err(unusable("heads: a head's write timestamp is not its last position"));
    }
    Ok(Some(head))
}

impl Embedded {
    /// Reads one thing for each key, in the order asked: a few inline, many on the blocking pool.
    async fn each<K, T>(&self, keys: &[K], read: fn(&Engine, &K) -> Result<T>) -> Result<Vec<T>>
    where
        K: Clone + Send + 'static,
        T: Send + 'static,
    {
        if keys.len() <= INLINE_READS {
            return keys.iter().map(|key| read(&self.0, key)).collect();
        }
        let keys = keys.to_vec();
        self.0.blocking(move |engine| keys.iter().map(|key| read(engine, key)).collect()).await
    }
}

#[async_trait]
impl Conversations for Embedded {
    async fn put_rows(&self, rows: &RowBatch) -> Result<()> {
        let rows = Rows::encode(rows);
        self.0.blocking(move |engine| rows.write(engine)).await
    }

    async fn put_heads(&self, heads: &[HeadRow]) -> Result<()> {
        let cell = |row: &HeadRow| Cell {
            key: row.conversation.as_bytes().to_vec(),
            at: row.head.last,
            value: row.head.encode(),
        };
        let cells = heads.iter().map(cell).collect();
        self.0.blocking(move |engine| engine.raise(&engine.tables.heads, cells)).await
    }

    async fn head(&self, conversation: ConversationId) -> Result<Option<Head>> {
        head(&self.0.tables.heads, conversation)
    }

    async fn heads(&self, conversations: &[ConversationId]) -> Result<Vec<Option<Head>>> {
        self.each(conversations, |engine, conversation| head(&engine.tables.heads, *conversation)).await
    }

    async fn roster(&self, conversation: ConversationId, at_most: u64) -> Result<Roster> {
        self.0.blocking(move |engine| members::roster(engine, conversation, at_most)).await
    }

    async fn outcomes(&self, keys: &[OutcomeKey]) -> Result<Vec<Option<OutcomeRow>>> {
        self.each(keys, |engine, key| {
            let stored = engine.tables.outcomes.get(&outcomes::outcome_key(key))?;
            stored.map(|bytes| decode_outcome(*key, bytes)).transpose()
        })
        .await
    }

    async fn messages(
        &self,
        conversation: ConversationId,
        after: Sequence,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<MessageRow>> {
        self.0.blocking(move |engine| messages::page(engine, conversation, after, limit, max_bytes)).await
    }

    async fn messages_at(&self, at: &[(ConversationId, Sequence)]) -> Result<Vec<Option<MessageRow>>> {
        self.each(at, |engine, (conversation, sequence)| {
            let stored = engine.tables.messages.get(&messages::message_key(*conversation, sequence.0))?;
            stored.map(|bytes| decode_message(*conversation, sequence.0, bytes)).transpose()
        })
        .await
    }

    async fn memberships(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: usize,
    ) -> Result<Vec<MembershipRow>> {
        self.0.blocking(move |engine| memberships(engine, user, after, limit)).await
    }

    async fn drop_messages(&self, conversation: ConversationId, through: Sequence, now: Timestamp) -> Result<()> {
        self.0
            .blocking(move |engine| {
                messages::drop_through(engine, conversation, through)?;
                outcomes::expire(engine, conversation, now)
            })
            .await
    }
}
