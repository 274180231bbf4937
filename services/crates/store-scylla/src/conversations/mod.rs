//! The seam of conversations over its tables, and the tables `heads`, `outcomes` and `conversations_of`.

mod members;
mod messages;

use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::conversation::{Head, OutcomeKey};
use wardline_domain::envelope::Sequence;
use wardline_domain::roster::Roster;
use wardline_domain::{ConversationId, Position, Timestamp, UserId};
use wardline_store::Result;
use wardline_store::conversations::{Conversations, HeadRow, MembershipRow, MessageRow, OutcomeRow, RowBatch};
use wardline_store::encoding::conversations::{decode_outcome, encode_outcome, outcome_partition};

use crate::Scylla;
use crate::batch::{Tally, Write};
use crate::number::{corrupt, from_cql, id, limit, to_cql};
use crate::session::Cql;
use crate::statements::Preparer;

pub(crate) struct Statements {
    messages: messages::Statements,
    members: members::Statements,
    put_outcome: PreparedStatement,
    outcome: PreparedStatement,
    put_head: PreparedStatement,
    head: PreparedStatement,
    put_membership: PreparedStatement,
    memberships: PreparedStatement,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            messages: messages::Statements::prepare(p).await?,
            members: members::Statements::prepare(p).await?,
            put_outcome: p
                .write(
                    "INSERT INTO {ks}.outcomes (conversation, bucket, device, message, value) VALUES (?, ?, ?, ?, ?) \
                     USING TIMESTAMP ?",
                )
                .await?,
            outcome: p
                .read(
                    "SELECT value FROM {ks}.outcomes \
                     WHERE conversation = ? AND bucket = ? AND device = ? AND message = ?",
                )
                .await?,
            put_head: p.write("UPDATE {ks}.heads USING TIMESTAMP ? SET head = ? WHERE conversation = ?").await?,
            head: p.read("SELECT head, WRITETIME(head) FROM {ks}.heads WHERE conversation = ?").await?,
            put_membership: p
                .write(
                    "UPDATE {ks}.conversations_of USING TIMESTAMP ? SET member = ? \
                     WHERE user = ? AND conversation = ?",
                )
                .await?,
            memberships: p
                .read_paged(
                    1000,
                    "SELECT conversation, member, WRITETIME(member) FROM {ks}.conversations_of \
                     WHERE user = ? AND conversation > ? LIMIT ?",
                )
                .await?,
        })
    }
}

/// A key's partition of the table `outcomes`.
fn bucket(key: &OutcomeKey) -> i64 {
    i64::from(outcome_partition(key.message.unix_millis()))
}

impl Cql {
    async fn put_outcomes(&self, rows: &[OutcomeRow]) -> Result<Tally> {
        let statement = &self.statements.conversations.put_outcome;
        let write = |row: &OutcomeRow| {
            let (key, value) = (&row.key, encode_outcome(row));
            let (bytes, bucket) = (value.len(), bucket(key));
            let at = to_cql("outcomes", row.accepted_at.as_micros())?;
            let (device, message) = (*key.device.as_bytes(), *key.message.as_bytes());
            let values = (*key.conversation.as_bytes(), bucket, device, message, value, at);
            Ok(Write { partition: (key.conversation, bucket), statement, values, bytes })
        };
        let writes = rows.iter().map(write).collect::<Result<Vec<_>>>()?;
        Ok(self.write_all("outcomes.put", writes).await)
    }

    async fn put_memberships(&self, rows: &[MembershipRow]) -> Result<Tally> {
        let statement = &self.statements.conversations.put_membership;
        let write = |row: &MembershipRow| {
            let at = to_cql("conversations_of", row.position.as_u64())?;
            let values = (at, row.member, *row.user.as_bytes(), *row.conversation.as_bytes());
            Ok(Write { partition: row.user, statement, values, bytes: 48 })
        };
        let writes = rows.iter().map(write).collect::<Result<Vec<_>>>()?;
        Ok(self.write_all("conversations_of.put", writes).await)
    }

