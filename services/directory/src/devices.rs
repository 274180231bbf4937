//! Devices and their logs: enrolment and reading.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use wardline_domain::{DeviceId, Digest, TenantId, UserId};
use wardline_proto::convert::{ids, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::{Caller, Refusal};
use wardline_store::directory::{Appended, DeviceLogChange, DeviceLogRow, DeviceRow, MlsKeyRow};

use crate::device_log::Entry;
use crate::jwk::PublicKey;
use crate::{Role, announce, tenant_of};

const PAGE: usize = 100;
const MAX_AUTH_KEY_BYTES: usize = 1024;
const MAX_MLS_KEYS: usize = 16;
const MAX_PUSH_TARGET_BYTES: usize = 512;
const SIGNATURE_BYTES: usize = 64;

/// An enrolment, parsed.
struct Enrolment {
    device: DeviceRow,
    version: u64,
    previous_hash: Digest,
    signer: DeviceId,
    signature: Bytes,
}

impl Enrolment {
    fn entry(&self) -> Entry<'_> {
        Entry {
            user: self.device.user,
            version: self.version,
            previous_hash: self.previous_hash,
            change: DeviceLogChange::Enrolled,
            device: self.device.device,
            auth_key: &self.device.auth_key,
            mls_keys: &self.device.mls_keys,
        }
    }
}

impl Role {
    pub(crate) async fn enroll_device(
        &self,
        caller: &Caller,
        request: v1::EnrollDeviceRequest,
    ) -> Result<v1::Device, Refusal> {
        let (Some(tenant), Some(user)) = (caller.tenant, caller.user) else {
            return Err(Refusal::new(Reason::DeviceRequired));
        };
        let enrolment = parse(request, tenant, user, caller.key)?;
        if self.user_in(tenant, user).await?.deactivated {
            return Err(Refusal::new(Reason::UserDeactivated));
        }
        self.check_suites(tenant, &enrolment.device.mls_keys).await?;
        if let Some(stored) = self.deps.directory.device(user, enrolment.device.device).await? {
            return self.enrolled_before(stored, &enrolment).await;
        }
        self.check_vouched(&enrolment).await?;
        let now = self.deps.clock.now();
        let row = DeviceLogRow {
            version: enrolment.version,
            change: DeviceLogChange::Enrolled,
            device: enrolment.device.clone(),
            signer: Some(enrolment.signer),
            signature: enrolment.signature.clone(),
            previous_hash: enrolment.previous_hash,
            hash: enrolment.entry().hash(Some(enrolment.signer), &enrolment.signature),
            at: now,
        };
        match self.deps.directory.append_device_log(&row).await? {
            Appended::Applied => self.announce_enrolled(&row.device, row.version).await?,
            Appended::Conflict { version } => return Err(conflict(version)),
            Appended::KeyTaken => return Err(Refusal::new(Reason::KeyTaken).with("field", "device.auth_key")),
            Appended::MlsKeyTaken => return Err(Refusal::new(Reason::KeyTaken).with("field", "device.mls_keys")),
            Appended::DeviceTaken => return Err(Refusal::new(Reason::AlreadyExists).with("field", "device.id")),
        }
        Ok(to_wire(row.device))
    }

    /// A repeat answers the same and completes what a crash left undone.
    async fn enrolled_before(&self, stored: DeviceRow, enrolment: &Enrolment) -> Result<v1::Device, Refusal> {
        if stored.revoked {
            return Err(Refusal::new(Reason::DeviceRevoked));
        }
        if (&stored.auth_key, &stored.mls_keys) != (&enrolment.device.auth_key, &enrolment.device.mls_keys) {
            return Err(Refusal::new(Reason::AlreadyExists));
        }
        let version = self.version_of(stored.user, stored.device, DeviceLogChange::Enrolled).await?;
        self.announce_enrolled(&stored, version.ok_or(Refusal::new(Reason::Internal))?).await?;
        Ok(to_wire(stored))
    }

    async fn announce_enrolled(&self, row: &DeviceRow, version: u64) -> Result<(), Refusal> {
        let (tenant, user, device) = (row.tenant, row.user, row.device);
        let state = announce::DeviceState { tenant, user, device, revoked: false, version };
        announce::device(self.deps.log.as_ref(), &state, self.deps.clock.now()).await?;
        // The topic keeps the last record of a device. Had its end been announced before this, it would be forgotten: an end
        // that is stored by now is announced again, and one that is stored later is announced after this.
        if self.deps.directory.device(user, device).await?.is_some_and(|row| row.revoked) {
            self.end_device(user, device).await?;
            return Err(Refusal::new(Reason::DeviceRevoked));
        }
        Ok(())
    }

