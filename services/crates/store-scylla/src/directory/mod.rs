//! The directory: the only tables with compare-and-set.
//!
//! What must be one whole is one cell or one partition, and changes in one compare-and-set. What must be unique across
//! partitions is claimed in a row of its own before the row that it is claimed for: a claim counts only as long as that row
//! bears it out, or still can. So a process that dies between the two locks nobody out.
//!
//! Deliberately absent: deleting claims. One that nothing bears out is taken over by whoever wants it.

mod cells;
mod devices;
mod identities;
mod key_packages;
mod offers;
mod users;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;
use wardline_domain::{DeviceId, Digest, TenantId, Timestamp, UserId};
use wardline_store::directory::{
    Appended, Claimed, DeviceLogRow, DeviceRow, Directory, KeyPackageRow, KeyPackageStatus, Put, RequestId, TenantRow,
    UserRow,
};
use wardline_store::encoding::directory::{decode_tenant, encode_tenant};
use wardline_store::{Cause, Failure, Result};

use crate::Scylla;
use crate::directory::cells::{Cells, Insert};
use crate::statements::Preparer;

/// How often a change is tried when others come in between or nobody knows how a try ended.
const ATTEMPTS: u32 = 16;

/// For how many times the time of one compare-and-set a change is tried at most.
const PATIENCE: u32 = 3;

pub(crate) struct Statements {
    tenants: Cells,
    users: Cells,
    external_ids: Cells,
    devices: devices::Statements,
    identities: Cells,
    key_packages: key_packages::Statements,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            tenants: Cells::prepare(p, "tenants", ["tenants.get", "tenants.set"]).await?,
            users: Cells::prepare(p, "users", ["users.get", "users.set"]).await?,
            external_ids: Cells::prepare(p, EXTERNAL_IDS, ["users_by_external_id.get", "users_by_external_id.set"])
                .await?,
            devices: devices::Statements::prepare(p).await?,
            identities: Cells::prepare(p, "device_claims", ["device_claims.get", "device_claims.set"]).await?,
            key_packages: key_packages::Statements::prepare(p).await?,
        })
    }
}

const EXTERNAL_IDS: &str = "users_by_external_id";

const STRIPES: usize = 64;

/// What this process keeps in memory.
pub(crate) struct State {
    hasher: RandomState,
    /// Changes of one row wait for each other here, where it costs nothing, and not in the servers' consensus. Others'
    /// changes are met there.
    stripes: [Mutex<()>; STRIPES],
    /// The latest time a caller told, in microseconds.
    latest: AtomicU64,
    /// For how long a change is tried.
    patience: Duration,
}

impl State {
    pub(crate) fn new(lwt_timeout: Duration) -> Self {
        Self {
            hasher: RandomState::new(),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            latest: AtomicU64::new(0),
            patience: lwt_timeout.saturating_mul(PATIENCE),
        }
    }

    fn tries(&self) -> Tries {
        Tries { tried: 0, until: Instant::now() + self.patience }
    }

    async fn alone(&self, key: &[u8]) -> MutexGuard<'_, ()> {
        let stripe = self.hasher.hash_one(key) % STRIPES as u64;
        self.stripes[stripe as usize].lock().await
    }

    /// The latest time a caller told.
    fn latest(&self) -> Timestamp {
        Timestamp::from_micros(self.latest.load(Ordering::Relaxed))
    }

    fn tell_time(&self, now: Timestamp) {
        self.latest.fetch_max(now.as_micros(), Ordering::Relaxed);
    }
}

/// Waits up to about `most` milliseconds, and never as long as others.
async fn pause(most: u64) {
    let [a, b, ..] = Uuid::new_v4().into_bytes();
    let random = u64::from(u16::from_be_bytes([a, b]));
    tokio::time::sleep(Duration::from_millis(5 + random % most)).await;
}

/// The tries of one change.
struct Tries {
    tried: u32,
    until: Instant,
}

impl Tries {
    /// Whether to try: at once the first time, then after a pause that grows.
    async fn again(&mut self) -> bool {
        if self.tried > 0 {
            pause(10 << self.tried.min(5)).await;
        }
        self.tried += 1;
        self.tried == 1 || (self.tried <= ATTEMPTS && Instant::now() < self.until)
    }

    /// After the last try.
    fn failure(&self, what: &str, unsure: bool) -> Failure {
        if unsure {
            Failure::Unknown(Cause::timeout(format!("{what}: not decided after {} tries", self.tried)))
        } else {
            Failure::NotApplied(Cause::unavailable(format!("{what}: others change the same all the time")))
        }
    }
}

#[async_trait]
impl Directory for Scylla {
    async fn create_tenant(&self, row: &TenantRow) -> Result<Put<TenantRow>> {
        let tenants = &self.0.statements.directory.tenants;
        match tenants.insert(&self.0, row.tenant.as_bytes(), &encode_tenant(row)).await? {
            Insert::Applied => Ok(Put::Applied),
            Insert::Exists(stored) => Ok(Put::Exists(decode_tenant(row.tenant, stored)?)),
        }
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRow>> {
        let stored = self.0.statements.directory.tenants.get(&self.0, tenant.as_bytes()).await?;
        stored.map(|bytes| decode_tenant(tenant, bytes)).transpose()
    }

    async fn create_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        self.0.create_user(row).await
    }

    async fn user(&self, user: UserId) -> Result<Option<UserRow>> {
        self.0.user(user).await
    }

    async fn user_by_external_id(&self, tenant: TenantId, external_id: &str) -> Result<Option<UserRow>> {
        self.0.user_by_external_id(tenant, external_id).await
    }

    async fn update_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        self.0.update_user(row).await
    }

    async fn append_device_log(&self, entry: &DeviceLogRow) -> Result<Appended> {
        self.0.append_device_log(entry).await
    }

    async fn device_log(&self, user: UserId, after_version: u64, limit: usize) -> Result<Vec<DeviceLogRow>> {
        self.0.device_log(user, after_version, limit).await
    }

    async fn device(&self, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>> {
        self.0.device(user, device).await
    }

    async fn devices(&self, user: UserId) -> Result<Vec<DeviceRow>> {
        self.0.devices(user).await
    }

    async fn device_by_thumbprint(&self, thumbprint: Digest) -> Result<Option<DeviceRow>> {
        self.0.device_by_thumbprint(thumbprint).await
    }

    async fn publish_key_packages(&self, rows: &[KeyPackageRow], keep: u32) -> Result<u32> {
        self.0.publish_key_packages(rows, keep).await
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
        let claim = key_packages::Claim { user, suite, devices, request, not_before_end, now };
        self.0.claim_key_packages(&claim).await
    }

    async fn key_packages_claimed(&self, user: UserId, suite: u16, request: RequestId) -> Result<bool> {
        Ok(self.0.claimed(user, suite, request).await?.is_some())
    }

    async fn served_key_package(&self, user: UserId, suite: u16, reference: Digest) -> Result<Option<KeyPackageRow>> {
        self.0.served_key_package(user, suite, reference).await
    }

    async fn key_package_status(
        &self,
        user: UserId,
        device: DeviceId,
        suite: u16,
        not_before_end: Timestamp,
    ) -> Result<KeyPackageStatus> {
        self.0.key_package_status(user, device, suite, not_before_end).await
    }

    async fn drop_key_packages(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.0.drop_key_packages(user, device).await
    }
}
