//! A device as an application holds it.
//!
//! Deliberately absent: decisions. They are in the steps (`core`), the outbox worker and the feed; this file joins them.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wardline_domain::record::ConversationKind;
use wardline_domain::{ConversationId, DeviceId, Digest, TenantId, UserId};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::content::{ContentId, Outgoing};
use crate::core::{Core, Step};
use crate::device_log::{DeviceLog, EnrollmentRequest, Vouch};
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::failpoint::{Failpoints, Point};
use crate::rpc::Rpc;
use crate::token::AccessTokens;
use crate::view::{ConversationView, HistoryEntry, Incoming, MemberView, MessageState, ReceiptView, View};

/// How many events an application may lag behind before it must look at the state instead.
const INCOMING_BUFFER: usize = 4096;

/// When a step counts as saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After an fsync: survives power loss.
    #[default]
    Full,
    /// Once the operating system has it: survives the process, not the machine. For load tests.
    Process,
}

/// What may be chosen.
#[derive(Debug, Clone)]
pub struct Options {
    /// The MLS cipher suite of this device's keys (1, or 2 for FIPS tenants). Read by [`Device::create`] only.
    pub suite: u16,
    /// When a step counts as saved.
    pub durability: Durability,
    /// The clock.
    pub clock: Clock,
    /// Where to die, in tests.
    pub failpoints: Failpoints,
    /// Delays between retries.
    pub backoff: Backoff,
    /// How many key packages to keep published.
    pub key_packages: u32,
    /// How many events may be unacknowledged; 0 leaves it to the server.
    pub window_events: u32,
    /// How long a membership change may take to come back in the feed.
    pub commit_timeout: Duration,
    /// The tenant authority's Ed25519 keys, for revocations in device logs. `None` takes those that the server says first
    /// and refuses others later.
    pub authority_keys: Option<Vec<[u8; 32]>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            suite: 1,
            durability: Durability::Full,
            clock: Clock::system(),
            failpoints: Failpoints::none(),
            backoff: Backoff::default(),
            key_packages: 50,
            window_events: 0,
            commit_timeout: Duration::from_secs(60),
            authority_keys: None,
        }
    }
}

/// A conversation to create.
#[derive(Debug, Clone)]
pub struct NewConversation {
    /// Its kind.
    pub kind: ConversationKind,
    /// Its title; sealed for the members.
    pub title: String,
    /// The other users.
    pub members: Vec<UserId>,
    /// Only admins may change the members.
    pub admins_only: bool,
    /// Days a message is kept; 0 keeps it.
    pub retention_days: u32,
}

impl NewConversation {
    /// A group.
    pub fn group(title: impl Into<String>, members: impl Into<Vec<UserId>>) -> Self {
        Self {
            kind: ConversationKind::Group,
            title: title.into(),
            members: members.into(),
            admins_only: false,
            retention_days: 0,
        }
    }
}

/// A device. Clones are handles to the same one; when the last goes, its tasks end.
#[derive(Clone)]
pub struct Device {
    pub(crate) inner: Arc<Inner>,
    guard: Arc<DropGuard>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

/// What the handles and tasks of a device share.
pub(crate) struct Inner {
    core: Mutex<Core>,
    pub(crate) rpc: Rpc,
    pub(crate) options: Options,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    incoming: broadcast::Sender<Incoming>,
    changed: watch::Sender<u64>,
    /// Wakes the outbox worker.
    pub(crate) work: Notify,
    /// Wakes the feed: there is something to send up.
    pub(crate) upward: Notify,
    /// The running feed.
    pub(crate) feed: Mutex<Option<CancellationToken>>,
    /// The person is using the device; to be told.
    pub(crate) active: AtomicBool,
    /// Key packages are being published.
    pub(crate) replenishing: AtomicBool,
    /// Titles are being asked for.
    pub(crate) learning_titles: AtomicBool,
    /// Why the feed has ended for good.
    pub(crate) fault: Mutex<Option<Error>>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs one step, then tells what it did. Never held across an await.
    pub(crate) fn step<T>(&self, run: impl FnOnce(&mut Step<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut core = self.lock();
        let stepped = core.step(run);
        self.after(&core);
        let stepped = stepped?;
        drop(core);
        for told in stepped.told {
            let _ = self.incoming.send(told);
        }
        self.changed.send_modify(|version| *version += 1);
        self.work.notify_one();
        Ok(stepped.value)
    }

    /// Reads.
    pub(crate) fn read<T>(&self, run: impl FnOnce(&Core) -> Result<T, Error>) -> Result<T, Error> {
        let core = self.lock();
        if core.has_stopped() { Err(Error::Stopped) } else { run(&core) }
    }

    /// Changes what is held in memory only.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Core) -> Result<T, Error>) -> Result<T, Error> {
        let mut core = self.lock();
        let value = run(&mut core);
        self.after(&core);
        value
    }

