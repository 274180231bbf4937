//! The one connection to Redis: made in the background, used while it answers, given up at the first sign that it does not.
//!
//! A connection counts as there once it answered a PING. A call that finds none fails at once; only while the first attempt
//! after a loss is under way does it wait for that attempt. So a Redis that is away costs the calls of one moment their
//! deadline, and all others nothing.
//!
//! Deliberately absent: retries of calls. Every caller goes on without the registry.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Between two attempts to connect: so long after the first failure, doubled up to [`RETRY_MOST`], each shortened at random.
const RETRY_LEAST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one: after its loss the next attempt is made at once.
const STEADY: Duration = Duration::from_secs(2);
/// How long an attempt to connect may take, with name resolution and TLS.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone)]
enum State {
    /// The first attempt after the start or a loss is under way.
    Connecting,
    /// Attempts fail.
    Away,
    /// Connected. The number tells connections apart.
    Up(u64, MultiplexedConnection),
}

impl State {
    const fn is_up(&self, number: u64) -> bool {
        matches!(self, Self::Up(up, _) if *up == number)
    }
}

/// The connection, and the task that makes it anew.
pub(crate) struct Link {
    state: Arc<watch::Sender<State>>,
    keeper: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A connection to make one call on.
pub(crate) struct Lent {
    pub(crate) connection: MultiplexedConnection,
    number: u64,
    state: Arc<watch::Sender<State>>,
}

impl Lent {
    /// Nobody shall use this connection any more.
    pub(crate) fn give_up(&self) {
        self.state.send_if_modified(|state| {
            let present = state.is_up(self.number);
            if present {
                *state = State::Connecting;
            }
            present
        });
    }
}

impl Link {
    /// Begins to connect. `patience`: how long calls wait for the first attempt after a loss.
    pub(crate) fn open(client: Client, patience: Duration) -> Self {
        let state = Arc::new(watch::Sender::new(State::Connecting));
        let keeper = tokio::spawn(keep(client, Arc::clone(&state), patience));
        Self { state, keeper }
    }

    /// The connection; `None` when there is none, and none comes before `deadline`.
    pub(crate) async fn lend(&self, deadline: Instant) -> Option<Lent> {
        let mut state = self.state.subscribe();
        let waited = timeout_at(deadline, state.wait_for(|state| !matches!(state, State::Connecting))).await;
        let known = waited.ok()?.ok()?.clone();
        match known {
            State::Up(number, connection) => Some(Lent { connection, number, state: Arc::clone(&self.state) }),
            State::Connecting | State::Away => None,
        }
    }
}

/// Keeps a connection for as long as anybody wants it.
async fn keep(client: Client, state: Arc<watch::Sender<State>>, patience: Duration) {
    let mut watched = state.subscribe();
    let mut failures = 0;
    for number in 0.. {
        if failures > 0 {
            tell(&state, State::Away);
            sleep(pause(failures)).await;
        }
        match attempt(&client, &state, patience).await {
            Ok(connection) => {
                let since = Instant::now();
                tell(&state, State::Up(number, connection));
                tracing::info!("Redis answers");
                // The sender is here: this cannot end otherwise.
                let _ = watched.wait_for(|state| !state.is_up(number)).await;
                tracing::warn!("Redis does not answer any more");
                failures = if since.elapsed() >= STEADY { 0 } else { failures + 1 };
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(problem = describe(&error), "Redis is away");
                }
                failures += 1;
            }
        }
    }
}

fn tell(state: &watch::Sender<State>, now: State) {
    metrics::gauge!("wardline_registry_connected").set(if matches!(now, State::Up(..)) { 1.0 } else { 0.0 });
    state.send_replace(now);
}

/// One attempt. When it takes longer than calls wait, they need not begin to.
async fn attempt(
    client: &Client,
    state: &watch::Sender<State>,
    patience: Duration,
) -> RedisResult<MultiplexedConnection> {
    let connecting = timeout(CONNECT_PATIENCE, connect(client, patience));
    tokio::pin!(connecting);
    let connected = match timeout(patience, &mut connecting).await {
        Ok(connected) => connected,
        Err(_) => {
            tell(state, State::Away);
            connecting.await
        }
    };
    connected.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

async fn connect(client: &Client, patience: Duration) -> RedisResult<MultiplexedConnection> {
    // Calls bring their own deadlines.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    // A listener that accepts is not yet a server that answers.
    let ping = redis::cmd("PING");
    match timeout(patience, ping.query_async::<()>(&mut connection)).await {
        Ok(answered) => answered.map(|()| connection),
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Between half and all of a pause that doubles: instances that lost the same server do not return as one.
fn pause(failures: u32) -> Duration {
    let doubled = RETRY_LEAST.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(RETRY_MOST);
    doubled.mul_f64(rand::random_range(0.5..1.0))
}

/// What kind of error: the server's own words may name keys.
pub(crate) fn describe(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("{} ({code})", error.category()),
        None => error.category().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        for failures in 1..100 {
            let pause = pause(failures);
            assert!(pause >= RETRY_LEAST / 2 && pause <= RETRY_MOST, "{pause:?}");
        }
        assert!(pause(50) >= RETRY_MOST / 2);
        assert!((0..20).any(|_| pause(50) != pause(50)));
    }
}
