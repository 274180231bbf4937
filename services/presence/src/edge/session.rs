//! A session that was ended before its time ends its stream, too.
//!
//! Deliberately absent: its end by the clock, which the stream tells the device of beforehand.

use std::time::Duration;

use wardline_runtime::auth::Authenticator;

/// How often it is asked whether a stream's session was ended.
pub(crate) const ASKED_EVERY: Duration = Duration::from_secs(5);

/// Answers once the session was ended, as far as the registry tells; asks `every` so often.
///
/// The authenticator believes what it was told for five seconds, so an end elsewhere shows within ten.
pub(crate) async fn ended(authenticator: &Authenticator, session: [u8; 16], every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if authenticator.session_ended(session).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use wardline_domain::Timestamp;
    use wardline_registry::Registry as _;
    use wardline_registry::in_process::InProcess;
    use wardline_runtime::Clock;
    use wardline_runtime::revocations::Revocations;
    use wardline_runtime::session::SessionKeys;

    use super::*;

    #[tokio::test]
    async fn a_sessions_end_shows_and_others_go_on() {
        let registry = Arc::new(InProcess::new(Arc::new(|| Timestamp::from_micros(1))));
        let now = AtomicU64::new(0);
        let authenticator = Authenticator {
            keys: Arc::new(SessionKeys::new(vec![zeroize::Zeroizing::new([1; 32])]).unwrap()),
            revocations: Revocations::empty(),
            registry: registry.clone(),
            // Five seconds go by between two looks: nothing is believed for longer.
            clock: Clock::from_fn(move || Timestamp::from_micros(now.fetch_add(5_000_000, Ordering::SeqCst))),
        };
        let (one, two) = ([1; 16], [2; 16]);
        assert!(!authenticator.session_ended(one).await);
        let wait = |session| {
            let authenticator = authenticator.clone();
            tokio::spawn(async move { ended(&authenticator, session, Duration::from_millis(1)).await })
        };
        let (of_one, of_two) = (wait(one), wait(two));
        registry.end_session(one, Duration::from_secs(600)).await.unwrap();
        of_one.await.unwrap();
        assert!(authenticator.session_ended(one).await && !authenticator.session_ended(two).await);
        assert!(!of_two.is_finished());
        of_two.abort();
    }
}
