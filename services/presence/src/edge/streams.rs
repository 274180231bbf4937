//! Which devices have a stream here, so that a revocation ends it within moments.
//!
//! Deliberately absent: what the streams carry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use metrics::gauge;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use wardline_domain::{DeviceId, UserId};
use wardline_proto::reason::Reason;
use wardline_runtime::Counted;
use wardline_runtime::revocations::Ended;

use super::Edge;
use crate::measures as names;

/// How a stream is told that its device may no longer read. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    pub(crate) token: CancellationToken,
    reason: Arc<OnceLock<Reason>>,
}

impl Cut {
    fn cut(&self, reason: Reason) {
        // The first reason counts.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Why.
    pub(crate) fn reason(&self) -> Reason {
        self.reason.get().copied().unwrap_or(Reason::DeviceRevoked)
    }
}

#[derive(Debug)]
struct Stream {
    serial: u64,
    device: DeviceId,
    cut: Cut,
}

/// The streams by user.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    users: Mutex<HashMap<UserId, Vec<Stream>>>,
    serials: AtomicU64,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, Vec<Stream>>> {
        // Entries are put in and taken out whole.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, user: UserId, reason: Reason, which: impl Fn(DeviceId) -> bool) {
        for stream in self.lock().get(&user).into_iter().flatten().filter(|stream| which(stream.device)) {
            stream.cut.cut(reason);
        }
    }
}

/// A stream's entry; dropping it takes it out.
pub(crate) struct Entered {
    edge: Arc<Edge>,
    user: UserId,
    serial: u64,
    pub(crate) cut: Cut,
    _counted: Counted,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut users = self.edge.streams.lock();
        let Some(streams) = users.get_mut(&self.user) else { return };
        streams.retain(|stream| stream.serial != self.serial);
        if streams.is_empty() {
            users.remove(&self.user);
        }
    }
}

/// Enters a stream. The caller's duty: check the revocations after, not before.
pub(crate) fn enter(edge: &Arc<Edge>, user: UserId, device: DeviceId) -> Entered {
    let serial = edge.streams.serials.fetch_add(1, Ordering::Relaxed);
    let cut = Cut::default();
    edge.streams.lock().entry(user).or_default().push(Stream { serial, device, cut: cut.clone() });
    Entered { edge: Arc::clone(edge), user, serial, cut, _counted: Counted::one(gauge!(names::STREAMS)) }
}

/// Follows the revocations until `stop`.
pub(crate) async fn follow(edge: Arc<Edge>, stop: CancellationToken) {
    let mut ends = edge.revocations.subscribe();
    check_all(&edge);
    loop {
        let ended = tokio::select! {
            ended = ends.recv() => ended,
            () = stop.cancelled() => return,
        };
        match ended {
            Ok(Ended::Device(user, device)) => edge.streams.end(user, Reason::DeviceRevoked, |of| of == device),
            Ok(Ended::User(user)) => edge.streams.end(user, Reason::UserDeactivated, |_| true),
            Err(RecvError::Lagged(_)) => check_all(&edge),
            Err(RecvError::Closed) => {
                stop.cancelled().await;
                return;
            }
        }
    }
}

fn check_all(edge: &Edge) {
    for (user, streams) in edge.streams.lock().iter() {
        for stream in streams {
            if let Err(reason) = edge.revocations.check(*user, stream.device) {
                stream.cut.cut(reason);
            }
        }
    }
}