    async fn head(&self, conversation: ConversationId) -> Result<Option<Head>> {
        let statement = &self.statements.conversations.head;
        let found = self.one::<(Bytes, i64)>("heads.get", statement, (conversation.as_bytes(),)).await?;
        let Some((head, at)) = found else { return Ok(None) };
        let head = Head::decode(&head).map_err(|error| corrupt(format!("heads: {error}")))?;
        if head.last.as_u64() != from_cql("heads", at)? {
            return Err(corrupt("heads: a head's write timestamp is not its last position"));
        }
        Ok(Some(head))
    }

    async fn outcome(&self, key: OutcomeKey) -> Result<Option<OutcomeRow>> {
        let statement = &self.statements.conversations.outcome;
        let at = (key.conversation.as_bytes(), bucket(&key), key.device.as_bytes(), key.message.as_bytes());
        let found = self.one::<(Bytes,)>("outcomes.get", statement, at).await?;
        found.map(|(value,)| decode_outcome(key, value)).transpose()
    }
}

#[async_trait]
impl Conversations for Scylla {
    async fn put_rows(&self, rows: &RowBatch) -> Result<()> {
        let cql = &self.0;
        let ends = futures::join!(
            cql.put_messages(&rows.messages),
            cql.put_outcomes(&rows.outcomes),
            cql.put_members(&rows.members),
            cql.put_memberships(&rows.memberships),
        );
        let whole = |end: Result<Tally>| end.unwrap_or_else(|refused| Tally::default().add(Err(refused)));
        whole(ends.0).merge(whole(ends.1)).merge(whole(ends.2)).merge(whole(ends.3)).end()
    }

    async fn put_heads(&self, heads: &[HeadRow]) -> Result<()> {
        let statement = &self.0.statements.conversations.put_head;
        let write = |row: &HeadRow| {
            let head = row.head.encode();
            let bytes = head.len();
            let values = (to_cql("heads", row.head.last.as_u64())?, head, *row.conversation.as_bytes());
            Ok(Write { partition: row.conversation, statement, values, bytes })
        };
        let writes = heads.iter().map(write).collect::<Result<Vec<_>>>()?;
        self.0.write_all("heads.put", writes).await.end()
    }

    async fn head(&self, conversation: ConversationId) -> Result<Option<Head>> {
        self.0.head(conversation).await
    }

    async fn heads(&self, conversations: &[ConversationId]) -> Result<Vec<Option<Head>>> {
        self.0.each(conversations.iter().map(|conversation| self.0.head(*conversation)).collect()).await
    }

    async fn roster(&self, conversation: ConversationId, at_most: u64) -> Result<Roster> {
        self.0.roster(conversation, at_most).await
    }

    async fn outcomes(&self, keys: &[OutcomeKey]) -> Result<Vec<Option<OutcomeRow>>> {
        self.0.each(keys.iter().map(|key| self.0.outcome(*key)).collect()).await
    }

    async fn messages(
        &self,
        conversation: ConversationId,
        after: Sequence,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<MessageRow>> {
        self.0.messages(conversation, after, limit, max_bytes).await
    }

    async fn messages_at(&self, at: &[(ConversationId, Sequence)]) -> Result<Vec<Option<MessageRow>>> {
        self.0.each(at.iter().map(|(conversation, sequence)| self.0.message(*conversation, *sequence)).collect()).await
    }

    async fn memberships(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        most: usize,
    ) -> Result<Vec<MembershipRow>> {
        let mut rows = Vec::new();
        if most == 0 {
            return Ok(rows);
        }
        let take = |(conversation, member, at): (Bytes, bool, i64)| {
            let conversation = id("conversations_of", &conversation)?;
            let position = Position::from_u64(from_cql("conversations_of", at)?);
            rows.push(MembershipRow { user, conversation, member, position });
            Ok(ControlFlow::Continue(()))
        };
        // Every id is above the empty one.
        let after = after.as_ref().map_or(&[][..], |after| after.as_bytes());
        let statement = &self.0.statements.conversations.memberships;
        let values = (user.as_bytes(), after, limit(most));
        self.0.pages("conversations_of.get", statement, values, take).await?;
        Ok(rows)
    }

    /// Outcomes go by themselves, 21 days after they were written.
    async fn drop_messages(&self, conversation: ConversationId, through: Sequence, _now: Timestamp) -> Result<()> {
        self.0.drop_messages(conversation, through).await
    }
}