    async fn check_suites(&self, tenant: TenantId, keys: &[MlsKeyRow]) -> Result<(), Refusal> {
        let allowed = self.tenant_row(tenant).await?.suites;
        let all = keys.iter().all(|key| allowed.contains(&key.suite));
        if all { Ok(()) } else { Err(Refusal::new(Reason::SuiteNotAllowed)) }
    }

    /// The entry follows the log's head and is signed by an active device; the first one by itself.
    async fn check_vouched(&self, enrolment: &Enrolment) -> Result<(), Refusal> {
        let user = enrolment.device.user;
        let (version, hash) = self.log_head(user).await?;
        if version.checked_add(1) != Some(enrolment.version) || hash != enrolment.previous_hash {
            return Err(conflict(version));
        }
        let signer = match (version, enrolment.signer == enrolment.device.device) {
            (0, true) => enrolment.device.clone(),
            (0, false) | (_, true) => return Err(Refusal::new(Reason::SignerRequired)),
            (_, false) => {
                let signer = self.deps.directory.device(user, enrolment.signer).await?;
                signer.filter(|signer| !signer.revoked).ok_or(Refusal::new(Reason::SignerRequired))?
            }
        };
        let key = parse_auth_key(&signer.auth_key).ok_or(Refusal::new(Reason::Internal))?;
        let verifies = key.verifies(&enrolment.entry().canonical_bytes(), &enrolment.signature);
        if verifies { Ok(()) } else { Err(Refusal::new(Reason::SignatureInvalid)) }
    }

    /// Version and hash of a log's head; 0 and zeros for an empty one.
    pub(crate) async fn log_head(&self, user: UserId) -> Result<(u64, Digest), Refusal> {
        let mut head = (0, Digest::default());
        loop {
            let page = self.deps.directory.device_log(user, head.0, PAGE).await?;
            match page.last() {
                Some(last) => head = (last.version, last.hash),
                None => return Ok(head),
            }
        }
    }

    pub(crate) async fn get_device(
        &self,
        caller: &Caller,
        request: &v1::GetDeviceRequest,
    ) -> Result<v1::Device, Refusal> {
        let user = self.visible_user(caller, &request.user_id).await?;
        let device = ids::device(&request.device_id, "device_id")?;
        let row = self.deps.directory.device(user, device).await?.ok_or(Refusal::new(Reason::NotFound))?;
        Ok(visible_to(caller, to_wire(row)))
    }

    pub(crate) async fn list_devices(
        &self,
        caller: &Caller,
        request: &v1::ListDevicesRequest,
    ) -> Result<v1::ListDevicesResponse, Refusal> {
        let user = self.visible_user(caller, &request.user_id).await?;
        let size = page_size(request.page_size)?;
        let after = parse_page_token(&request.page_token)?;
        let mut devices = self.deps.directory.devices(user).await?;
        devices.retain(|row| after.is_none_or(|after| row.device > after));
        let more = devices.len() > size;
        devices.truncate(size);
        let last = devices.last().filter(|_| more).map(|row| URL_SAFE_NO_PAD.encode(row.device.as_bytes()));
        Ok(v1::ListDevicesResponse {
            devices: devices.into_iter().map(|row| visible_to(caller, to_wire(row))).collect(),
            next_page_token: last.unwrap_or_default(),
        })
    }

    pub(crate) async fn list_device_log(
        &self,
        caller: &Caller,
        request: &v1::ListDeviceLogRequest,
    ) -> Result<v1::ListDeviceLogResponse, Refusal> {
        let user = self.visible_user(caller, &request.user_id).await?;
        let size = page_size(request.page_size)?;
        let entries = self.deps.directory.device_log(user, request.after_version, size).await?;
        Ok(v1::ListDeviceLogResponse { entries: entries.into_iter().map(entry_to_wire).collect() })
    }

    /// A user of the caller's tenant.
    async fn visible_user(&self, caller: &Caller, user: &str) -> Result<UserId, Refusal> {
        let tenant = tenant_of(caller)?;
        Ok(self.user_in(tenant, ids::user(user, "user_id")?).await?.user)
    }
}

fn conflict(version: u64) -> Refusal {
    Refusal::new(Reason::DeviceLogConflict).with("version", version.to_string())
}

