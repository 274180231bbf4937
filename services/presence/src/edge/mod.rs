//! The edge: where devices' streams end. It holds no feed; it finds the owner of the user's feeds partition, asks it for
//! the feed from the device's cursor, and does so again whenever the owner goes away.
//!
//! Deliberately absent: a shortcut to an owner in the same process. It is reached over its link like any other.

mod device;
mod links;
mod locate;
mod route;
mod session;
mod streams;
mod upward;

use std::sync::Arc;

use metrics::gauge;
use tokio_util::sync::CancellationToken;
use wardline_domain::UserId;
use wardline_log::Topic;
use wardline_runtime::audit::Audit;
use wardline_runtime::auth::Authenticator;
use wardline_runtime::revocations::Revocations;

pub(crate) use self::device::attach;
use self::links::Links;
use self::locate::Owners;
use self::streams::Streams;
pub(crate) use self::streams::follow;
use crate::Deps;
use crate::measures as names;
use crate::owner::{Shared, keeper};

/// What all devices' streams share.
pub(crate) struct Edge {
    pub(crate) owner: Arc<Shared>,
    pub(crate) authenticator: Authenticator,
    pub(crate) revocations: Revocations,
    pub(crate) audit: Audit,
    pub(crate) drain: CancellationToken,
    links: Links,
    owners: Owners,
    streams: Streams,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Edge")
    }
}

impl Edge {
    pub(crate) fn new(deps: &Deps, owner: Arc<Shared>) -> Self {
        Self {
            links: Links::new(
                (deps.link_key.clone(), deps.clock.clone()),
                owner.options.link_tls.clone(),
                owner.options.limits.link_frames,
            ),
            owners: Owners::default(),
            streams: Streams::default(),
            owner,
            authenticator: deps.authenticator.clone(),
            revocations: deps.revocations.clone(),
            audit: deps.audit.clone(),
            drain: CancellationToken::new(),
        }
    }

    fn feeds_partition(&self, user: UserId) -> u32 {
        self.owner.log.partitions(Topic::Feeds).partition_of(user.as_bytes())
    }
}

/// Sets the gauges until `stop`.
pub(crate) async fn gauges(edge: Arc<Edge>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(keeper::WATCH_EVERY);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        gauge!(names::LINK_FRAMES, "side" => "edge").set(edge.links.frames_waiting() as f64);
    }
}
