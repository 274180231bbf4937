//! Publication of key packages (RFC 9420 section 10).
//!
//! Deliberately absent: their signatures. Whoever adds a device verifies them; here is checked what a wrong package would
//! break for others: whose it is, its suite and its life.

use std::time::Duration;

use bytes::Bytes;
use wardline_domain::mls::{self, KeyPackage};
use wardline_domain::{Timestamp, UserId};
use wardline_proto::convert::time;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::{Caller, Refusal};
use wardline_store::directory::{DeviceRow, KeyPackageRow, TenantRow};

use crate::Role;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A package is served while it lives at least this long.
pub(crate) const LEAST_LIFE: Duration = Duration::from_secs(60 * 24 * 3600);
/// The longest life.
const MOST_LIFE: Duration = Duration::from_secs(180 * 24 * 3600);
/// MLS libraries let a life begin an hour early, for clocks that are behind.
const SLACK: Duration = Duration::from_secs(3600);
/// The largest package, in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// Whose packages are published, and what they must agree with.
struct Publisher {
    tenant: TenantRow,
    device: DeviceRow,
    now: Timestamp,
}

fn refused(description: &'static str) -> Refusal {
    let mut refusal = Refusal::field("key_packages", description);
    refusal.reason = Reason::KeyPackageInvalid;
    refusal
}

impl Role {
    pub(crate) async fn publish_key_packages(
        &self,
        caller: &Caller,
        request: &v1::PublishKeyPackagesRequest,
    ) -> Result<v1::PublishKeyPackagesResponse, Refusal> {
        let limits = &self.deps.limits;
        let caller = caller.device()?;
        if request.key_packages.len() > limits.key_packages_per_call {
            return Err(Refusal::new(Reason::TooLarge));
        }
        let publisher = self.publisher(&caller).await?;
        let mut rows = Vec::with_capacity(request.key_packages.len() + 1);
        for bytes in &request.key_packages {
            rows.push(publisher.row(bytes, false)?);
        }
        if !request.last_resort.is_empty() {
            rows.push(publisher.row(&request.last_resort, true)?);
        }
        if rows.is_empty() {
            return Err(Refusal::field("key_packages", "must not be empty without a last_resort"));
        }
        let available = self.deps.directory.publish_key_packages(&rows, limits.key_packages_kept).await?;
        Ok(v1::PublishKeyPackagesResponse { available })
    }

    async fn publisher(&self, caller: &DeviceCaller) -> Result<Publisher, Refusal> {
        let device = self.deps.directory.device(caller.user, caller.device).await?;
        let device = device.ok_or(Refusal::new(Reason::DeviceNotEnrolled))?;
        if device.revoked {
            return Err(Refusal::new(Reason::DeviceRevoked));
        }
        Ok(Publisher { tenant: self.tenant_row(caller.tenant).await?, device, now: self.deps.clock.now() })
    }

    pub(crate) async fn key_package_status(
        &self,
        caller: &Caller,
        request: &v1::GetKeyPackageStatusRequest,
    ) -> Result<v1::GetKeyPackageStatusResponse, Refusal> {
        let caller = caller.device()?;
        let suite = self.allowed_suite(caller.tenant, request.suite).await?;
        let end = self.deps.clock.now().plus(LEAST_LIFE);
        let status = self.deps.directory.key_package_status(caller.user, caller.device, suite, end).await?;
        Ok(v1::GetKeyPackageStatusResponse {
            available: status.available,
            has_last_resort: status.has_last_resort,
            last_resort_used_time: status.last_resort_used.map(time::to_wire),
        })
    }
}

impl Publisher {
    fn row(&self, bytes: &Bytes, last_resort: bool) -> Result<KeyPackageRow, Refusal> {
        if bytes.len() > MAX_BYTES {
            return Err(Refusal::new(Reason::TooLarge));
        }
        let package = mls::key_package(bytes).map_err(|invalid| refused(invalid.0))?;
        let principal = self.check_owner(&package)?;
        if package.last_resort != last_resort {
            return Err(refused("must have the last_resort extension exactly as last_resort"));
        }
        Ok(KeyPackageRow {
            user: principal,
            suite: package.suite,
            device: self.device.device,
            reference: package.reference,
            last_resort,
            not_after: self.check_life(&package)?,
            key_hash: package.leaf.key_hash(),
            bytes: bytes.clone(),
        })
    }

    /// The credential is the device's own and its key is registered.
    fn check_owner(&self, package: &KeyPackage) -> Result<UserId, Refusal> {
        let credential = package.leaf.credential;
        if (credential.tenant, credential.device) != (self.device.tenant, self.device.device) {
            return Err(refused("must carry the calling device's credential"));
        }
        if !self.tenant.suites.contains(&package.suite) {
            return Err(Refusal::new(Reason::SuiteNotAllowed));
        }
        let registered = self.device.mls_keys.iter().any(|key| {
            (key.principal, key.suite) == (credential.principal, package.suite)
                && key.public_key == package.leaf.signature_key
        });
        if registered { Ok(credential.principal) } else { Err(refused("must be signed with a registered key")) }
    }

    fn check_life(&self, package: &KeyPackage) -> Result<Timestamp, Refusal> {
        let at = |seconds: u64| Timestamp::from_micros(seconds.saturating_mul(1_000_000));
        let (not_before, not_after) = (at(package.not_before), at(package.not_after));
        if not_before > self.now.plus(SLACK) {
            return Err(refused("must be valid now"));
        }
        if not_after < self.now.plus(LEAST_LIFE) {
            return Err(refused("must have at least 60 days to live"));
        }
        if not_after.since(not_before) > MOST_LIFE + SLACK || not_after > self.now.plus(MOST_LIFE + DAY) {
            return Err(refused("must have at most 180 days to live"));
        }
        Ok(not_after)
    }
}