    /// Dies here when the failpoint says so.
    pub(crate) fn dies_at(&self, point: Point) -> Result<(), Error> {
        self.with(|core| core.dies_at(point))
    }

    /// A device that has stopped ends its tasks.
    fn after(&self, core: &Core) {
        if core.has_stopped() {
            self.stop.cancel();
            self.changed.send_modify(|version| *version += 1);
        }
    }

    pub(crate) fn tell(&self, told: Incoming) {
        let _ = self.incoming.send(told);
    }

    pub(crate) fn set_fault(&self, error: Error) {
        *self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
        self.changed.send_modify(|version| *version += 1);
    }

    pub(crate) fn is_attached(&self) -> bool {
        let feed = self.feed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        feed.as_ref().is_some_and(|running| !running.is_cancelled())
    }

    /// Waits until `find` answers with something, looking again after every step.
    pub(crate) async fn wait_for<T>(
        &self,
        what: &'static str,
        within: Duration,
        mut find: impl FnMut(&Core) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let mut changed = self.changed.subscribe();
        let deadline = tokio::time::Instant::now() + within;
        loop {
            changed.borrow_and_update();
            if let Some(found) = self.read(&mut find)? {
                return Ok(found);
            }
            let fault = self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(fault) = fault {
                return Err(fault);
            }
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::Stopped),
                Err(_) => return Err(Error::TimedOut(what)),
            }
        }
    }
}

impl Device {
    /// Makes a new device: its file (which must not exist), its id and its keys. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When the file exists or cannot be written, or an endpoint is not a URL.
    pub fn create(
        file: impl AsRef<Path>,
        endpoints: &Endpoints,
        tokens: Arc<dyn AccessTokens>,
        options: Options,
    ) -> Result<Self, Error> {
        let core = Core::create(
            file.as_ref(),
            options.suite,
            options.durability,
            options.clock.clone(),
            options.failpoints.clone(),
        )?;
        Self::start(core, endpoints, tokens, options)
    }

    /// Opens a device's file. What was queued goes on at once; the feed waits for [`Device::attach`].
    ///
    /// # Errors
    /// When the file is not a device's, or an endpoint is not a URL.
    pub fn open(
        file: impl AsRef<Path>,
        endpoints: &Endpoints,
        tokens: Arc<dyn AccessTokens>,
        options: Options,
    ) -> Result<Self, Error> {
        let core = Core::open(file.as_ref(), options.durability, options.clock.clone(), options.failpoints.clone())?;
        Self::start(core, endpoints, tokens, options)
    }

