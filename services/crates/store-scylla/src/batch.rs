//! Many rows at once: those of one partition in batches, partitions side by side.
//!
//! A batch of one partition is one mutation: written as a whole, and at a fraction of the driver's work. Batches across
//! partitions would be work for the coordinator instead, so there are none.

use futures::StreamExt;
use scylla::serialize::SerializationError;
use scylla::serialize::row::{RowSerializationContext, SerializeRow};
use scylla::serialize::writers::RowWriter;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use wardline_store::{Failure, Result};

use crate::session::Cql;

/// How many rows one batch holds at most.
const BATCH_ROWS: usize = 64;

/// How many bytes of values one batch holds at most, a single larger row excepted.
const BATCH_BYTES: usize = 128 << 10;

/// A row to be written.
pub(crate) struct Write<'a, P, R> {
    /// What its partition is told by.
    pub(crate) partition: P,
    /// What writes it.
    pub(crate) statement: &'a PreparedStatement,
    /// The statement's values.
    pub(crate) values: R,
    /// About how many bytes the values are.
    pub(crate) bytes: usize,
}

/// What became of writes that make up one call.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    failure: Option<Failure>,
    /// Whether something was written, or may have been.
    touched: bool,
}

impl Tally {
    /// Adds one write's end.
    pub(crate) fn add(mut self, end: Result<()>) -> Self {
        match end {
            Ok(()) => self.touched = true,
            Err(failure) => {
                self.touched |= matches!(failure, Failure::Unknown(_));
                self.failure.get_or_insert(failure);
            }
        }
        self
    }

    /// Adds another call's.
    pub(crate) fn merge(self, other: Self) -> Self {
        Self { failure: self.failure.or(other.failure), touched: self.touched || other.touched }
    }

    /// The call's own end: that nothing was applied is said only when nothing was.
    pub(crate) fn end(self) -> Result<()> {
        match self.failure {
            None => Ok(()),
            Some(Failure::NotApplied(cause)) if self.touched => Err(Failure::Unknown(cause)),
            Some(failure) => Err(failure),
        }
    }
}

impl Cql {
    /// Writes rows, in no order.
    pub(crate) async fn write_all<P: Ord, R: SerializeRow>(
        &self,
        operation: &'static str,
        writes: Vec<Write<'_, P, R>>,
    ) -> Tally {
        // Every request is waited for, also after one failed: a request that nobody waits for holds its place on the
        // connection until it is answered.
        let groups: Vec<_> = group(writes).into_iter().map(|group| self.write_group(operation, group)).collect();
        let mut ends = futures::stream::iter(groups).buffer_unordered(self.concurrency());
        let mut tally = Tally::default();
        while let Some(end) = ends.next().await {
            tally = tally.add(end);
        }
        tally
    }

    async fn write_group<P, R: SerializeRow>(
        &self,
        operation: &'static str,
        mut group: Vec<Write<'_, P, R>>,
    ) -> Result<()> {
        if group.len() == 1
            && let Some(only) = group.pop()
        {
            return self.write(operation, only.statement, only.values).await;
        }
        let mut batch = Batch::new(BatchType::Unlogged);
        let mut values = Vec::with_capacity(group.len());
        for write in group {
            batch.append_statement(write.statement.clone());
            values.push(write.values);
        }
        self.write_batch(operation, &mut batch, values).await
    }
}

/// Cuts writes into groups of one partition, each within the bounds of a batch.
fn group<P: Ord, R>(mut writes: Vec<Write<'_, P, R>>) -> Vec<Vec<Write<'_, P, R>>> {
    writes.sort_by(|a, b| a.partition.cmp(&b.partition));
    let mut groups: Vec<Vec<Write<'_, P, R>>> = Vec::new();
    let mut bytes = 0;
    for write in writes {
        match groups.last_mut() {
            Some(group)
                if group.last().is_some_and(|last| last.partition == write.partition)
                    && group.len() < BATCH_ROWS
                    && bytes + write.bytes <= BATCH_BYTES =>
            {
                bytes += write.bytes;
                group.push(write);
            }
            _ => {
                bytes = write.bytes;
                groups.push(vec![write]);
            }
        }
    }
    groups
}

/// The values of one of two statements.
pub(crate) enum Either<A, B> {
    A(A),
    B(B),
}

impl<A: SerializeRow, B: SerializeRow> SerializeRow for Either<A, B> {
    fn serialize(
        &self,
        context: &RowSerializationContext<'_>,
        writer: &mut RowWriter<'_>,
    ) -> std::result::Result<(), SerializationError> {
        match self {
            Self::A(values) => values.serialize(context, writer),
            Self::B(values) => values.serialize(context, writer),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::A(values) => values.is_empty(),
            Self::B(values) => values.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardline_store::Cause;

    fn not_applied() -> Result<()> {
        Err(Failure::NotApplied(Cause::unavailable("away")))
    }

    #[test]
    fn nothing_was_applied_only_when_nothing_was() {
        assert_eq!(Tally::default().end(), Ok(()));
        assert_eq!(Tally::default().add(Ok(())).add(Ok(())).end(), Ok(()));
        assert!(matches!(Tally::default().add(not_applied()).add(not_applied()).end(), Err(Failure::NotApplied(_))));
        let unknown = || Err(Failure::Unknown(Cause::timeout("late")));
        for ends in [[not_applied(), Ok(())], [Ok(()), not_applied()], [not_applied(), unknown()], [Ok(()), unknown()]]
        {
            let merged = ends.iter().fold(Tally::default(), |all, end| all.merge(Tally::default().add(end.clone())));
            assert!(matches!(merged.end(), Err(Failure::Unknown(_))), "{ends:?}");
            let one = ends.into_iter().fold(Tally::default(), Tally::add);
            assert!(matches!(one.end(), Err(Failure::Unknown(_))));
        }
    }
}
