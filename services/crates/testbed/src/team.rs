//! A care team under load: one conversation of some users with two devices each, all of which send while their server comes
//! and goes, and what all of them have afterwards.
//!
//! Deliberately absent: what happens to the server. That is each test's own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tonic::Request;
use wardline_client::{
    ContentId, ConversationId, Device, DeviceId, Endpoints, Incoming, NewConversation, ReceiptView, UserId,
};
use wardline_proto::convert::ids;
use wardline_proto::v1;
use wardline_proto::v1::receipt_service_client::ReceiptServiceClient;

use crate::ledger::{Finding, Held, Ledger};
use crate::people::{PATIENCE, People, Person};

/// Whatever kept a run from its end, in words.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The environment's name for a seed, to see a run again.
pub const SEED: &str = "WARDLINE_TEST_SEED";

/// How often the service is asked.
const LOOK: Duration = Duration::from_millis(50);

/// Messages sent at once, at most, before one waits for their places.
const BURST: usize = 3;

/// A new seed, or the one that is asked for.
pub fn seed() -> u64 {
    std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| rand::rng().random())
}

/// Panics with the seed when a run failed.
#[track_caller]
pub fn conclude(seed: u64, run: Result<(), Failed>) {
    if let Err(failed) = run {
        panic!("{failed}\nto see it again: {SEED}={seed}");
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here is left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many messages have got their place, over all teams.
#[derive(Debug)]
pub struct Progress {
    sequenced: watch::Sender<usize>,
    silence: Mutex<(Instant, Duration)>,
}

impl Progress {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { sequenced: watch::Sender::new(0), silence: Mutex::new((Instant::now(), Duration::ZERO)) }
    }

    fn add(&self, count: usize) {
        let mut silence = locked(&self.silence);
        silence.1 = silence.1.max(silence.0.elapsed());
        silence.0 = Instant::now();
        drop(silence);
        self.sequenced.send_modify(|sequenced| *sequenced += count);
    }

    /// Waits until so many have.
    pub async fn reaches(&self, count: usize) -> Result<(), Failed> {
        let mut sequenced = self.sequenced.subscribe();
        let reached = tokio::time::timeout(PATIENCE, sequenced.wait_for(|sequenced| *sequenced >= count)).await;
        reached.map_err(|_| format!("the load stands: {} of {count} sequenced", *self.sequenced.borrow()))??;
        Ok(())
    }

    /// The longest time in which none did, while some were waiting to.
    pub fn longest_silence(&self) -> Duration {
        locked(&self.silence).1
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// One conversation and its people.
pub struct Team {
    conversation: ConversationId,
    devices: Vec<((UserId, DeviceId), Device)>,
    sent: Mutex<BTreeSet<ContentId>>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} devices)", self.devices.len())
    }
}

impl Team {
    /// Enrols `users` with two devices each, and gathers them all in one conversation.
    pub async fn gather(people: &People, users: usize) -> Result<Self, Failed> {
        let mut enrolling = JoinSet::new();
        for number in 0..users {
            let people = people.clone();
            enrolling.spawn(async move { enrol(&people, number).await });
        }
        let mut devices = Vec::new();
        while let Some(enrolled) = enrolling.join_next().await {
            devices.extend(enrolled??);
        }
        let (first, others) = devices.split_first().ok_or("a team of nobody")?;
        let (creator, device) = (first.0.0, &first.1);
        let members: BTreeSet<_> = others.iter().map(|((user, _), _)| *user).filter(|user| *user != creator).collect();
        let members: Vec<_> = members.into_iter().collect();
        let conversation = device.create_conversation(NewConversation::group("night shift", members)).await?;
        for (_, device) in &devices {
            device.wait_active(conversation, PATIENCE).await?;
        }
        Ok(Self { conversation, devices, sent: Mutex::default() })
    }

    /// How many devices it has.
    pub fn size(&self) -> usize {
        self.devices.len()
    }

    /// Each device sends `messages` texts, a few at a time; `readers` of them read along.
    pub async fn talk(&self, messages: usize, readers: usize, seed: u64, progress: &Progress) -> Result<(), Failed> {
        let reading: Vec<_> = self.devices.iter().take(readers).map(|(_, device)| self.read_along(device)).collect();
        let sending = self.devices.iter().enumerate().map(|(number, (_, device))| async move {
            let mut random = StdRng::seed_from_u64(seed ^ number as u64);
            let mut left = messages;
            while left > 0 {
                let burst = random.random_range(1..=left.min(BURST));
                self.say(device, burst).await.map_err(|error| format!("device {number}: {error}"))?;
                progress.add(burst);
                left -= burst;
            }
            Ok::<_, Failed>(())
        });
        let all_sent = futures::future::try_join_all(sending).await;
        drop(reading);
        all_sent.map(drop)
    }

    async fn say(&self, device: &Device, burst: usize) -> Result<(), Failed> {
        let queue = |number| self.queue(device, format!("note {number}"));
        let queued: Vec<_> = (0..burst).map(queue).collect::<Result<_, _>>()?;
        for content in queued {
            device.wait_sequenced(self.conversation, content, PATIENCE).await?;
        }
        Ok(())
    }

    /// Queues a text on a device of this team, for the ledger to look for afterwards.
    pub(crate) fn queue(&self, device: &Device, text: String) -> Result<ContentId, wardline_client::Error> {
        // Held until the content is noted: nobody may count what was sent in between.
        let mut sent = locked(&self.sent);
        let content = device.send_text(self.conversation, text)?;
        sent.insert(content);
        Ok(content)
    }

