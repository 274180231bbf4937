//! How devices and users end: the device log, the row, the key packages, then the record that tells every role.
//!
//! Each step is safe to repeat, and a repeat takes them all again: what a crash left undone is done then.

use ed25519_dalek::Signer as _;
use wardline_domain::{DeviceId, UserId};
use wardline_proto::convert::ids;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::{Caller, Refusal};
use wardline_store::directory::{Appended, DeviceLogChange, DeviceLogRow, DeviceRow, Put, UserRow};

use crate::device_log::Entry;
use crate::{Role, announce, devices, require_scope, tenant_of, users};

/// How often an entry is made anew because others append to the same log.
const ATTEMPTS: usize = 8;
const PAGE: usize = 100;

impl Role {
    pub(crate) async fn revoke_device(
        &self,
        caller: &Caller,
        request: &v1::RevokeDeviceRequest,
    ) -> Result<v1::Device, Refusal> {
        let tenant = tenant_of(caller)?;
        let user = ids::user(&request.user_id, "user_id")?;
        let device = ids::device(&request.device_id, "device_id")?;
        if caller.user != Some(user) {
            require_scope(caller.scopes.tenant_admin, "tenant.admin")?;
        }
        self.user_in(tenant, user).await?;
        self.end_device(user, device).await.map(devices::to_wire)
    }

    pub(crate) async fn deactivate_user(
        &self,
        caller: &Caller,
        request: &v1::DeactivateUserRequest,
    ) -> Result<v1::User, Refusal> {
        let tenant = tenant_of(caller)?;
        require_scope(caller.scopes.directory_write, "directory.write")?;
        let user = self.user_in(tenant, ids::user(&request.user_id, "user_id")?).await?;
        let user = self.end_user(user, &request.etag).await?;
        for device in self.deps.directory.devices(user.user).await? {
            self.end_device(user.user, device.device).await?;
        }
        announce::user_ended(self.deps.log.as_ref(), tenant, user.user, self.deps.clock.now()).await?;
        Ok(users::to_wire(user))
    }

    /// Sets the user's row; an ended one stays as it is.
    async fn end_user(&self, mut user: UserRow, etag: &str) -> Result<UserRow, Refusal> {
        for _ in 0..ATTEMPTS {
            if user.deactivated {
                return Ok(user);
            }
            if !etag.is_empty() && etag != user.version.to_string() {
                return Err(Refusal::new(Reason::EtagMismatch));
            }
            let ended = UserRow { deactivated: true, version: user.version + 1, ..user };
            match self.deps.directory.update_user(&ended).await? {
                Put::Applied => return Ok(ended),
                Put::Exists(stored) => user = stored,
            }
        }
        Err(Refusal::new(Reason::EtagMismatch))
    }

    pub(crate) async fn end_device(&self, user: UserId, device: DeviceId) -> Result<DeviceRow, Refusal> {
        let stored = self.deps.directory.device(user, device).await?.ok_or(Refusal::new(Reason::NotFound))?;
        let (ended, version) = if stored.revoked {
            let version = self.version_of(user, device, DeviceLogChange::Revoked).await?;
            (stored, version.ok_or(Refusal::new(Reason::Internal))?)
        } else {
            self.log_end(stored).await?
        };
        self.deps.directory.drop_key_packages(user, device).await?;
        let state = announce::DeviceState { tenant: ended.tenant, user, device, revoked: true, version };
        announce::device(self.deps.log.as_ref(), &state, self.deps.clock.now()).await?;
        Ok(ended)
    }

    /// Appends the authority's entry to the device log, which sets the row, too.
    async fn log_end(&self, device: DeviceRow) -> Result<(DeviceRow, u64), Refusal> {
        let (user, id) = (device.user, device.device);
        let ended = DeviceRow { revoked: true, ..device };
        for _ in 0..ATTEMPTS {
            let (head, previous_hash) = self.log_head(user).await?;
            // Somebody else may have ended it between two attempts.
            if let Some(version) = self.version_of(user, id, DeviceLogChange::Revoked).await? {
                return Ok((ended, version));
            }
            let row = self.signed_end(&ended, head + 1, previous_hash);
            match self.deps.directory.append_device_log(&row).await? {
                Appended::Applied => return Ok((ended, row.version)),
                Appended::Conflict { .. } => (),
                Appended::KeyTaken | Appended::DeviceTaken | Appended::MlsKeyTaken => {
                    return Err(Refusal::new(Reason::Internal));
                }
            }
        }
        Err(Refusal::new(Reason::DeviceLogConflict))
    }

    fn signed_end(&self, ended: &DeviceRow, version: u64, previous_hash: wardline_domain::Digest) -> DeviceLogRow {
        let entry = Entry {
            user: ended.user,
            version,
            previous_hash,
            change: DeviceLogChange::Revoked,
            device: ended.device,
            auth_key: &ended.auth_key,
            mls_keys: &ended.mls_keys,
        };
        let signature = self.deps.authority.sign(&entry.canonical_bytes()).to_bytes().to_vec();
        DeviceLogRow {
            version,
            change: DeviceLogChange::Revoked,
            device: ended.clone(),
            signer: None,
            hash: entry.hash(None, &signature),
            signature: signature.into(),
            previous_hash,
            at: self.deps.clock.now(),
        }
    }

    /// Where the log says that the device joined or ended.
    pub(crate) async fn version_of(
        &self,
        user: UserId,
        device: DeviceId,
        change: DeviceLogChange,
    ) -> Result<Option<u64>, Refusal> {
        let mut after = 0;
        loop {
            let page = self.deps.directory.device_log(user, after, PAGE).await?;
            if let Some(row) = page.iter().find(|row| row.change == change && row.device.device == device) {
                return Ok(Some(row.version));
            }
            match page.last() {
                Some(last) => after = last.version,
                None => return Ok(None),
            }
        }
    }
}
