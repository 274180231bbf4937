//! Waiting until a topic's fold has caught up with what was in the log when the instance started.
//!
//! What the log derives is not synced row by row: after a power cut the stores may be a few seconds behind the log until the
//! fold has replayed them.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use wardline_domain::{Failure, Position};
use wardline_log::{Event, FetchLimits, Group, Start, Topic};
use wardline_runtime::patience::until_up;

use super::Over;

/// How often the checkpoints are looked at.
const POLL: Duration = Duration::from_millis(5);
/// After this long the instance starts all the same: a fold that waits for an engine says so by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the checkpoints of all partitions have reached the ends of now. An engine that is away is waited for, as long
/// as it takes.
pub(super) async fn folded(over: &Over, topic: Topic) -> Result<(), Failure> {
    let ends = until_up("the log's ends", || ends(over, topic)).await?;
    let checkpoints = &over.stores.checkpoints;
    let until = Instant::now() + PATIENCE;
    for (partition, last) in ends {
        let place = || until_up("a checkpoint", || checkpoints.get((topic.name(), partition)));
        while place().await?.is_none_or(|at| at.position < last) {
            if Instant::now() > until {
                tracing::warn!(topic = topic.name(), partition, "starting before the log is replayed");
                return Ok(());
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// The last position of every partition that holds anything.
async fn ends(over: &Over, topic: Topic) -> Result<Vec<(u32, Position)>, Failure> {
    let mut subscription = over.log.subscribe(Group::Everyone, topic, FetchLimits::default()).await?;
    let mut ends = Vec::new();
    let mut assigned = 0;
    while assigned < over.log.partitions(topic).get() {
        let Event::Assigned(partition) = subscription.next().await? else { continue };
        assigned += 1;
        let started = subscription.start(partition, Start::Newest).await?;
        if started.oldest.is_some() {
            ends.push((partition, Position::from_u64(started.end.as_u64().saturating_sub(1))));
        }
    }
    Ok(ends)
}
