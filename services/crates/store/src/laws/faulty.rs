//! Stores that fail: a decorator for tests of roles. Which call fails, and how, follows from a seed.
//!
//! Deliberately absent: delays. A test that wants a call to hang drives its own futures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::conversation::{Head, OutcomeKey};
use wardline_domain::envelope::Sequence;
use wardline_domain::roster::Roster;
use wardline_domain::{ConversationId, DeviceId, Digest, Position, TenantId, Timestamp, UserId};

use super::sample::Random;
use crate::checkpoints::{Checkpoint, Checkpoints, PartitionName};
use crate::conversations::{Blobs, Conversations, HeadRow, MembershipRow, MessageRow, OutcomeRow, RowBatch};
use crate::directory::{
    Appended, Claimed, DeviceLogRow, DeviceRow, Directory, KeyPackageRow, KeyPackageStatus, Put, RequestId, TenantRow,
    UserRow,
};
use crate::feeds::{DeviceCursorRow, FeedRow, Feeds, ReceiptOfRow};
use crate::watermarks::{WatermarkRow, Watermarks};
use crate::{Cause, Failure, Result, Stores};

/// How often calls fail, in percent of the calls of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Writes that did not happen and say so.
    pub not_applied: u8,
    /// Writes that did not happen and do not know.
    pub unknown_not_applied: u8,
    /// Writes that happened and do not know.
    pub unknown_applied: u8,
    /// Writes of rows that wrote some rows and do not know.
    pub torn: u8,
    /// Reads that fail.
    pub reads: u8,
}

impl Default for Faults {
    /// About every second write fails.
    fn default() -> Self {
        Self { not_applied: 10, unknown_not_applied: 10, unknown_applied: 20, torn: 20, reads: 10 }
    }
}

/// What becomes of a write.
enum Fate {
    Works,
    NotApplied,
    UnknownNotApplied,
    UnknownApplied,
}

/// Switches the failures of one decorated set of stores off and on, for a test that then waits for an end.
#[derive(Debug, Clone)]
pub struct Switch(Arc<AtomicBool>);

