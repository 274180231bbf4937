//! Claims of key packages: each package leaves once, for one request.

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

/// One request's claim.
struct Claim {
    caller: DeviceCaller,
    suite: u16,
    request: RequestId,
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
        let limits = &self.deps.limits;
        let cost = u32::try_from(users.len()).unwrap_or(u32::MAX);
        let registry = self.deps.registry.as_ref();
        quota::take(registry, "claims by", caller.user.as_bytes(), limits.claims_by_user, cost).await?;
        let claim = Claim { caller, suite, request: own_request(&caller, id) };
        let answers: Vec<_> = futures::stream::iter(users)
            .map(|user| self.claim_user(&claim, user))
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

    /// `None` for whoever has no active device, or is not of the caller's tenant.
    async fn claim_user(&self, claim: &Claim, user: UserId) -> Result<(UserId, Option<Claimed>), Refusal> {
        let devices = self.devices_to_claim(claim, user).await?;
        if devices.is_empty() {
            return Ok((user, None));
        }
        let (registry, rate) = (self.deps.registry.as_ref(), self.deps.limits.claims_of_user);
        quota::take(registry, "claims of", user.as_bytes(), rate, 1).await?;
        let now = self.deps.clock.now();
        let directory = &self.deps.directory;
        let claimed =
            directory.claim_key_packages(user, claim.suite, &devices, claim.request, now.plus(LEAST_LIFE), now).await?;
        self.warn_low(user, claim.suite, &claimed).await;
        Ok((user, Some(claimed)))
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
