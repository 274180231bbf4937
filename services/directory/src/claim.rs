//! Claims of key packages: each package leaves once, for one request.
//!
//! Quotas: of the claimer; of each pair of a claimer and another user, so that nobody can use up what others may claim of
//! somebody; of the claimed. What a request has claimed before is answered again for nothing.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _};
use wardline_domain::{DeviceId, Digest, TenantId, UserId};
use wardline_proto::convert::ids;
use wardline_proto::internal::v1 as wire;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::{Caller, Refusal};
use wardline_store::directory::{Claimed, RequestId};

use crate::key_packages::LEAST_LIFE;
use crate::{Role, announce, quota};

/// Below so many left, a device is told to publish.
const LOW: u32 = 10;
/// Users claimed at a time.
const AT_ONCE: usize = 16;
/// What a claim costs of [`crate::Limits::claims_of_user_by_one`], in seconds.
const PAIR_COST: u32 = 60;

/// One request's claim.
struct Claim {
    caller: DeviceCaller,
    suite: u16,
    request: RequestId,
}

/// A user to claim for.
struct Target {
    user: UserId,
    /// The request has claimed for it before.
    claimed: bool,
}

impl Role {
    pub(crate) async fn claim_key_packages(
        &self,
        caller: &Caller,
        request: &v1::ClaimKeyPackagesRequest,
    ) -> Result<v1::ClaimKeyPackagesResponse, Refusal> {
        let caller = caller.device()?;
        let users = self.parse_users(&request.user_ids)?;
        let id = ids::request(&request.request_id, "request_id")?;
        let suite = self.allowed_suite(caller.tenant, request.suite).await?;
        let claim = Claim { caller, suite, request: own_request(&caller, id) };
        let targets = self.targets(&claim, users).await?;
        let cost = u32::try_from(targets.iter().filter(|target| !target.claimed).count()).unwrap_or(u32::MAX);
        if cost > 0 {
            let (registry, rate) = (self.deps.registry.as_ref(), self.deps.limits.claims_by_user);
            quota::take(registry, "claims by", caller.user.as_bytes(), rate, cost).await?;
        }
        let answers: Vec<_> = futures::stream::iter(targets)
            .map(|target| self.claim_user(&claim, target))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut response = v1::ClaimKeyPackagesResponse::default();
        for (user, claimed) in answers {
            add(&mut response, user, claimed);
        }
        Ok(response)
    }

    fn parse_users(&self, users: &[String]) -> Result<BTreeSet<UserId>, Refusal> {
        if users.is_empty() || users.len() > self.deps.limits.users_per_call {
            return Err(Refusal::field("user_ids", "must be 1 to 128"));
        }
        Ok(users.iter().map(|user| ids::user(user, "user_ids")).collect::<Result<_, _>>()?)
    }

    /// Which of the users the request has claimed before. Of whom nothing could be claimed, nothing is remembered.
    async fn targets(&self, claim: &Claim, users: BTreeSet<UserId>) -> Result<Vec<Target>, Refusal> {
        let target = async |user| {
            let claimed = self.deps.directory.key_packages_claimed(user, claim.suite, claim.request).await?;
            Ok(Target { user, claimed })
        };
        futures::stream::iter(users).map(target).buffered(AT_ONCE).try_collect().await
    }

    /// `None` for whoever has no active device, or is not of the caller's tenant.
    async fn claim_user(&self, claim: &Claim, target: Target) -> Result<(UserId, Option<Claimed>), Refusal> {
        let user = target.user;
        let devices = self.devices_to_claim(claim, user).await?;
        if devices.is_empty() {
            return Ok((user, None));
        }
        if !target.claimed {
            self.take_for(claim, user).await?;
        }
        let now = self.deps.clock.now();
        let directory = &self.deps.directory;
        let claimed =
            directory.claim_key_packages(user, claim.suite, &devices, claim.request, now.plus(LEAST_LIFE), now).await?;
        self.warn_low(user, claim.suite, &claimed).await;
        Ok((user, Some(claimed)))
    }

    /// Takes for a claim of one user. The pair's quota comes first, or whoever used theirs up would use up the user's, too.
    async fn take_for(&self, claim: &Claim, user: UserId) -> Result<(), Refusal> {
        let (registry, limits) = (self.deps.registry.as_ref(), &self.deps.limits);
        // Who adds their own devices takes from nobody else.
        if user != claim.caller.user {
            let pair = [&claim.caller.user.as_bytes()[..], user.as_bytes()].concat();
            quota::take(registry, "claims of one by", &pair, limits.claims_of_user_by_one, PAIR_COST).await?;
        }
        quota::take(registry, "claims of", user.as_bytes(), limits.claims_of_user, 1).await
    }

    /// The user's active devices, the calling one excepted: it is in the group already.
    async fn devices_to_claim(&self, claim: &Claim, user: UserId) -> Result<Vec<DeviceId>, Refusal> {
        let row = match self.user_in(claim.caller.tenant, user).await {
            Ok(row) if !row.deactivated => row,
            Ok(_) => return Ok(Vec::new()),
            Err(refusal) if refusal.reason == Reason::NotFound => return Ok(Vec::new()),
            Err(refusal) => return Err(refusal),
        };
        let devices = self.deps.directory.devices(row.user).await?;
        let active = devices.into_iter().filter(|row| !row.revoked).map(|row| row.device);
        Ok(active.filter(|device| *device != claim.caller.device).collect())
    }

    /// Tells devices that run out. A hint: what is not told now is told at the next claim.
    async fn warn_low(&self, user: UserId, suite: u16, claimed: &Claimed) {
        for (device, left) in claimed.left.iter().filter(|(_, left)| *left < LOW) {
            let event = wire::FeedEventRecord {
                source: 0,
                source_position: 0,
                part: 0,
                recipients: vec![wire::RecipientRecord {
                    user_id: ids::bytes16(user.as_bytes()),
                    device_ids: vec![ids::bytes16(device.as_bytes())],
                }],
                event: Some(wire::feed_event_record::Event::KeyPackagesLow(wire::FeedKeyPackagesLow {
                    suite: suite.into(),
                    available: *left,
                })),
            };
            if announce::feed_event(self.deps.log.as_ref(), user, event).await.is_err() {
                tracing::debug!("a device was not told that its key packages run out");
            }
        }
    }
}

/// A request id is the claiming device's own: nobody else's repeat answers with its packages.
fn own_request(caller: &DeviceCaller, request: RequestId) -> RequestId {
    let tenant: TenantId = caller.tenant;
    let digest = Digest::of_parts(&[
        b"wardline claim\0",
        tenant.as_bytes(),
        caller.user.as_bytes(),
        caller.device.as_bytes(),
        &request,
    ]);
    let mut own = [0; 16];
    own.copy_from_slice(&digest.as_bytes()[..16]);
    own
}

fn add(response: &mut v1::ClaimKeyPackagesResponse, user: UserId, claimed: Option<Claimed>) {
    let user_id = user.to_string();
    let Some(claimed) = claimed else {
        response.missing.push(v1::MissingKeyPackage { user_id, device_id: String::new() });
        return;
    };
    response.claimed.extend(claimed.packages.into_iter().map(|package| v1::ClaimedKeyPackage {
        user_id: user_id.clone(),
        device_id: package.device.to_string(),
        key_package: package.bytes,
        last_resort: package.last_resort,
    }));
    response.missing.extend(
        claimed
            .missing
            .into_iter()
            .map(|device| v1::MissingKeyPackage { user_id: user_id.clone(), device_id: device.to_string() }),
    );
}