impl Switch {
    /// Whether calls fail from now on.
    pub fn set(&self, failing: bool) {
        self.0.store(failing, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Faulty {
    inner: Stores,
    faults: Faults,
    random: Arc<Mutex<Random>>,
    failing: Switch,
}

/// Decorates stores with failures.
pub fn faulty(inner: Stores, seed: u64, faults: Faults) -> Stores {
    faulty_with_switch(inner, seed, faults).0
}

/// [`faulty`], with a switch.
pub fn faulty_with_switch(inner: Stores, seed: u64, faults: Faults) -> (Stores, Switch) {
    let failing = Switch(Arc::new(AtomicBool::new(true)));
    let faulty = Faulty { inner, faults, random: Arc::new(Mutex::new(Random(seed))), failing: failing.clone() };
    let stores = Stores {
        conversations: Arc::new(faulty.clone()),
        blobs: Arc::new(faulty.clone()),
        feeds: Arc::new(faulty.clone()),
        watermarks: Arc::new(faulty.clone()),
        checkpoints: Arc::new(faulty.clone()),
        directory: Arc::new(faulty),
    };
    (stores, failing)
}

fn injected() -> Cause {
    Cause::unavailable("injected")
}

impl Faulty {
    fn roll(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    /// Whether a call fails that fails so often.
    fn fails(&self, percent: u8) -> bool {
        self.failing.0.load(Ordering::SeqCst) && self.roll() % 100 < u64::from(percent)
    }

    fn fate(&self) -> Fate {
        if !self.failing.0.load(Ordering::SeqCst) {
            return Fate::Works;
        }
        let faults = [
            (self.faults.not_applied, Fate::NotApplied),
            (self.faults.unknown_not_applied, Fate::UnknownNotApplied),
            (self.faults.unknown_applied, Fate::UnknownApplied),
        ];
        let mut left = self.roll() % 100;
        for (percent, fate) in faults {
            match left.checked_sub(u64::from(percent)) {
                Some(rest) => left = rest,
                None => return fate,
            }
        }
        Fate::Works
    }

    /// Lets a write happen, or not, and answers, or does not know.
    async fn write<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match self.fate() {
            Fate::Works => call.await,
            Fate::NotApplied => Err(Failure::NotApplied(injected())),
            Fate::UnknownNotApplied => Err(Failure::Unknown(injected())),
            Fate::UnknownApplied => {
                call.await?;
                Err(Failure::Unknown(injected()))
            }
        }
    }

    /// Lets a read happen or fail.
    async fn read<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        if self.fails(self.faults.reads) {
            return Err(Failure::NotApplied(injected()));
        }
        call.await
    }

    /// Some of the rows, in another order.
    fn some<T: Clone>(&self, rows: &[T]) -> Vec<T> {
        let mut some: Vec<_> = rows.iter().filter(|_| self.roll().is_multiple_of(2)).cloned().collect();
        some.reverse();
        some
    }
}

#[async_trait]
impl Conversations for Faulty {
    async fn put_rows(&self, rows: &RowBatch) -> Result<()> {
        let inner = &self.inner.conversations;
        if !self.fails(self.faults.torn) {
            return self.write(inner.put_rows(rows)).await;
        }
        let part = RowBatch {
            messages: self.some(&rows.messages),
            outcomes: self.some(&rows.outcomes),
            members: self.some(&rows.members),
            memberships: self.some(&rows.memberships),
        };
        inner.put_rows(&part).await?;
        Err(Failure::Unknown(injected()))
    }

    async fn put_heads(&self, heads: &[HeadRow]) -> Result<()> {
        self.write(self.inner.conversations.put_heads(heads)).await
    }

    async fn head(&self, conversation: ConversationId) -> Result<Option<Head>> {
        self.read(self.inner.conversations.head(conversation)).await
    }

    async fn heads(&self, conversations: &[ConversationId]) -> Result<Vec<Option<Head>>> {
        self.read(self.inner.conversations.heads(conversations)).await
    }

    async fn roster(&self, conversation: ConversationId, at_most: u64) -> Result<Roster> {
        self.read(self.inner.conversations.roster(conversation, at_most)).await
    }

    async fn outcomes(&self, keys: &[OutcomeKey]) -> Result<Vec<Option<OutcomeRow>>> {
        self.read(self.inner.conversations.outcomes(keys)).await
    }

    async fn messages(
        &self,
        conversation: ConversationId,
        after: Sequence,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<MessageRow>> {
        self.read(self.inner.conversations.messages(conversation, after, limit, max_bytes)).await
    }

    async fn messages_at(&self, at: &[(ConversationId, Sequence)]) -> Result<Vec<Option<MessageRow>>> {
        self.read(self.inner.conversations.messages_at(at)).await
    }

    async fn memberships(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: usize,
    ) -> Result<Vec<MembershipRow>> {
        self.read(self.inner.conversations.memberships(user, after, limit)).await
    }

    async fn drop_messages(&self, conversation: ConversationId, through: Sequence, now: Timestamp) -> Result<()> {
        self.write(self.inner.conversations.drop_messages(conversation, through, now)).await
    }
}

#[async_trait]
impl Blobs for Faulty {
    async fn put(&self, conversation: ConversationId, blobs: &[Bytes]) -> Result<()> {
        self.write(self.inner.blobs.put(conversation, blobs)).await
    }

    async fn get(&self, conversation: ConversationId, digest: Digest) -> Result<Option<Bytes>> {
        self.read(self.inner.blobs.get(conversation, digest)).await
    }
}

#[async_trait]
impl Feeds for Faulty {
    async fn put_rows(&self, rows: &[FeedRow]) -> Result<()> {
        if !self.fails(self.faults.torn) {
            return self.write(self.inner.feeds.put_rows(rows)).await;
        }
        self.inner.feeds.put_rows(&self.some(rows)).await?;
        Err(Failure::Unknown(injected()))
    }

    async fn put_heads(&self, heads: &[(UserId, Position)]) -> Result<()> {
        self.write(self.inner.feeds.put_heads(heads)).await
    }

    async fn heads(&self, users: &[UserId]) -> Result<Vec<Option<Position>>> {
        self.read(self.inner.feeds.heads(users)).await
    }

    async fn rows(
        &self,
        user: UserId,
        after: Option<Position>,
        through: Position,
        limit: usize,
    ) -> Result<Vec<FeedRow>> {
        self.read(self.inner.feeds.rows(user, after, through, limit)).await
    }

    async fn put_device_cursors(&self, cursors: &[DeviceCursorRow]) -> Result<()> {
        self.write(self.inner.feeds.put_device_cursors(cursors)).await
    }

    async fn device_cursors(&self, user: UserId) -> Result<Vec<DeviceCursorRow>> {
        self.read(self.inner.feeds.device_cursors(user)).await
    }

    async fn put_receipts_of(&self, rows: &[ReceiptOfRow]) -> Result<()> {
        self.write(self.inner.feeds.put_receipts_of(rows)).await
    }

    async fn receipts_of(
        &self,
        user: UserId,
        updated_after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<ReceiptOfRow>> {
        self.read(self.inner.feeds.receipts_of(user, updated_after, limit)).await
    }

    async fn expire(&self, before: Timestamp) -> Result<()> {
        self.write(self.inner.feeds.expire(before)).await
    }
}

#[async_trait]
impl Watermarks for Faulty {
    async fn put(&self, rows: &[WatermarkRow]) -> Result<()> {
        self.write(self.inner.watermarks.put(rows)).await
    }

    async fn get(&self, keys: &[(ConversationId, UserId, DeviceId)]) -> Result<Vec<Option<WatermarkRow>>> {
        self.read(self.inner.watermarks.get(keys)).await
    }

    async fn of(&self, conversation: ConversationId) -> Result<Vec<WatermarkRow>> {
        self.read(self.inner.watermarks.of(conversation)).await
    }
}

#[async_trait]
impl Checkpoints for Faulty {
    async fn put(&self, partition: PartitionName, checkpoint: &Checkpoint) -> Result<()> {
        self.write(self.inner.checkpoints.put(partition, checkpoint)).await
    }

    async fn get(&self, partition: PartitionName) -> Result<Option<Checkpoint>> {
        self.read(self.inner.checkpoints.get(partition)).await
    }

    async fn flush(&self) -> Result<()> {
        self.write(self.inner.checkpoints.flush()).await
    }
}

#[async_trait]
impl Directory for Faulty {
    async fn create_tenant(&self, row: &TenantRow) -> Result<Put<TenantRow>> {
        self.write(self.inner.directory.create_tenant(row)).await
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRow>> {
        self.read(self.inner.directory.tenant(tenant)).await
    }

    async fn create_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        self.write(self.inner.directory.create_user(row)).await
    }

    async fn user(&self, user: UserId) -> Result<Option<UserRow>> {
        self.read(self.inner.directory.user(user)).await
    }

    async fn user_by_external_id(&self, tenant: TenantId, external_id: &str) -> Result<Option<UserRow>> {
        self.read(self.inner.directory.user_by_external_id(tenant, external_id)).await
    }

    async fn update_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        self.write(self.inner.directory.update_user(row)).await
    }

    async fn append_device_log(&self, entry: &DeviceLogRow) -> Result<Appended> {
        self.write(self.inner.directory.append_device_log(entry)).await
    }

    async fn device_log(&self, user: UserId, after_version: u64, limit: usize) -> Result<Vec<DeviceLogRow>> {
        self.read(self.inner.directory.device_log(user, after_version, limit)).await
    }

    async fn device(&self, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>> {
        self.read(self.inner.directory.device(user, device)).await
    }

    async fn devices(&self, user: UserId) -> Result<Vec<DeviceRow>> {
        self.read(self.inner.directory.devices(user)).await
    }

    async fn device_by_thumbprint(&self, thumbprint: Digest) -> Result<Option<DeviceRow>> {
        self.read(self.inner.directory.device_by_thumbprint(thumbprint)).await
    }

    async fn publish_key_packages(&self, rows: &[KeyPackageRow], keep: u32) -> Result<u32> {
        self.write(self.inner.directory.publish_key_packages(rows, keep)).await
    }

    async fn claim_key_packages(
        &self,
        user: UserId,
        suite: u16,
        devices: &[DeviceId],
        request: RequestId,
        not_before_end: Timestamp,
        now: Timestamp,
    ) -> Result<Claimed> {
        let claim = self.inner.directory.claim_key_packages(user, suite, devices, request, not_before_end, now);
        self.write(claim).await
    }

    async fn key_packages_claimed(&self, user: UserId, suite: u16, request: RequestId) -> Result<bool> {
        self.read(self.inner.directory.key_packages_claimed(user, suite, request)).await
    }

    async fn served_key_package(&self, user: UserId, suite: u16, reference: Digest) -> Result<Option<KeyPackageRow>> {
        self.read(self.inner.directory.served_key_package(user, suite, reference)).await
    }

    async fn key_package_status(
        &self,
        user: UserId,
        device: DeviceId,
        suite: u16,
        not_before_end: Timestamp,
    ) -> Result<KeyPackageStatus> {
        self.read(self.inner.directory.key_package_status(user, device, suite, not_before_end)).await
    }

    async fn drop_key_packages(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.write(self.inner.directory.drop_key_packages(user, device)).await
    }
}
