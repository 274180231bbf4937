//! What every role of the instance needs, looked at whether or not anybody calls: the log, the stores, the registry.
//!
//! Deliberately absent: what one role notices by itself, of which it tells itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use wardline_registry::Registry;
use wardline_runtime::health::{Cause, Condition, Health};
use wardline_runtime::revocations::Revocations;
use wardline_store::Checkpoints;

use super::Role;

/// How long after one look the next one begins.
const EVERY: Duration = Duration::from_secs(1);
/// How long an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often in a row it must fail before it is away: one slow answer is a hiccup.
const AWAY_AFTER: u32 = 2;
/// What is read of the stores: a checkpoint of no topic.
const NOWHERE: (&str, u32) = ("health", 0);
/// Whose end the registry is asked about: nobody's session.
const NOBODY: [u8; 16] = [0; 16];

/// A condition of every role, the same for all.
pub(super) struct Shared(Vec<Condition>);

impl Shared {
    pub(super) fn of(health: &Health, roles: &[Role], cause: Cause) -> Self {
        Self(roles.iter().map(|role| health.role(role.name()).condition(cause)).collect())
    }

    fn set(&self, met: bool) {
        self.0.iter().for_each(|condition| condition.set(met));
    }
}

/// The log is there while the topic that every instance follows is followed.
pub(super) async fn log(revocations: Revocations, shared: Shared) {
    let mut current = revocations.current();
    loop {
        shared.set(*current.borrow_and_update());
        // The sender is in `revocations`, so the wait cannot fail.
        let _ = current.changed().await;
    }
}

pub(super) async fn stores(checkpoints: Arc<dyn Checkpoints>, shared: Shared) {
    let answers = || {
        let checkpoints = Arc::clone(&checkpoints);
        async move { checkpoints.get(NOWHERE).await.is_ok() }
    };
    look(shared, answers).await;
}

pub(super) async fn registry(registry: Arc<dyn Registry>, shared: Shared) {
    let answers = || {
        let registry = Arc::clone(&registry);
        async move { registry.session_ended(NOBODY).await.is_ok() }
    };
    look(shared, answers).await;
}

/// Asks again and again.
async fn look<A: Future<Output = bool>>(shared: Shared, mut answers: impl FnMut() -> A) {
    let mut failures: u32 = 0;
    loop {
        let answered = timeout(PATIENCE, answers()).await.unwrap_or(false);
        failures = if answered { 0 } else { failures.saturating_add(1) };
        if answered || failures >= AWAY_AFTER {
            shared.set(answered);
        }
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_engine_is_away_after_two_failures_and_back_with_the_first_answer() {
        let health = Health::default();
        let shared = Shared::of(&health, &[Role::Ingest], Cause::Store);
        let answers = [true, false, true, false, false, false, true];
        let mut serving = Vec::new();
        let mut next = answers.into_iter();
        let seen = health.clone();
        let all = look(shared, || {
            serving.push(seen.snapshot() == [("ingest".to_owned(), true)]);
            let answer = next.next();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        });
        assert!(timeout(EVERY * 8, all).await.is_err(), "it goes on for ever");
        assert_eq!(serving, [false, true, true, true, true, false, false, true]);
    }
}
