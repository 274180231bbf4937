//! The feed: attach, take events in order, acknowledge, reconnect.

pub(crate) mod apply;
mod message;
pub(crate) mod receipts;
mod resync;
mod stream;
mod take;
mod titles;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::device::Inner;
use crate::error::Error;
use crate::view::Incoming;
use wardline_proto::reason::Reason;

/// Starts following the feed unless it is followed already.
pub(crate) fn attach(inner: &Arc<Inner>) {
    let mut feed = inner.feed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if feed.as_ref().is_some_and(|running| !running.is_cancelled()) {
        return;
    }
    let running = inner.stop.child_token();
    *feed = Some(running.clone());
    drop(feed);
    inner.tasks.spawn(follow(Arc::clone(inner), running));
}

/// The person is using the device: told at the next opportunity.
pub(crate) fn activity(inner: &Arc<Inner>) {
    inner.active.store(true, std::sync::atomic::Ordering::Relaxed);
    inner.upward.notify_one();
}

/// Follows until it is cancelled or cannot go on.
async fn follow(inner: Arc<Inner>, running: CancellationToken) {
    let mut attempt = 0;
    loop {
        let ended = tokio::select! {
            () = running.cancelled() => return,
            ended = stream::once(&inner, &mut attempt) => ended,
        };
        let wait = match ended {
            Ok(wait) => wait,
            Err(error) if is_final(&error) => {
                tracing::warn!(%error, "the feed has ended for good");
                running.cancel();
                if error.reason() == Some(Reason::DeviceRevoked) {
                    inner.tell(Incoming::Revoked);
                }
                inner.set_fault(error);
                return;
            }
            Err(error) => {
                tracing::debug!(%error, attempt, "the feed broke");
                error.retry_after()
            }
        };
        let delay = inner.options.backoff.delay(attempt, wait);
        attempt = attempt.saturating_add(1);
        tokio::select! {
            () = running.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// What no reconnecting mends.
fn is_final(error: &Error) -> bool {
    let gone = matches!(
        error.reason(),
        Some(
            Reason::DeviceRevoked
                | Reason::UserDeactivated
                | Reason::DeviceNotEnrolled
                | Reason::UserUnknown
                | Reason::AttachmentReplaced
        )
    );
    gone || matches!(error, Error::Stopped | Error::Untrusted(_) | Error::Store(_))
}

#[cfg(test)]
mod tests;
