//! The directory: one keyspace, a tag before each table's keys, indexes written in the batch of their row.
//!
//! Every compare-and-set runs under one lock and is in the journal before the lock is released; its answer waits until the
//! journal is on disk, also when it only tells what it found.

mod claims;
mod devices;
mod key_packages;
mod tenants;
mod users;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fjall::OwnedWriteBatch;
use wardline_domain::{DeviceId, Digest, TenantId, Timestamp, UserId};

use super::Embedded;
use super::engine::{Engine, Table};
use crate::Result;
use crate::directory::{
    Appended, Claimed, DeviceLogRow, DeviceRow, Directory, KeyPackageRow, KeyPackageStatus, Put, RequestId, TenantRow,
    UserRow,
};

/// The tables: the first byte of their keys.
mod tag {
    pub(super) const TENANT: u8 = 1;
    pub(super) const USER: u8 = 2;
    /// (tenant, external id) → user.
    pub(super) const EXTERNAL_ID: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    /// Thumbprint → (user, device).
    pub(super) const THUMBPRINT: u8 = 5;
    pub(super) const DEVICE_LOG: u8 = 6;
    /// (user, suite, reference) → the package.
    pub(super) const PACKAGE: u8 = 7;
    /// (user, suite, device, end of life, reference): not served, not last-resort.
    pub(super) const UNSERVED: u8 = 8;
    /// (user, suite, device) → the last-resort package's reference, when it was served last.
    pub(super) const LAST_RESORT: u8 = 9;
    /// (user, suite, reference): served at least once.
    pub(super) const SERVED: u8 = 10;
    /// (user, suite, end of life, reference): served, by when it may be forgotten.
    pub(super) const SERVED_UNTIL: u8 = 11;
    /// (request, user, suite) → what was claimed.
    pub(super) const CLAIM: u8 = 12;
    /// (when, request, user, suite): claims by age.
    pub(super) const CLAIM_AT: u8 = 13;
    /// Device → user.
    pub(super) const DEVICE_OWNER: u8 = 14;
    /// (suite, MLS public key) → (user, device).
    pub(super) const MLS_KEY: u8 = 15;
}

/// What compare-and-set needs in memory.
#[derive(Default)]
pub(super) struct State {
    lock: Mutex<()>,
    /// The latest time a caller told, in microseconds.
    latest: AtomicU64,
}

/// One compare-and-set: reads what was committed, collects what it will write.
struct Step<'a> {
    engine: &'a Engine,
    batch: OwnedWriteBatch,
}

impl Step<'_> {
    fn table(&self) -> &Table {
        &self.engine.tables.directory
    }

    fn insert(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.batch.insert(&self.engine.tables.directory.keyspace, key, value.into());
    }

    fn remove(&mut self, key: impl Into<Bytes>) {
        self.batch.remove(&self.engine.tables.directory.keyspace, key.into());
    }

    /// The latest time a caller told.
    fn latest(&self) -> Timestamp {
        Timestamp::from_micros(self.engine.directory.latest.load(Ordering::Relaxed))
    }

    fn tell_time(&self, now: Timestamp) {
        self.engine.directory.latest.fetch_max(now.as_micros(), Ordering::Relaxed);
    }
}

impl Embedded {
    /// Runs a compare-and-set and waits until what it wrote or found is on disk.
    async fn step<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Step<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let answer = self.0.blocking(move |engine| {
            let _alone = engine.directory.lock.lock().unwrap_or_else(PoisonError::into_inner);
            let mut step = Step { engine, batch: engine.batch() };
            let answer = work(&mut step)?;
            engine.commit_for_sync(step.batch)?;
            Ok(answer)
        });
        let answer = answer.await?;
        self.0.syncer.synced().await?;
        Ok(answer)
    }
}

#[async_trait]
impl Directory for Embedded {
    async fn create_tenant(&self, row: &TenantRow) -> Result<Put<TenantRow>> {
        let row = row.clone();
        self.step(move |step| tenants::create(step, &row)).await
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRow>> {
        tenants::read(&self.0.tables.directory, tenant)
    }

    async fn create_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        let row = row.clone();
        self.step(move |step| users::create(step, &row)).await
    }

    async fn user(&self, user: UserId) -> Result<Option<UserRow>> {
        users::read(&self.0.tables.directory, user)
    }

    async fn user_by_external_id(&self, tenant: TenantId, external_id: &str) -> Result<Option<UserRow>> {
        users::by_external_id(&self.0.tables.directory, tenant, external_id)
    }

    async fn update_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        let row = row.clone();
        self.step(move |step| users::update(step, &row)).await
    }

    async fn append_device_log(&self, entry: &DeviceLogRow) -> Result<Appended> {
        let entry = entry.clone();
        self.step(move |step| devices::append(step, &entry)).await
    }

    async fn device_log(&self, user: UserId, after_version: u64, limit: usize) -> Result<Vec<DeviceLogRow>> {
        self.0.blocking(move |engine| devices::log(&engine.tables.directory, user, after_version, limit)).await
    }

    async fn device(&self, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>> {
        devices::read(&self.0.tables.directory, user, device)
    }

    async fn devices(&self, user: UserId) -> Result<Vec<DeviceRow>> {
        self.0.blocking(move |engine| devices::all(&engine.tables.directory, user)).await
    }

    async fn device_by_thumbprint(&self, thumbprint: Digest) -> Result<Option<DeviceRow>> {
        devices::by_thumbprint(&self.0.tables.directory, thumbprint)
    }

    async fn publish_key_packages(&self, rows: &[KeyPackageRow], keep: u32) -> Result<u32> {
        let rows = rows.to_vec();
        self.step(move |step| key_packages::publish(step, &rows, keep)).await
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
        let devices = devices.to_vec();
        let claim = claims::Claim { user, suite, devices, request, not_before_end, now };
        self.step(move |step| claims::claim(step, &claim)).await
    }

    async fn key_packages_claimed(&self, user: UserId, suite: u16, request: RequestId) -> Result<bool> {
        claims::claimed(&self.0.tables.directory, user, suite, request)
    }

    async fn served_key_package(&self, user: UserId, suite: u16, reference: Digest) -> Result<Option<KeyPackageRow>> {
        key_packages::served(&self.0.tables.directory, user, suite, reference)
    }

    async fn key_package_status(
        &self,
        user: UserId,
        device: DeviceId,
        suite: u16,
        not_before_end: Timestamp,
    ) -> Result<KeyPackageStatus> {
        let status =
            move |engine: &Engine| key_packages::status(&engine.tables.directory, user, device, suite, not_before_end);
        self.0.blocking(status).await
    }

    async fn drop_key_packages(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.step(move |step| key_packages::drop_unserved(step, user, device)).await
    }
}