fn parse(
    request: v1::EnrollDeviceRequest,
    tenant: TenantId,
    user: UserId,
    session_key: Digest,
) -> Result<Enrolment, Refusal> {
    let device = request.device.ok_or(Refusal::field("device", "is required"))?;
    if !device.user_id.is_empty() && ids::user(&device.user_id, "device.user_id")? != user {
        return Err(Refusal::field("device.user_id", "must be the session's user"));
    }
    let key = parse_auth_key(&device.auth_key)
        .ok_or(Refusal::field("device.auth_key", "must be a public JWK, EC P-256 or OKP Ed25519"))?;
    if key.thumbprint() != session_key {
        return Err(Refusal::field("device.auth_key", "must be the key that proved the session"));
    }
    if device.push_target.len() > MAX_PUSH_TARGET_BYTES {
        return Err(Refusal::field("device.push_target", "must be at most 512 bytes"));
    }
    if request.signature.len() != SIGNATURE_BYTES {
        return Err(Refusal::new(Reason::SignatureInvalid));
    }
    Ok(Enrolment {
        device: DeviceRow {
            device: ids::device(&device.id, "device.id")?,
            user,
            tenant,
            thumbprint: session_key,
            mls_keys: mls_keys(&device.mls_keys, user)?,
            auth_key: device.auth_key,
            push_target: device.push_target.into(),
            revoked: false,
        },
        version: request.version,
        previous_hash: ids::digest(&request.previous_hash, "previous_hash")?,
        signer: ids::device(&request.signer_device_id, "signer_device_id")?,
        signature: request.signature,
    })
}

fn parse_auth_key(text: &str) -> Option<PublicKey> {
    if text.len() > MAX_AUTH_KEY_BYTES {
        return None;
    }
    PublicKey::parse(&serde_json::from_str(text).ok()?)
}

fn mls_keys(keys: &[v1::MlsKey], user: UserId) -> Result<Vec<MlsKeyRow>, Refusal> {
    if keys.is_empty() || keys.len() > MAX_MLS_KEYS {
        return Err(Refusal::field("device.mls_keys", "must be 1 to 16"));
    }
    let mut rows: Vec<MlsKeyRow> = Vec::with_capacity(keys.len());
    for key in keys {
        let row = mls_key(key, user)?;
        if rows.iter().any(|other| (other.principal, other.suite) == (row.principal, row.suite)) {
            return Err(Refusal::field("device.mls_keys", "must be one a principal and suite"));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn mls_key(key: &v1::MlsKey, user: UserId) -> Result<MlsKeyRow, Refusal> {
    let principal = ids::user(&key.principal_id, "device.mls_keys.principal_id")?;
    if principal != user {
        return Err(Refusal::field("device.mls_keys.principal_id", "must be the session's user"));
    }
    let (suite, valid) = match key.suite {
        1 => (1, PublicKey::ed25519(&key.public_key).is_some()),
        2 => (2, PublicKey::p256(&key.public_key).is_some()),
        _ => return Err(Refusal::new(Reason::SuiteNotAllowed)),
    };
    if !valid {
        return Err(Refusal::field("device.mls_keys.public_key", "must be a signature key of the suite"));
    }
    Ok(MlsKeyRow { principal, suite, public_key: key.public_key.clone() })
}

fn page_size(asked: i32) -> Result<usize, Refusal> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE),
        Ok(size) => Ok(size.min(PAGE)),
        Err(_) => Err(Refusal::field("page_size", "must not be negative")),
    }
}

fn parse_page_token(token: &str) -> Result<Option<DeviceId>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| Refusal::new(Reason::PageTokenInvalid))?;
    DeviceId::try_from(bytes.as_slice()).map(Some).map_err(|_| Refusal::new(Reason::PageTokenInvalid))
}

pub(crate) fn to_wire(row: DeviceRow) -> v1::Device {
    let state = if row.revoked { v1::DeviceState::Revoked } else { v1::DeviceState::Active };
    let key = |key: MlsKeyRow| v1::MlsKey {
        principal_id: key.principal.to_string(),
        suite: key.suite.into(),
        public_key: key.public_key,
    };
    v1::Device {
        id: row.device.to_string(),
        user_id: row.user.to_string(),
        auth_key: row.auth_key,
        mls_keys: row.mls_keys.into_iter().map(key).collect(),
        push_target: String::from_utf8_lossy(&row.push_target).into_owned(),
        state: state.into(),
    }
}

/// Where wake-ups of a device go is nobody else's affair.
fn visible_to(caller: &Caller, device: v1::Device) -> v1::Device {
    let own = caller.user.is_some_and(|user| user.to_string() == device.user_id);
    if own { device } else { v1::Device { push_target: String::new(), ..device } }
}

fn entry_to_wire(row: DeviceLogRow) -> v1::DeviceLogEntry {
    v1::DeviceLogEntry {
        version: row.version,
        change: row.change as i32,
        device: Some(v1::Device { push_target: String::new(), ..to_wire(row.device) }),
        signer_device_id: row.signer.map(|signer| signer.to_string()).unwrap_or_default(),
        signature: row.signature,
        previous_hash: ids::bytes32(&row.previous_hash),
        create_time: Some(time::to_wire(row.at)),
    }
}
