//! Claims of key packages: each request is answered once and then remembered.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use wardline_domain::{DeviceId, Timestamp, UserId};

use super::{Step, key_packages, tag};
use crate::Result;
use crate::directory::{Claimed, RequestId};
use crate::embedded::engine::{Table, key};
use crate::encoding::directory::{decode_claimed, encode_claimed};

/// How long a claim is remembered.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How many old claims one claim forgets.
const FORGET: usize = 64;

/// A claim for one user.
pub(super) struct Claim {
    pub(super) user: UserId,
    pub(super) suite: u16,
    pub(super) devices: Vec<DeviceId>,
    pub(super) request: RequestId,
    pub(super) not_before_end: Timestamp,
    pub(super) now: Timestamp,
}

impl Claim {
    /// What names it: request, user, suite.
    fn name(&self) -> Vec<u8> {
        name(self.user, self.suite, self.request)
    }
}

fn name(user: UserId, suite: u16, request: RequestId) -> Vec<u8> {
    key(&[&request, user.as_bytes(), &suite.to_be_bytes()])
}

pub(super) fn claimed(table: &Table, user: UserId, suite: u16, request: RequestId) -> Result<bool> {
    Ok(table.get(&claim_key(&name(user, suite, request)))?.is_some())
}

fn claim_key(name: &[u8]) -> Vec<u8> {
    key(&[&[tag::CLAIM], name])
}

fn claim_at_key(at: Timestamp, name: &[u8]) -> Vec<u8> {
    key(&[&[tag::CLAIM_AT], &at.as_micros().to_be_bytes(), name])
}

pub(super) fn claim(step: &mut Step<'_>, claim: &Claim) -> Result<Claimed> {
    step.tell_time(claim.now);
    let name = claim.name();
    if let Some(bytes) = step.table().get(&claim_key(&name))? {
        return decode_claimed(bytes);
    }
    forget_old(step, claim.now)?;
    let claimed = take(step, claim)?;
    step.insert(claim_key(&name), encode_claimed(&claimed));
    step.insert(claim_at_key(claim.now, &name), Bytes::new());
    Ok(claimed)
}

fn take(step: &mut Step<'_>, claim: &Claim) -> Result<Claimed> {
    let mut claimed = Claimed::default();
    let mut seen = BTreeSet::new();
    for device in claim.devices.iter().copied().filter(|device| seen.insert(*device)) {
        let of = (claim.user, claim.suite, device);
        let before = key_packages::count(step.table(), claim.user, claim.suite, device, claim.not_before_end)?;
        match key_packages::serve(step, of, claim.not_before_end, claim.now)? {
            Some(package) => claimed.packages.push(package),
            None => claimed.missing.push(device),
        }
        // The count reads what was committed: the one just served, if one was, is still in it.
        claimed.left.push((device, before.saturating_sub(1)));
    }
    Ok(claimed)
}

fn forget_old(step: &mut Step<'_>, now: Timestamp) -> Result<()> {
    let Some(last) = now.minus(KEPT).as_micros().checked_sub(1) else { return Ok(()) };
    let first = claim_at_key(Timestamp::from_micros(0), &[]);
    let last = claim_at_key(Timestamp::from_micros(last), &[0xff; 34]);
    for at in step.table().keys(&first, &last).take(FORGET) {
        let at = at?;
        // The name stands behind the tag and the time.
        step.remove(claim_key(&at[9..]));
        step.remove(at);
    }
    Ok(())
}
