//! What became of a message id: asked by callers, and before a refusal that a repeat might not deserve.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use wardline_domain::Timestamp;
use wardline_domain::conversation::OutcomeKey;
use wardline_domain::envelope::Envelope;
use wardline_runtime::Refusal;
use wardline_store::conversations::{OutcomeResult, OutcomeRow};

use crate::Inner;

/// How long the first wait between two reads is; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest wait between two reads.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl Inner {
    /// A refusal that the cache proves, unless the message is a repeat that has its outcome already: then that stands.
    pub(crate) async fn unless_known(&self, envelope: &Envelope, refusal: Refusal) -> Result<Timestamp, Refusal> {
        let key = OutcomeKey {
            conversation: envelope.conversation,
            device: envelope.device,
            message: envelope.message,
        };
        match self.outcome(key).await? {
            Some(OutcomeRow { result: OutcomeResult::Sequenced(_), accepted_at, .. }) => Ok(accepted_at),
            Some(OutcomeRow { result: OutcomeResult::Rejected(rejection), .. }) => Err(Refusal::rejected(&rejection)),
            None => Err(refusal),
        }
    }

    pub(crate) async fn outcome(&self, key: OutcomeKey) -> Result<Option<OutcomeRow>, Refusal> {
        Ok(self.deps.stores.conversations.outcomes(&[key]).await?.pop().flatten())
    }

    /// Reads until there is an outcome or the time is up.
    pub(crate) async fn await_outcome(&self, key: OutcomeKey, wait: Duration) -> Result<Option<OutcomeRow>, Refusal> {
        self.poll_until(wait, async || self.outcome(key).await).await
    }

    /// Calls `read` until it finds something or the time is up. Reading again is what works on every engine.
    pub(crate) async fn poll_until<T>(
        &self,
        wait: Duration,
        read: impl AsyncFn() -> Result<Option<T>, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        let until = Instant::now() + wait;
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(found) = read().await? {
                return Ok(Some(found));
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            sleep_until((now + pause).min(until)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
