//! Tenants, users, devices, device logs, key packages. The only tables with compare-and-set.

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{DeviceId, Digest, TenantId, Timestamp, UserId};

use crate::Result;

/// A request's id: repeats answer the same.
pub type RequestId = [u8; 16];

/// Table `tenants`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRow {
    /// The tenant.
    pub tenant: TenantId,
    /// Issuer URLs.
    pub issuers: Vec<String>,
    /// Cipher suites, the default first.
    pub suites: Vec<u16>,
    /// Days a message is kept; 0 keeps it.
    pub retention_days: u32,
    /// Whether urgency may be said in clear.
    pub clear_urgency: bool,
    /// Rises by one with every change, from 1.
    pub version: u64,
    /// The request that created it.
    pub request: RequestId,
}

/// The kind of a user. The numbers are those of `wardline.v1.UserKind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum UserKind {
    /// A human being.
    Person = 1,
    /// An integration.
    Service = 2,
    /// A role inbox.
    Role = 3,
    /// From outside the tenant.
    Guest = 4,
}

/// Table `users`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The user.
    pub user: UserId,
    /// Its tenant.
    pub tenant: TenantId,
    /// What it is.
    pub kind: UserKind,
    /// The issuer's `sub`; unique in the tenant.
    pub external_id: String,
    /// Sealed profile.
    pub sealed_profile: Bytes,
    /// Ended for good.
    pub deactivated: bool,
    /// Rises by one with every change, from 1.
    pub version: u64,
    /// The request that created it.
    pub request: RequestId,
}

/// One MLS signature key of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlsKeyRow {
    /// The user or role it speaks for.
    pub principal: UserId,
    /// The suite.
    pub suite: u16,
    /// The signature public key as encoded.
    pub public_key: Bytes,
}

/// Table `devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device.
    pub device: DeviceId,
    /// Its user.
    pub user: UserId,
    /// The user's tenant.
    pub tenant: TenantId,
    /// The session key: canonical JWK JSON.
    pub auth_key: String,
    /// RFC 7638 SHA-256 thumbprint of `auth_key`.
    pub thumbprint: Digest,
    /// MLS keys.
    pub mls_keys: Vec<MlsKeyRow>,
    /// Wake-up target.
    pub push_target: Bytes,
    /// Ended for good.
    pub revoked: bool,
}

/// What an entry of a device log did. The numbers are those of `wardline.v1.DeviceChange`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceLogChange {
    /// A device joined.
    Enrolled = 1,
    /// A device ended.
    Revoked = 2,
}

/// One entry of a user's device log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLogRow {
    /// From 1, dense.
    pub version: u64,
    /// What happened.
    pub change: DeviceLogChange,
    /// The device as it stands after the entry.
    pub device: DeviceRow,
    /// Who signed; `None` for the tenant authority.
    pub signer: Option<DeviceId>,
    /// The signature.
    pub signature: Bytes,
    /// The hash of the previous entry.
    pub previous_hash: Digest,
    /// This entry's own hash: the next one's `previous_hash`.
    pub hash: Digest,
    /// When the server took it in.
    pub at: Timestamp,
}

/// Table `key_packages`: ((user, suite), device, reference).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPackageRow {
    /// The user.
    pub user: UserId,
    /// The suite.
    pub suite: u16,
    /// The device.
    pub device: DeviceId,
    /// Its KeyPackageRef.
    pub reference: Digest,
    /// Whether it is a last-resort one.
    pub last_resort: bool,
    /// When its lifetime ends.
    pub not_after: Timestamp,
    /// SHA-256 of its leaf's signature key.
    pub key_hash: Digest,
    /// The MLSMessage.
    pub bytes: Bytes,
}

/// What a claim took for one user, kept with the request so that a repeat answers the same.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claimed {
    /// One a device that had one.
    pub packages: Vec<KeyPackageRow>,
    /// Devices that had none.
    pub missing: Vec<DeviceId>,
    /// How many unserved packages each device has left, last-resort ones not counted.
    pub left: Vec<(DeviceId, u32)>,
}

/// How a compare-and-set ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put<T> {
    /// It was applied.
    Applied,
    /// Something else stands there.
    Exists(T),
}

