//! What an owner does by the clock: claims its partitions, steps down when it does not hear itself, announces itself and its
//! users to the registry, and drops feed rows that are too old.
//!
//! Deliberately absent: deciding who owns. The log does ([`super::tenure`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::gauge;
use prost::Message as _;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use wardline_domain::UserId;
use wardline_log::{NewRecord, Partition as LogPartition, Topic};
use wardline_proto::internal::v1 as wire;
use wardline_registry::{Owner, Presence};

use super::partition::Census;
use super::receipts::append;
use super::{Owned, Shared};
use crate::measures as names;

/// Users announced at once.
const ANNOUNCED_AT_ONCE: usize = 1024;
/// Between two looks at what the gauges say.
pub(crate) const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Appends claims, ends what may not be served.
pub(crate) async fn claims(shared: Arc<Shared>, stop: CancellationToken) {
    let timings = &shared.options.timings;
    // Fine enough that a claim is on time and a lost one is noticed long before patience ends.
    let mut tick = every(timings.claim_every / 8);
    let began = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shared.reclaim.notified() => {}
            () = stop.cancelled() => return,
        }
        let now = Instant::now();
        for owned in shared.owned() {
            let serving = owned.partition.check();
            shared.served(owned.partition.index, serving);
            if owned.claim_due(now, timings.claim_every, serving) {
                tokio::spawn(claim(Arc::clone(&shared), owned));
            }
        }
        shared.look(began.elapsed() > timings.claim_every);
    }
}

/// Appends one claim. A failed one is not repeated here: the next is due soon.
async fn claim(shared: Arc<Shared>, owned: Owned) {
    let partition = owned.partition.index;
    let claim = wire::OwnerClaimRecord {
        instance: Bytes::copy_from_slice(&shared.instance),
        address: shared.options.link_address.clone(),
    };
    let record = wire::FeedRecord { body: Some(wire::feed_record::Body::OwnerClaim(claim)) };
    let record = NewRecord {
        key: Bytes::copy_from_slice(&shared.instance),
        payload: record.encode_to_vec().into(),
        headers: Vec::new(),
    };
    let to = LogPartition { topic: Topic::Feeds, index: partition };
    if let Err(problem) = append(&*shared.log, to, vec![record]).await {
        tracing::warn!(partition, %problem, "a claim was not appended");
    }
    owned.claim_answered();
}

/// Tells the registry who owns what.
pub(crate) async fn announcements(shared: Arc<Shared>, stop: CancellationToken) {
    let timings = &shared.options.timings;
    let mut tick = every(timings.announce_every);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shared.announce.notified() => {}
            () = stop.cancelled() => return,
        }
        for owned in shared.owned() {
            let Some(term) = owned.partition.serving() else { continue };
            let owner = Owner { term, address: shared.options.link_address.clone() };
            let told = shared.registry.announce_owner(owned.partition.index, &owner, timings.announce_ttl).await;
            if let Err(failure) = told {
                tracing::debug!(%failure, "the registry does not answer");
                break;
            }
        }
    }
}

/// Tells the registry who is attached.
pub(crate) async fn presence(shared: Arc<Shared>, stop: CancellationToken) {
    let timings = &shared.options.timings;
    let mut changes = every(timings.presence_delay);
    let mut standing = every(timings.presence_every);
    loop {
        let users: HashSet<UserId> = tokio::select! {
            _ = changes.tick() => shared.take_changed(),
            _ = standing.tick() => shared.owned().iter().flat_map(|owned| owned.partition.users()).collect(),
            () = stop.cancelled() => return,
        };
        let now = shared.clock.now();
        let states: Vec<(UserId, Presence)> = users
            .into_iter()
            .filter_map(|user| {
                let (devices, active_at) = shared.partition(shared.feeds_partition(user))?.presence(user);
                Some((user, Presence { devices, active_at, at: now }))
            })
            .collect();
        for states in states.chunks(ANNOUNCED_AT_ONCE) {
            if let Err(failure) = shared.registry.announce_presence(states, timings.presence_ttl).await {
                tracing::debug!(%failure, "the registry does not answer");
                break;
            }
        }
    }
}

/// Drops feed rows that are too old.
pub(crate) async fn retention(shared: Arc<Shared>, stop: CancellationToken) {
    let timings = &shared.options.timings;
    let mut tick = every(timings.expire_every);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let before = shared.clock.now().minus(timings.feed_kept);
        if let Err(failure) = shared.stores.feeds.expire(before).await {
            tracing::warn!(%failure, "old feed rows were not dropped");
        }
    }
}

/// Sets the gauges.
pub(crate) async fn gauges(shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = every(WATCH_EVERY);
    let partitions = |state: &'static str| gauge!(names::PARTITIONS, "state" => state);
    let attachments = |phase: &'static str| gauge!(names::ATTACHMENTS, "phase" => phase);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let owned = shared.owned();
        let serving = owned.iter().filter(|owned| owned.partition.serving().is_some()).count();
        partitions("assigned").set(owned.len() as f64);
        partitions("serving").set(serving as f64);
        let mut census = Census::default();
        owned.iter().for_each(|owned| census += owned.partition.census());
        attachments("behind").set(census.behind as f64);
        attachments("live").set(census.live as f64);
        attachments("full").set(census.full as f64);
        attachments("expired").set(census.expired as f64);
        gauge!(names::UNACKNOWLEDGED).set(census.unacknowledged as f64);
        gauge!(names::RING_EVENTS).set(census.ring_events as f64);
        gauge!(names::RING_BYTES).set(census.ring_bytes as f64);
        gauge!(names::LINK_FRAMES, "side" => "owner").set(shared.frames_waiting() as f64);
        shared.receipts.watch();
        shared.reads.watch();
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut tick = interval(period.max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
