//! Teams that talk at a steady rate while faults come and go, and how long each of their devices waited.
//!
//! Deliberately absent: the faults, and what devices have in the end, which is [`crate::team`]'s to say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wardline_client::{ContentId, Device, Incoming};

use crate::people::People;
use crate::team::{Failed, Reading, Team};

/// Who talks, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Conversations.
    pub teams: usize,
    /// People in each, with two devices each.
    pub users: usize,
    /// Devices of each that mark what they read.
    pub readers: usize,
    /// Messages per second, over all teams.
    pub rate: f64,
    /// What is random follows from it.
    pub seed: u64,
}

/// How long devices waited since somebody last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waits {
    /// The longest time in which a device saw nothing new, although somebody of its team said something all the while.
    pub silence: Duration,
    /// The longest way of a message, from the sender's tap to a device that shows it.
    pub slowest: Duration,
}

/// A message in each conversation, sent to see whether it arrives.
#[derive(Debug)]
pub struct Probe {
    at: Instant,
    contents: Vec<ContentId>,
}

/// The talk. Ends when it is dropped.
#[derive(Debug)]
pub struct Load {
    teams: Arc<Vec<Team>>,
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
    readers: usize,
    _reading: Vec<Reading>,
}

impl Load {
    /// Gathers the teams and begins.
    pub async fn start(people: &People, plan: Plan) -> Result<Self, Failed> {
        let teams = futures::future::try_join_all((0..plan.teams).map(|_| Team::gather(people, plan.users))).await?;
        let teams = Arc::new(teams);
        let seen = Arc::new(Seen::new(teams.iter().map(Team::size).sum()));
        let mut tasks = JoinSet::new();
        let devices = teams.iter().flat_map(Team::devices).enumerate();
        for (number, device) in devices {
            tasks.spawn(watch(number, device.clone(), Arc::clone(&seen)));
        }
        let readers = plan.readers;
        let reading = teams.iter().flat_map(|team| team.devices().take(readers).map(|device| team.read_along(device)));
        let reading = reading.collect();
        tasks.spawn(talk(Arc::clone(&teams), Arc::clone(&seen), plan));
        Ok(Self { teams, seen, tasks, readers, _reading: reading })
    }

    /// How many devices there are.
    pub fn devices(&self) -> usize {
        self.teams.iter().map(Team::size).sum()
    }

    /// Messages sent so far, and how many of them are not on all devices yet.
    pub fn messages(&self) -> (usize, usize) {
        let state = self.seen.lock();
        (state.sent, state.under_way.len())
    }

    /// How long devices have waited since this was last asked.
    pub fn waits(&self) -> Waits {
        self.seen.waits()
    }

    /// What has gone wrong so far that retries do not mend: a message that a device could not send, or that was refused.
    pub fn failure(&self) -> Option<String> {
        self.seen.lock().failure.clone()
    }

    /// Sends a message in each conversation.
    pub fn probe(&self) -> Result<Probe, Failed> {
        let contents = self.teams.iter().map(|team| {
            let device = team.devices().next().ok_or("a team of nobody")?;
            self.seen.say(team, device, "probe")
        });
        Ok(Probe { at: Instant::now(), contents: contents.collect::<Result<_, Failed>>()? })
    }

    /// After what time all devices had the messages; `None` while one has not.
    pub fn arrived(&self, probe: &Probe) -> Option<Duration> {
        let state = self.seen.lock();
        let mut last = probe.at;
        for content in &probe.contents {
            if state.under_way.contains_key(content) {
                return None;
            }
            last = last.max(*state.arrived.get(content)?);
        }
        Some(last - probe.at)
    }

    /// Stops talking, waits until everybody has everything, and asks the ledger and the service.
    ///
    /// # Errors
    /// What is not as promised. Then how many messages there were.
    pub async fn conclude(mut self, people: &People) -> Result<usize, Failed> {
        self.tasks.shutdown().await;
        if let Some(failure) = self.failure() {
            return Err(failure.into());
        }
        for team in self.teams.iter() {
            team.converges(self.readers, people.endpoints()).await?;
        }
        Ok(self.seen.lock().sent)
    }
}

