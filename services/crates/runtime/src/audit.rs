//! Every security decision leaves a record in the `audit` topic.
//!
//! Fire and forget: a decision never waits for its record. What finds no room in the log's budget is dropped and counted.
//!
//! Deliberately absent: a queue of its own. The log's byte budget is the bound.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::{DeviceId, TenantId, UserId};
use wardline_log::{EventLog, NewRecord, Partition, Topic};
use wardline_proto::convert::ids::bytes16;
use wardline_proto::internal::v1::AuditRecord;
use wardline_proto::reason::Reason;

use crate::{Caller, Clock};

/// Records of this process that were dropped or not taken.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many audit records of this process did not reach the log.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Writes audit records for one role. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    /// Where they go.
    pub log: Arc<dyn EventLog>,
    /// The role's name.
    pub role: &'static str,
    /// Tells the time.
    pub clock: Clock,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Audit({})", self.role)
    }
}

impl Audit {
    /// Records a decision without waiting. `outcome` is the reason of a refusal.
    pub fn record(
        &self,
        action: &'static str,
        caller: Option<&Caller>,
        subject: Option<&[u8; 16]>,
        outcome: Result<(), Reason>,
    ) {
        let id = |id: Option<&[u8; 16]>| id.map(bytes16).unwrap_or_default();
        let tenant = caller.and_then(|caller| caller.tenant);
        let user = caller.and_then(|caller| caller.user);
        let device = caller.and_then(|caller| caller.device);
        let record = AuditRecord {
            at_us: self.clock.now().as_micros(),
            role: self.role.to_owned(),
            action: action.to_owned(),
            allowed: outcome.is_ok(),
            reason: outcome.err().map(Reason::as_str).unwrap_or_default().to_owned(),
            tenant_id: id(tenant.as_ref().map(TenantId::as_bytes)),
            user_id: id(user.as_ref().map(UserId::as_bytes)),
            device_id: id(device.as_ref().map(DeviceId::as_bytes)),
            subject_id: id(subject),
        };
        let key = user.map(|user| *user.as_bytes()).or(tenant.map(|tenant| *tenant.as_bytes())).unwrap_or_default();
        self.append(key, record.encode_to_vec().into());
    }

    fn append(&self, key: [u8; 16], payload: Bytes) {
        let bytes = u32::try_from(key.len() + payload.len()).ok().and_then(NonZeroU32::new);
        let Some(Ok(permit)) = bytes.map(|bytes| self.log.reserve(bytes)) else {
            return self.count_drop();
        };
        let to = Partition { topic: Topic::Audit, index: self.log.partitions(Topic::Audit).partition_of(&key) };
        let record = NewRecord { key: Bytes::copy_from_slice(&key), payload, headers: Vec::new() };
        // The append happens whether or not it is polled; the task only counts its failure. The permit bounds the tasks.
        let appended = self.log.append(permit, to, vec![record]);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let audit = self.clone();
            runtime.spawn(async move {
                if appended.await.is_err() {
                    audit.count_drop();
                }
            });
        }
    }

    /// Warns at every power of two, so that a flood does not become one of diagnostics.
    fn count_drop(&self) {
        let dropped = DROPPED.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            tracing::warn!(role = self.role, dropped, "audit records did not reach the log");
        }
    }
}