    fn start(
        core: Core,
        endpoints: &Endpoints,
        tokens: Arc<dyn AccessTokens>,
        options: Options,
    ) -> Result<Self, Error> {
        let rpc = Rpc::new(endpoints, tokens, core.identity.auth.clone(), options.clock.clone())?;
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            core: Mutex::new(core),
            rpc,
            options,
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            incoming: broadcast::channel(INCOMING_BUFFER).0,
            changed: watch::channel(0).0,
            work: Notify::new(),
            upward: Notify::new(),
            feed: Mutex::new(None),
            active: AtomicBool::new(false),
            replenishing: AtomicBool::new(false),
            learning_titles: AtomicBool::new(false),
            fault: Mutex::new(None),
        });
        let worker = crate::outbox::worker::run(Arc::clone(&inner));
        inner.tasks.spawn(worker);
        Ok(Self { inner, guard: Arc::new(stop.drop_guard()) })
    }

    /// Ends the tasks and closes the file. Nothing that is not saved already gets saved.
    pub async fn close(self) {
        self.inner
            .with(|core| {
                core.stop();
                Ok(())
            })
            .unwrap_or_default();
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        drop(self.guard);
    }

    /// Whether it is closed or a failpoint stopped it.
    pub fn has_stopped(&self) -> bool {
        self.inner.stop.is_cancelled()
    }

    /// Waits until it has stopped: for tests with failpoints.
    pub async fn stopped(&self) {
        self.inner.stop.cancelled().await;
    }

    /// The device's id.
    pub fn id(&self) -> DeviceId {
        self.inner.lock().identity.device
    }

    /// Its user; `None` before it is enrolled.
    pub fn user(&self) -> Option<UserId> {
        self.inner.lock().identity.account.map(|account| account.user)
    }

    /// Its tenant; `None` before it is enrolled.
    pub fn tenant(&self) -> Option<TenantId> {
        self.inner.lock().identity.account.map(|account| account.tenant)
    }

    /// A new session's token, for calls by other means. It speaks for this device: treat it as a secret.
    pub async fn session_token(&self) -> Result<String, Error> {
        self.inner.rpc.new_token().await
    }

    // Enrolment and keys

    /// Enrols the user's first device, which signs for itself. Repeating it is OK.
    ///
    /// # Errors
    /// `SIGNER_REQUIRED` when the user has an active device: then use [`Device::enrollment_request`].
    pub async fn enroll(&self) -> Result<(), Error> {
        let request = self.enrollment_request().await?;
        let vouch = self.inner.read(|core| Ok(request.vouched_by(&core.identity, 1, Digest::default())))?;
        self.enroll_with(&request, &vouch).await
    }

    /// What another device of the user must sign so that this one may join.
    pub async fn enrollment_request(&self) -> Result<EnrollmentRequest, Error> {
        crate::device_log::enrollment::request(&self.inner).await
    }

    /// Signs for a further device of the same user. The caller's duty: show the person what is being signed, and get the
    /// request over a channel that the server does not control (a QR code, say).
    pub async fn vouch_for(&self, request: &EnrollmentRequest) -> Result<Vouch, Error> {
        crate::device_log::enrollment::vouch_for(&self.inner, request).await
    }

    /// Enrols this device with another one's signature, then publishes key packages.
    pub async fn enroll_with(&self, request: &EnrollmentRequest, vouch: &Vouch) -> Result<(), Error> {
        crate::device_log::enrollment::enroll(&self.inner, request, vouch).await
    }

    /// Publishes `count` key packages and a last-resort one; answers how many the server now has.
    pub async fn publish_key_packages(&self, count: u32) -> Result<u32, Error> {
        crate::mls::key_packages::publish(&self.inner, count).await
    }

    /// Reads and verifies a user's device log and pins its head.
    ///
    /// # Errors
    /// [`Error::Untrusted`] when it does not verify or differs from what was pinned before.
    pub async fn verify_device_log(&self, user: UserId) -> Result<DeviceLog, Error> {
        crate::device_log::follow::verify(&self.inner, user).await
    }

    /// Revokes a device of one's own user.
    pub async fn revoke_device(&self, device: DeviceId) -> Result<(), Error> {
        crate::device_log::enrollment::revoke(&self.inner, device).await
    }

    // The feed

    /// Follows the feed from the saved cursor, reconnecting for ever. Repeating it is OK.
    pub fn attach(&self) {
        crate::feed::attach(&self.inner);
    }

    /// Stops following the feed. What is in the outbox still goes.
    pub fn detach(&self) {
        let mut feed = self.inner.feed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(running) = feed.take() {
            running.cancel();
        }
    }

    /// Events from now on. A receiver that lags loses the oldest; the state has everything.
    pub fn incoming(&self) -> broadcast::Receiver<Incoming> {
        self.inner.incoming.subscribe()
    }

    /// Says that the person is using the device.
    pub fn activity(&self) {
        crate::feed::activity(&self.inner);
    }

    /// Marks a conversation as read up to `sequence`. Saved, and sent until the server confirms it.
    pub fn mark_read(&self, conversation: ConversationId, sequence: u64) -> Result<(), Error> {
        self.inner.step(|step| crate::store::conversations::mark_read(&step.tx, conversation, sequence))?;
        self.inner.upward.notify_one();
        Ok(())
    }

    // Conversations

    /// Creates a conversation and adds the users' devices and one's own. Needs a running feed when there is anybody to add.
    pub async fn create_conversation(&self, new: NewConversation) -> Result<ConversationId, Error> {
        crate::commit::create_conversation(&self.inner, new).await
    }

    /// Adds users with all their devices. Those who are in it already are left alone. Needs a running feed.
    pub async fn add_users(&self, conversation: ConversationId, users: &[UserId]) -> Result<(), Error> {
        crate::commit::add_users(&self.inner, conversation, users).await
    }

    /// Removes all devices of users. Needs a running feed.
    pub async fn remove_users(&self, conversation: ConversationId, users: &[UserId]) -> Result<(), Error> {
        crate::commit::remove(&self.inner, conversation, |user, _| users.contains(&user)).await
    }

    /// Removes one device. Needs a running feed.
    pub async fn remove_device(&self, conversation: ConversationId, device: DeviceId) -> Result<(), Error> {
        crate::commit::remove(&self.inner, conversation, |_, leaf| leaf == device).await
    }

    /// Adds those of one's own devices that are not in it yet. Needs a running feed.
    pub async fn sync_own_devices(&self, conversation: ConversationId) -> Result<(), Error> {
        let user = self.inner.read(|core| core.identity.account())?.user;
        crate::commit::add_users(&self.inner, conversation, &[user]).await
    }

    /// Takes one's user out of a conversation.
    pub async fn leave(&self, conversation: ConversationId) -> Result<(), Error> {
        crate::commit::leave(&self.inner, conversation).await
    }

    /// Joins anew by an external commit, giving up the local group state. Needs a running feed.
    pub async fn rejoin(&self, conversation: ConversationId) -> Result<(), Error> {
        crate::commit::rejoin(&self.inner, conversation).await
    }

    // Messages

    /// Queues a text. It is saved when this answers; it goes when it can.
    pub fn send_text(&self, conversation: ConversationId, text: impl Into<String>) -> Result<ContentId, Error> {
        self.send(conversation, &Outgoing::text(text))
    }

    /// Queues a small file, at most 64 KiB.
    pub fn send_attachment(
        &self,
        conversation: ConversationId,
        file_name: impl Into<String>,
        media_type: impl Into<String>,
        bytes: Vec<u8>,
    ) -> Result<ContentId, Error> {
        self.send(conversation, &Outgoing::attachment(file_name, media_type, bytes))
    }

    /// Queues content.
    pub fn send(&self, conversation: ConversationId, outgoing: &Outgoing) -> Result<ContentId, Error> {
        self.inner.step(|step| step.queue(conversation, outgoing))
    }

    // Reading

    /// Reads several things at one moment.
    pub fn view<T>(&self, read: impl FnOnce(&View<'_>) -> Result<T, Error>) -> Result<T, Error> {
        self.inner.read(|core| read(&View(core)))
    }

    /// All sequences of a conversation that this device has, in order.
    pub fn history(&self, conversation: ConversationId) -> Result<Vec<HistoryEntry>, Error> {
        self.view(|view| view.history(conversation))
    }

    /// The conversations, by id.
    pub fn conversations(&self) -> Result<Vec<ConversationView>, Error> {
        self.view(|view| view.conversations())
    }

    /// The leaves of a conversation's group.
    pub fn members(&self, conversation: ConversationId) -> Result<Vec<MemberView>, Error> {
        self.view(|view| view.members(conversation))
    }

    /// The watermarks this device was told of.
    pub fn receipts(&self, conversation: ConversationId) -> Result<Vec<ReceiptView>, Error> {
        self.view(|view| view.receipts(conversation))
    }

    /// Asks the receipt service for a conversation's watermarks, saves and answers them.
    pub async fn fetch_receipts(&self, conversation: ConversationId) -> Result<Vec<ReceiptView>, Error> {
        crate::feed::receipts::fetch(&self.inner, conversation).await
    }

    /// Where a message of this device stands; `None` when this device did not send it.
    pub fn message_state(
        &self,
        conversation: ConversationId,
        content: ContentId,
    ) -> Result<Option<MessageState>, Error> {
        self.view(|view| view.message_state(conversation, content))
    }

    /// Which of the users (at most 128) are attached now, by the server's hint.
    pub async fn present(&self, users: &[UserId]) -> Result<Vec<UserId>, Error> {
        self.inner.rpc.present(users).await
    }

    // Waiting, for tests and tools

    /// Waits until `find` answers with something. It is asked again after every step of the device.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; [`Error::Stopped`]; or why the feed has ended for good.
    pub async fn wait_for<T>(
        &self,
        what: &'static str,
        within: Duration,
        mut find: impl FnMut(&View<'_>) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        self.inner.wait_for(what, within, |core| find(&View(core))).await
    }

    /// Waits until a text is in a conversation.
    pub async fn wait_for_text(
        &self,
        conversation: ConversationId,
        text: &str,
        within: Duration,
    ) -> Result<HistoryEntry, Error> {
        self.wait_for("a text", within, |view| {
            Ok(view.history(conversation)?.into_iter().find(|entry| entry.text() == Some(text)))
        })
        .await
    }

    /// Waits until a message of this device has its place.
    ///
    /// # Errors
    /// Also [`Error::Invalid`] when it failed for good.
    pub async fn wait_sequenced(
        &self,
        conversation: ConversationId,
        content: ContentId,
        within: Duration,
    ) -> Result<u64, Error> {
        self.wait_for("a sequence", within, |view| match view.message_state(conversation, content)? {
            Some(MessageState::Sequenced(at) | MessageState::Delivered(at) | MessageState::Read(at)) => Ok(Some(at)),
            Some(MessageState::Failed) => Err(Error::Invalid("the message failed for good")),
            _ => Ok(None),
        })
        .await
    }

    /// Waits until the device has a usable group for the conversation.
    pub async fn wait_active(&self, conversation: ConversationId, within: Duration) -> Result<ConversationView, Error> {
        self.wait_for("an active conversation", within, |view| {
            let found = view.conversation(conversation)?;
            Ok(found.filter(|view| view.status == crate::view::ConversationStatus::Active))
        })
        .await
    }
}