    /// Its devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().map(|(_, device)| device)
    }

    pub(crate) fn read_along(&self, device: &Device) -> Reading {
        let (device, mut incoming) = (device.clone(), device.incoming());
        let task = tokio::spawn(async move {
            loop {
                let entry = match incoming.recv().await {
                    Ok(Incoming::Message(entry)) => entry,
                    // A later message marks those that were missed as well.
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                };
                if let Err(error) = device.mark_read(entry.conversation, entry.sequence) {
                    tracing::warn!(%error, "a mark was not kept");
                }
            }
        });
        Reading(task.abort_handle())
    }

    /// Waits until every device has everything and knows what it should of the others, then asks the service as well.
    ///
    /// # Errors
    /// What is not as promised, when it does not become so.
    pub async fn converges(&self, readers: usize, endpoints: &Endpoints) -> Result<(), Failed> {
        let sent = locked(&self.sent).len();
        for (_, device) in &self.devices {
            let has_all = device.wait_for("all messages", PATIENCE, |view| {
                let history = view.history(self.conversation)?;
                Ok((history.iter().filter(|entry| entry.content().is_some()).count() >= sent).then_some(()))
            });
            if let Err(error) = has_all.await {
                return Err(format!("{error}: {}", listed(&self.ledger()?.findings())).into());
            }
        }
        for (_, device) in self.devices.iter().take(readers) {
            let last = device.history(self.conversation)?.last().map_or(0, |entry| entry.sequence);
            device.mark_read(self.conversation, last)?;
        }
        let mut ledger = self.ledger()?;
        clean("what devices have", &ledger.findings())?;
        for (key, device) in &self.devices {
            let told = device.wait_for("receipts", PATIENCE, |view| {
                ledger.devices.entry(*key).or_default().receipts = view.receipts(self.conversation)?;
                Ok(ledger.receipt_findings_of(*key).is_empty().then_some(()))
            });
            if let Err(error) = told.await {
                return Err(format!("{error}: {}", listed(&ledger.receipt_findings())).into());
            }
        }
        // Nothing that came since has spoilt it.
        let ledger = self.ledger()?;
        clean("what devices have", &ledger.findings())?;
        clean("what devices were told", &ledger.receipt_findings())?;
        self.service_agrees(&ledger, endpoints).await
    }

    /// Asks the service until it says what devices have: nobody is told when somebody has got a message of their own.
    async fn service_agrees(&self, ledger: &Ledger, endpoints: &Endpoints) -> Result<(), Failed> {
        let deadline = Instant::now() + PATIENCE;
        let mut look = tokio::time::interval(LOOK);
        loop {
            let findings = ledger.service_findings(&self.watermarks(endpoints).await?);
            if findings.is_empty() || Instant::now() > deadline {
                return clean("what the service says", &findings);
            }
            look.tick().await;
        }
    }

    /// What all devices have now.
    fn ledger(&self) -> Result<Ledger, Failed> {
        let mut ledger = Ledger { sent: locked(&self.sent).clone(), ..Ledger::default() };
        for (key, device) in &self.devices {
            let held = device.view(|view| {
                Ok(Held {
                    history: view.history(self.conversation)?,
                    read: view.conversation(self.conversation)?.map_or(0, |conversation| conversation.read),
                    receipts: view.receipts(self.conversation)?,
                })
            })?;
            ledger.devices.insert(*key, held);
        }
        Ok(ledger)
    }

    /// What GetReceipts answers, past the device's own memory.
    async fn watermarks(&self, endpoints: &Endpoints) -> Result<Vec<ReceiptView>, Failed> {
        let (_, device) = self.devices.first().ok_or("a team of nobody")?;
        let token = device.session_token().await?;
        let channel = tonic::transport::Endpoint::from_shared(endpoints.receipt.clone())?.connect_lazy();
        let conversation_id = self.conversation.to_string();
        let mut request = Request::new(v1::GetReceiptsRequest { conversation_id, sequence: 0 });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let answer = ReceiptServiceClient::new(channel).get_receipts(request).await?.into_inner();
        answer.watermarks.iter().map(receipt).collect()
    }
}

/// A device that reads along until this is dropped.
#[derive(Debug)]
pub(crate) struct Reading(AbortHandle);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn enrol(people: &People, number: usize) -> Result<Vec<((UserId, DeviceId), Device)>, Failed> {
    let Person { user, subject } = people.person(&format!("user{number}")).await?;
    let person = Person { user, subject };
    let phone = people.device(&person, None).await?;
    let tablet = people.device(&person, Some(&phone)).await?;
    Ok([phone, tablet].into_iter().map(|device| ((user, device.id()), device)).collect())
}

fn receipt(mark: &v1::Watermark) -> Result<ReceiptView, Failed> {
    Ok(ReceiptView {
        conversation: ids::conversation(&mark.conversation_id, "conversation_id")?,
        user: ids::user(&mark.user_id, "user_id")?,
        device: ids::device(&mark.device_id, "device_id")?,
        delivered: mark.delivered,
        read: mark.read,
        skipped: mark.skipped.iter().map(|range| (range.first, range.last)).collect(),
    })
}

fn clean(what: &str, findings: &[Finding]) -> Result<(), Failed> {
    if findings.is_empty() { Ok(()) } else { Err(format!("{what} is not as promised: {}", listed(findings)).into()) }
}

/// The first few.
fn listed(findings: &[Finding]) -> String {
    let mut text = format!("{} findings", findings.len());
    for finding in findings.iter().take(12) {
        let _ = write!(text, "\n  {finding}");
    }
    text
}