/// How an appended device log entry ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It is the log's head now; the device's row stands with it.
    Applied,
    /// The log's head is another than the entry's predecessor.
    Conflict {
        /// The head's version; 0 for an empty log.
        version: u64,
    },
    /// Another device has the same session key.
    KeyTaken,
    /// Another user's device has the same id.
    DeviceTaken,
    /// Another device has the same MLS public key for the same suite.
    MlsKeyTaken,
}

/// A device's packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyPackageStatus {
    /// Unserved, with at least 60 days to live.
    pub available: u32,
    /// Whether a last-resort one is held.
    pub has_last_resort: bool,
    /// When the last-resort one was last served.
    pub last_resort_used: Option<Timestamp>,
}

/// The directory.
///
/// Promise: what answered `Ok` survives a power cut; reads are linearizable with it.
#[async_trait]
pub trait Directory: Send + Sync {
    /// Creates a tenant.
    async fn create_tenant(&self, row: &TenantRow) -> Result<Put<TenantRow>>;

    /// Reads a tenant.
    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRow>>;

    /// Creates a user. `Exists` when the id or (tenant, external_id) is taken.
    async fn create_user(&self, row: &UserRow) -> Result<Put<UserRow>>;

    /// Reads a user.
    async fn user(&self, user: UserId) -> Result<Option<UserRow>>;

    /// Reads a user by what its issuer calls it.
    async fn user_by_external_id(&self, tenant: TenantId, external_id: &str) -> Result<Option<UserRow>>;

    /// Replaces a user whose stored version is `row.version - 1`. `Exists` with what stands there otherwise.
    async fn update_user(&self, row: &UserRow) -> Result<Put<UserRow>>;

    /// Appends to the user's device log and writes the device's row, both or neither. The entry's `version` and
    /// `previous_hash` must follow the log's head.
    ///
    /// A device's id, its session key and each (suite, MLS public key) belong to one device of one user, for good: also
    /// after it was revoked. An entry that revokes is not refused for them.
    async fn append_device_log(&self, entry: &DeviceLogRow) -> Result<Appended>;

    /// Reads a user's device log above a version, in order.
    async fn device_log(&self, user: UserId, after_version: u64, limit: usize) -> Result<Vec<DeviceLogRow>>;

    /// Reads a device.
    async fn device(&self, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>>;

    /// Reads a user's devices, by id, revoked ones included.
    async fn devices(&self, user: UserId) -> Result<Vec<DeviceRow>>;

    /// Reads the device that a session key belongs to.
    async fn device_by_thumbprint(&self, thumbprint: Digest) -> Result<Option<DeviceRow>>;

    /// Adds packages of one device, at most `keep` unserved ones (further ones are not taken); a last-resort one replaces
    /// the one before it. Repeats are skipped, served ones too. Answers with the unserved number.
    async fn publish_key_packages(&self, rows: &[KeyPackageRow], keep: u32) -> Result<u32>;

    /// Takes one package for each of `devices` of one user, in one step: the one with the earliest end of life not before
    /// `not_before_end`, else the last-resort one. Idempotent by `request`.
    async fn claim_key_packages(
        &self,
        user: UserId,
        suite: u16,
        devices: &[DeviceId],
        request: RequestId,
        not_before_end: Timestamp,
        now: Timestamp,
    ) -> Result<Claimed>;

    /// Whether a request has claimed for the user already, as far as it is remembered. Advice: what was claimed is said, and
    /// promised, by [`Directory::claim_key_packages`] alone.
    async fn key_packages_claimed(&self, user: UserId, suite: u16, request: RequestId) -> Result<bool>;

    /// Reads a package that was served (at any time in its life), by reference.
    async fn served_key_package(&self, user: UserId, suite: u16, reference: Digest) -> Result<Option<KeyPackageRow>>;

    /// Counts a device's packages that live at least until `not_before_end`.
    async fn key_package_status(
        &self,
        user: UserId,
        device: DeviceId,
        suite: u16,
        not_before_end: Timestamp,
    ) -> Result<KeyPackageStatus>;

    /// Deletes a device's unserved packages. For revocation.
    async fn drop_key_packages(&self, user: UserId, device: DeviceId) -> Result<()>;
}
