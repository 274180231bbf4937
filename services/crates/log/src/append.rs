//! Appends records to many partitions within the log's byte budget.
//!
//! Deliberately absent: retries. A caller whose append failed repeats everything from the first record on: what follows a
//! record that is not in the log must not get there before it.

use std::collections::BTreeMap;
use std::mem;
use std::num::NonZeroU32;

use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::seam::{Appended, EventLog, NewRecord, Permit, Refused};
use crate::topic::Partition;
use crate::{Cause, Failure};

/// Something that becomes a record once there is room for it.
pub trait Pending: Sync {
    /// How many bytes key and payload will take, exactly.
    fn bytes(&self) -> usize;

    /// The record.
    fn build(&self) -> NewRecord;
}

impl Pending for NewRecord {
    fn bytes(&self) -> usize {
        self.key.len() + self.payload.len()
    }

    fn build(&self) -> NewRecord {
        self.clone()
    }
}

impl<T: Pending> Pending for &T {
    fn bytes(&self) -> usize {
        T::bytes(self)
    }

    fn build(&self) -> NewRecord {
        T::build(self)
    }
}

/// How many bytes of records are on their way at once: one wave. One record that is larger makes a wave of its own.
const WAVE_BYTES: usize = 1 << 20;

/// Appends all records in waves of at most 1 MiB, each when all of the one before is acknowledged. Each partition gets its
/// records in the order given.
///
/// # Errors
/// Those of [`all`]; what came before may be in the log then.
pub async fn in_waves<T: Pending>(log: &dyn EventLog, records: &[(Partition, T)]) -> Result<(), Failure> {
    let mut wave = BTreeMap::<Partition, Vec<&T>>::new();
    let mut bytes = 0;
    for (to, record) in records {
        let more = record.bytes();
        if bytes + more > WAVE_BYTES && bytes > 0 {
            all(log, &mem::take(&mut wave)).await?;
            bytes = 0;
        }
        wave.entry(*to).or_default().push(record);
        bytes += more;
    }
    all(log, &wave).await
}

/// Appends each partition's records as one batch and waits for all. When the budget is used up by these batches themselves,
/// the rest waits for them; when it is used up by others, the whole fails `NotApplied`, and with cause `Corrupt` when a batch
/// is larger than all of it.
///
/// # Errors
/// The first failure, after every append has its answer. Other partitions' records may be in the log then.
pub async fn all<T: Pending>(log: &dyn EventLog, batches: &BTreeMap<Partition, Vec<T>>) -> Result<(), Failure> {
    let mut flying = FuturesUnordered::<Appended>::new();
    let mut result = Ok(());
    for (to, batch) in batches {
        match room(log, batch, &mut flying).await {
            Ok(Some(permit)) => flying.push(log.append(permit, *to, batch.iter().map(T::build).collect())),
            Ok(None) => {}
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    while let Some(answer) = flying.next().await {
        result = result.and(answer.map(drop));
    }
    result
}

/// Room for a batch; `None` for an empty one.
async fn room<T: Pending>(
    log: &dyn EventLog,
    batch: &[T],
    flying: &mut FuturesUnordered<Appended>,
) -> Result<Option<Permit>, Failure> {
    let bytes = u32::try_from(batch.iter().map(T::bytes).sum::<usize>());
    let Some(bytes) = NonZeroU32::new(bytes.map_err(|_| refused(Refused::TooLarge))?) else { return Ok(None) };
    loop {
        match log.reserve(bytes) {
            Ok(permit) => return Ok(Some(permit)),
            Err(Refused::Overloaded { .. }) if !flying.is_empty() => {
                if let Some(answer) = flying.next().await {
                    answer?;
                }
            }
            Err(other) => return Err(refused(other)),
        }
    }
}

/// What is larger than the whole budget stays so: a repeat would never end, so a person must look.
fn refused(refused: Refused) -> Failure {
    Failure::NotApplied(match refused {
        Refused::TooLarge => Cause::corrupt(refused),
        Refused::Overloaded { .. } | Refused::Closed => Cause::unavailable(refused),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wardline_domain::failure::CauseKind;

    use super::*;

    /// The law: what the log can never take is said to be so, and not tried for ever; all else passes.
    #[test]
    fn only_what_never_fits_halts() {
        let kind = |why| refused(why).cause().kind;
        assert_eq!(kind(Refused::TooLarge), CauseKind::Corrupt);
        assert_eq!(kind(Refused::Overloaded { retry_after: Duration::ZERO }), CauseKind::Unavailable);
        assert_eq!(kind(Refused::Closed), CauseKind::Unavailable);
    }
}
