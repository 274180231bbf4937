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
        let key =
            OutcomeKey { conversation: envelope.conversation, device: envelope.device, message: envelope.message };
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
        let mut pauses = Pauses::within(wait);
        loop {
            let found = self.outcome(key).await?;
            if found.is_some() || !pauses.pause().await {
                return Ok(found);
            }
        }
    }
}

/// Growing pauses between reads until the time is up. Reading again is what works on every engine.
pub(crate) struct Pauses {
    until: Instant,
    next: Duration,
}

impl Pauses {
    pub(crate) fn within(wait: Duration) -> Self {
        Self { until: Instant::now() + wait, next: FIRST_PAUSE }
    }

    /// Waits a little. False when the time was up before.
    pub(crate) async fn pause(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            return false;
        }
        sleep_until((now + self.next).min(self.until)).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}
