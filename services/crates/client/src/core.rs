//! The device without its network: one SQLite file, one transaction a step. Nothing here is `async`.
//!
//! Deliberately absent: retries, timers, RPCs. A step that fails leaves nothing behind.

use std::collections::HashMap;
use std::path::Path;

use openmls_basic_credential::SignatureKeyPair;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use wardline_domain::{ConversationId, DeviceId, MessageId, TenantId, UserId};
use wardline_proto::reason::Reason;

use crate::clock::Clock;
use crate::content::ContentId;
use crate::device::Durability;
use crate::dpop::AuthKey;
use crate::error::Error;
use crate::failpoint::{Failpoints, Point};
use crate::store;
use crate::view::{ConversationView, HistoryEntry, Incoming, MemberView, MessageState, ReceiptView};

/// Who the device is.
pub(crate) struct Identity {
    pub(crate) device: DeviceId,
    pub(crate) auth: AuthKey,
    pub(crate) suite: u16,
    pub(crate) signer: SignatureKeyPair,
    /// Known from the first session on.
    pub(crate) account: Option<Account>,
}

/// Whose device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) tenant: TenantId,
    pub(crate) user: UserId,
}

impl Identity {
    /// Whose device it is.
    pub(crate) fn account(&self) -> Result<Account, Error> {
        self.account.ok_or(Error::Invalid("the device is not enrolled"))
    }
}

/// The device without its network.
pub(crate) struct Core {
    connection: Connection,
    pub(crate) identity: Identity,
    clock: Clock,
    failpoints: Failpoints,
    stopped: bool,
    last_message: MessageId,
    /// Why commits of this process were lost, for whoever waits for them.
    pub(crate) lost_commits: HashMap<MessageId, Reason>,
}

/// One step: a transaction, and what it will tell once it is committed.
pub(crate) struct Step<'a> {
    pub(crate) tx: Transaction<'a>,
    pub(crate) me: &'a Identity,
    pub(crate) clock: &'a Clock,
    pub(crate) told: Vec<Incoming>,
    last_message: MessageId,
    pub(crate) lost: Vec<(MessageId, Reason)>,
}

/// What came of a step.
pub(crate) struct Stepped<T> {
    pub(crate) value: T,
    /// To be told to the application, now that it is committed.
    pub(crate) told: Vec<Incoming>,
}

impl Core {
    /// Makes the file and the keys.
    pub(crate) fn create(
        file: &Path,
        suite: u16,
        durability: Durability,
        clock: Clock,
        failpoints: Failpoints,
    ) -> Result<Self, Error> {
        let mut connection = store::create(file, durability)?;
        let identity = store::identity::create(&mut connection, suite, clock.now())?;
        Ok(Self::new(connection, identity, clock, failpoints))
    }

    /// Opens the file.
    pub(crate) fn open(
        file: &Path,
        durability: Durability,
        clock: Clock,
        failpoints: Failpoints,
    ) -> Result<Self, Error> {
        let connection = store::open(file, durability)?;
        let identity = store::identity::load(&connection)?;
        Ok(Self::new(connection, identity, clock, failpoints))
    }

    fn new(connection: Connection, identity: Identity, clock: Clock, failpoints: Failpoints) -> Self {
        let last_message = MessageId::from_bytes([0; 16]);
        Self { connection, identity, clock, failpoints, stopped: false, last_message, lost_commits: HashMap::new() }
    }

    /// Runs one step in one transaction. An error rolls it back; so does dying before the commit.
    pub(crate) fn step<T>(&mut self, run: impl FnOnce(&mut Step<'_>) -> Result<T, Error>) -> Result<Stepped<T>, Error> {
        if self.stopped {
            return Err(Error::Stopped);
        }
        let stepped = self.transact(run)?;
        self.dies_at(Point::AfterCommit)?;
        Ok(stepped)
    }

    fn transact<T>(&mut self, run: impl FnOnce(&mut Step<'_>) -> Result<T, Error>) -> Result<Stepped<T>, Error> {
        let mut step = Step {
            tx: self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?,
            me: &self.identity,
            clock: &self.clock,
            told: Vec::new(),
            last_message: self.last_message,
            lost: Vec::new(),
        };
        let value = run(&mut step)?;
        if self.failpoints.fires(Point::BeforeCommit) {
            self.stopped = true;
            return Err(Error::Stopped);
        }
        let Step { tx, told, last_message, lost, .. } = step;
        tx.commit()?;
        self.last_message = last_message;
        self.lost_commits.extend(lost);
        Ok(Stepped { value, told })
    }

    /// Stops the device when the failpoint says so.
    pub(crate) fn dies_at(&mut self, point: Point) -> Result<(), Error> {
        self.stopped = self.stopped || self.failpoints.fires(point);
        if self.stopped { Err(Error::Stopped) } else { Ok(()) }
    }

    /// No step runs from here on.
    pub(crate) const fn stop(&mut self) {
        self.stopped = true;
    }

    pub(crate) const fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// For reading.
    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Remembers whose device it is; the first session tells.
    pub(crate) fn learn_account(&mut self, account: Account) -> Result<(), Error> {
        if self.identity.account == Some(account) {
            return Ok(());
        }
        if self.identity.account.is_some() {
            return Err(Error::Untrusted("the session is for another user"));
        }
        self.step(|step| store::identity::set_account(&step.tx, account))?;
        self.identity.account = Some(account);
        Ok(())
    }

    pub(crate) fn history(&self, conversation: ConversationId) -> Result<Vec<HistoryEntry>, Error> {
        store::messages::history(&self.connection, conversation)
    }

    pub(crate) fn conversations(&self) -> Result<Vec<ConversationView>, Error> {
        let ids = store::conversations::ids(&self.connection)?;
        ids.into_iter().filter_map(|id| self.conversation(id).transpose()).collect()
    }

    pub(crate) fn conversation(&self, conversation: ConversationId) -> Result<Option<ConversationView>, Error> {
        crate::mls::group::conversation_view(&self.connection, conversation)
    }

    pub(crate) fn receipts(&self, conversation: ConversationId) -> Result<Vec<ReceiptView>, Error> {
        store::watermarks::all(&self.connection, conversation)
    }

    pub(crate) fn members(&self, conversation: ConversationId) -> Result<Vec<MemberView>, Error> {
        crate::mls::group::members(&self.connection, conversation)
    }

    pub(crate) fn message_state(
        &self,
        conversation: ConversationId,
        content: ContentId,
    ) -> Result<Option<MessageState>, Error> {
        crate::outbox::state(&self.connection, &self.identity, conversation, content)
    }

    pub(crate) fn unsequenced(&self) -> Result<u64, Error> {
        store::outbox::unsequenced(&self.connection)
    }
}

impl Step<'_> {
    /// A new message id: a UUIDv7 above all that this process has made.
    pub(crate) fn next_message(&mut self) -> MessageId {
        let millis = self.clock.now().as_millis().max(self.last_message.unix_millis());
        let made = new_id(millis);
        self.last_message = if made > self.last_message { made } else { new_id(millis + 1) };
        self.last_message
    }

    /// A new content id.
    pub(crate) fn next_content(&self) -> ContentId {
        ContentId(*new_id(self.clock.now().as_millis()).as_bytes())
    }
}

fn new_id(millis: u64) -> MessageId {
    let mut random = [0; 10];
    crate::secret::fill_random(&mut random);
    MessageId::from_bytes(*uuid::Builder::from_unix_timestamp_millis(millis, &random).as_uuid().as_bytes())
}
