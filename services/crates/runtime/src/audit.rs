//! Every security decision leaves a record in the `audit` topic.
//!
//! Fire and forget: a decision never waits for its record. What finds no room in the log's budget is dropped and counted.
//!
//! Refusals of callers nobody knows are [`Counted`]: anybody can cause as many as they like, and a record of each would let a
//! flood push the records of everybody else out of the topic.
//!
//! Deliberately absent: a queue of its own. The log's byte budget is the bound.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use prost::Message as _;
use wardline_domain::{DeviceId, TenantId, UserId};
use wardline_log::{EventLog, NewRecord, Partition, Topic};
use wardline_proto::convert::ids::bytes16;
use wardline_proto::internal::v1::AuditRecord;
use wardline_proto::reason::Reason;

use crate::measures as names;
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
        let key = key_of(caller);
        self.append(key, self.decision(action, caller, subject, outcome).encode_to_vec().into());
    }

    fn decision(
        &self,
        action: &'static str,
        caller: Option<&Caller>,
        subject: Option<&[u8; 16]>,
        outcome: Result<(), Reason>,
    ) -> AuditRecord {
        let id = |id: Option<&[u8; 16]>| id.map(bytes16).unwrap_or_default();
        let tenant = caller.and_then(|caller| caller.tenant);
        let user = caller.and_then(|caller| caller.user);
        let device = caller.and_then(|caller| caller.device);
        AuditRecord {
            at_us: self.clock.now().as_micros(),
            role: self.role.to_owned(),
            action: action.to_owned(),
            allowed: outcome.is_ok(),
            reason: outcome.err().map(Reason::as_str).unwrap_or_default().to_owned(),
            tenant_id: id(tenant.as_ref().map(TenantId::as_bytes)),
            user_id: id(user.as_ref().map(UserId::as_bytes)),
            device_id: id(device.as_ref().map(DeviceId::as_bytes)),
            subject_id: id(subject),
            count: 0,
        }
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
        counter!(names::AUDIT_DROPPED, "role" => self.role).increment(1);
        let dropped = DROPPED.fetch_add(1, Ordering::Relaxed) + 1;
        if dropped.is_power_of_two() {
            tracing::warn!(role = self.role, dropped, "audit records did not reach the log");
        }
    }
}

/// Records of one caller are in one partition.
fn key_of(caller: Option<&Caller>) -> [u8; 16] {
    let Some(caller) = caller else { return [0; 16] };
    let user = caller.user.map(|user| *user.as_bytes());
    user.or(caller.tenant.map(|tenant| *tenant.as_bytes())).unwrap_or_default()
}

/// Refusals of callers nobody knows: one record an action, reason and interval says how many there were.
///
/// The record is written at the end of the interval that the first refusal began, and what is counted when the process ends
/// is lost with it: who could not say who they are did nothing. Memory: an entry a reason.
#[derive(Debug, Clone)]
pub struct Counted {
    audit: Audit,
    interval: Duration,
    counts: Arc<Mutex<HashMap<(&'static str, Reason), u64>>>,
}

impl Counted {
    /// Counts for `interval`, then records with `audit`.
    pub fn new(audit: Audit, interval: Duration) -> Self {
        Self { audit, interval, counts: Arc::default() }
    }

    /// Counts a refusal without waiting. The caller's duty: call it inside a runtime, and with constant actions.
    pub fn refused(&self, action: &'static str, reason: Reason) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((action, reason)).or_default();
        *count += 1;
        if *count == 1 {
            let counted = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(counted.interval).await;
                counted.record(action, reason);
            });
        }
    }

    fn record(&self, action: &'static str, reason: Reason) {
        let counted = self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(&(action, reason));
        let Some(count) = counted else { return };
        let record = AuditRecord { count, ..self.audit.decision(action, None, None, Err(reason)) };
        self.audit.append([0; 16], record.encode_to_vec().into());
    }
}