/// One team after the other, at random moments, from random devices.
async fn talk(teams: Arc<Vec<Team>>, seen: Arc<Seen>, plan: Plan) {
    let mut random = StdRng::seed_from_u64(plan.seed);
    loop {
        for team in teams.iter() {
            let device = team.devices().nth(random.random_range(0..team.size()));
            if let Some(device) = device
                && let Err(error) = seen.say(team, device, "note")
            {
                seen.fails(format!("a device could not send: {error}"));
                return;
            }
            // Half as long to half as much again: the rate is the mean's.
            sleep(Duration::from_secs_f64(random.random_range(0.5..1.5) / plan.rate)).await;
        }
    }
}

async fn watch(number: usize, device: Device, seen: Arc<Seen>) {
    let mut incoming = device.incoming();
    loop {
        match incoming.recv().await {
            Ok(Incoming::Message(entry)) => {
                if let Some((content, _)) = entry.content() {
                    seen.arrives(number, content);
                }
            }
            Ok(Incoming::Failed { reason, .. }) => seen.fails(format!("a message was refused for good: {reason:?}")),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => seen.fails("the test itself fell behind its devices".to_owned()),
            Err(RecvError::Closed) => return,
        }
    }
}

/// What all devices have seen.
#[derive(Debug)]
struct Seen {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sent: usize,
    /// Until it is on all devices of its team.
    under_way: HashMap<ContentId, UnderWay>,
    /// When the last device had it; probes only.
    arrived: HashMap<ContentId, Instant>,
    /// When each device last saw something.
    last: Vec<Instant>,
    waits: Waits,
    failure: Option<String>,
}

#[derive(Debug)]
struct UnderWay {
    since: Instant,
    missing: usize,
    probe: bool,
}

impl Seen {
    fn new(devices: usize) -> Self {
        Self { state: Mutex::new(State { last: vec![Instant::now(); devices], ..State::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, team: &Team, device: &Device, text: &str) -> Result<ContentId, Failed> {
        // Held until it is noted: it may arrive at once.
        let mut state = self.lock();
        let content = team.queue(device, format!("{text} {}", state.sent))?;
        state.sent += 1;
        let under_way = UnderWay { since: Instant::now(), missing: team.size(), probe: text == "probe" };
        state.under_way.insert(content, under_way);
        Ok(content)
    }

    fn waits(&self) -> Waits {
        let mut state = self.lock();
        let now = Instant::now();
        let running = state.last.iter().map(|last| now - *last).max().unwrap_or_default();
        let mut waits = std::mem::take(&mut state.waits);
        waits.silence = waits.silence.max(running);
        state.last.fill(now);
        waits
    }

    fn fails(&self, why: String) {
        self.lock().failure.get_or_insert(why);
    }

    fn arrives(&self, device: usize, content: ContentId) {
        let mut state = self.lock();
        let now = Instant::now();
        let silence = now - std::mem::replace(&mut state.last[device], now);
        state.waits.silence = state.waits.silence.max(silence);
        let Some(message) = state.under_way.get_mut(&content) else { return };
        message.missing = message.missing.saturating_sub(1);
        let (took, complete, probe) = (now - message.since, message.missing == 0, message.probe);
        state.waits.slowest = state.waits.slowest.max(took);
        if complete {
            state.under_way.remove(&content);
            if probe {
                state.arrived.insert(content, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn under_way(seen: &Seen, content: ContentId, missing: usize) {
        let message = UnderWay { since: Instant::now(), missing, probe: true };
        seen.lock().under_way.insert(content, message);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_those_of_the_device_that_waited_longest() {
        let seen = Seen::new(2);
        let content = ContentId::from_bytes([1; 16]);
        under_way(&seen, content, 2);
        sleep(Duration::from_secs(1)).await;
        seen.arrives(0, content);
        sleep(Duration::from_secs(3)).await;
        assert!(seen.lock().arrived.is_empty());
        seen.arrives(1, content);
        sleep(Duration::from_secs(2)).await;
        // The first device has seen nothing for 5 s now, which is longer than the second one's 4.
        assert_eq!(seen.waits(), Waits { silence: Duration::from_secs(5), slowest: Duration::from_secs(4) });
        assert_eq!(seen.waits(), Waits::default());
        assert!(seen.lock().arrived.contains_key(&content));
        assert!(seen.lock().under_way.is_empty());
    }
}
