//! Table `key_packages`: what a user's devices offer, the packages, and what claims took, in one partition.
//!
//! The partition's `guard` is new with every change: whoever read it and then writes by it knows that nothing changed in
//! between. A change whose end nobody knows is made again from what is read then; a claim finds its own row.
//!
//! What was served expires a day after its life ends, claims after seven days: what the callers' time says, not a clock here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;
use wardline_domain::{DeviceId, Digest, Timestamp, UserId};
use wardline_store::directory::{Claimed, KeyPackageRow, KeyPackageStatus, RequestId};
use wardline_store::encoding::directory::{decode_claimed, decode_key_package, encode_claimed, encode_key_package};
use wardline_store::encoding::{Decoder, Encoder};
use wardline_store::{Failure, Result};

use super::offers::{LastResort, Offer};
use crate::number::{corrupt, id};
use crate::session::{Cql, Lwt};
use crate::statements::Preparer;

const TABLE: &str = "key_packages";

/// The kinds of rows.
const OFFER: i8 = 0;
const PACKAGE: i8 = 1;
const CLAIM: i8 = 2;

/// How long a claim is remembered.
const CLAIM_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a served package outlives its life.
const SERVED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// No package lives that long; CQL bounds how long a row may be kept.
const MOST_KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// How many packages one change takes in.
const PUBLISH_ROWS: usize = 50;

/// How many rows come in a page.
const PAGE: i32 = 200;

pub(super) struct Statements {
    guard: PreparedStatement,
    set_guard: PreparedStatement,
    offers: PreparedStatement,
    get: PreparedStatement,
    packages: PreparedStatement,
    put: PreparedStatement,
    put_served: PreparedStatement,
    put_expiring: PreparedStatement,
    delete: PreparedStatement,
}

impl Statements {
    pub(super) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            guard: p.read_serial("SELECT guard FROM {ks}.key_packages WHERE user = ? LIMIT 1").await?,
            set_guard: p.lwt("UPDATE {ks}.key_packages SET guard = ? WHERE user = ? IF guard = ?").await?,
            offers: p
                .read_paged(PAGE, "SELECT suite, id, value FROM {ks}.key_packages WHERE user = ? AND kind = 0")
                .await?,
            get: p
                .read(
                    "SELECT value, served FROM {ks}.key_packages \
                     WHERE user = ? AND kind = ? AND suite = ? AND id = ?",
                )
                .await?,
            packages: p
                .read_paged(
                    PAGE,
                    "SELECT id, value, served FROM {ks}.key_packages \
                     WHERE user = ? AND kind = 1 AND suite = ? AND id IN ?",
                )
                .await?,
            put: p.lwt("INSERT INTO {ks}.key_packages (user, kind, suite, id, value) VALUES (?, ?, ?, ?, ?)").await?,
            put_served: p
                .lwt(
                    "INSERT INTO {ks}.key_packages (user, kind, suite, id, value, served) \
                     VALUES (?, ?, ?, ?, ?, true) USING TTL ?",
                )
                .await?,
            put_expiring: p
                .lwt("INSERT INTO {ks}.key_packages (user, kind, suite, id, value) VALUES (?, ?, ?, ?, ?) USING TTL ?")
                .await?,
            delete: p.lwt("DELETE FROM {ks}.key_packages WHERE user = ? AND kind = ? AND suite = ? AND id = ?").await?,
        })
    }
}

/// A claim for one user.
pub(super) struct Claim<'a> {
    pub(super) user: UserId,
    pub(super) suite: u16,
    pub(super) devices: &'a [DeviceId],
    pub(super) request: RequestId,
    pub(super) not_before_end: Timestamp,
    pub(super) now: Timestamp,
}

/// What changes a user's partition.
#[derive(Clone, Copy)]
enum Plan<'a> {
    /// Serves packages. The only one that answers something.
    Claim(&'a Claim<'a>),
    /// Takes packages in, up to so many for each device.
    Publish(&'a [&'a KeyPackageRow], u32),
    /// Forgets a device's packages.
    Drop(DeviceId),
}

/// A package as it was read.
#[derive(Debug, Clone)]
struct Package {
    row: KeyPackageRow,
    served: bool,
}

type Offers = BTreeMap<(u16, DeviceId), Offer>;
type Packages = BTreeMap<Digest, Package>;
type Values = Box<dyn SerializeRow + Send + Sync>;

fn decode_package(bytes: Bytes) -> Result<KeyPackageRow> {
    let mut value = Decoder::new(TABLE, bytes)?;
    let row = decode_key_package(&mut value)?;
    value.finish(row)
}

fn encode_package(row: &KeyPackageRow) -> Bytes {
    let mut value = Encoder::new(128 + row.bytes.len());
    encode_key_package(&mut value, row);
    value.finish()
}

/// For how many seconds what was served is kept when it is `now`.
fn kept(row: &KeyPackageRow, now: Timestamp) -> i32 {
    let kept = (row.not_after.since(now) + SERVED_KEPT).min(MOST_KEPT);
    i32::try_from(kept.as_secs()).unwrap_or(i32::MAX)
}

/// One change of a user's partition: what to write if the guard is still the one read.
struct Change<'a> {
    statements: &'a Statements,
    user: [u8; 16],
    batch: Batch,
    values: Vec<Values>,
}

impl<'a> Change<'a> {
    fn new(statements: &'a Statements, user: UserId, guard: Option<Bytes>) -> Self {
        let user = *user.as_bytes();
        let mut change = Self { statements, user, batch: Batch::new(BatchType::Unlogged), values: Vec::new() };
        let next = *Uuid::new_v4().as_bytes();
        change.add(&statements.set_guard, Box::new((next, user, guard)));
        change
    }

    fn add(&mut self, statement: &PreparedStatement, values: Values) {
        self.batch.append_statement(statement.clone());
        self.values.push(values);
    }

    fn offer(&mut self, (suite, device): (u16, DeviceId), offer: &Offer) {
        let values = (self.user, OFFER, i32::from(suite), *device.as_bytes(), offer.encode());
        self.add(&self.statements.put, Box::new(values));
    }

    fn package(&mut self, row: &KeyPackageRow) {
        let values = (self.user, PACKAGE, i32::from(row.suite), *row.reference.as_bytes(), encode_package(row));
        self.add(&self.statements.put, Box::new(values));
    }

    /// Marks a package as served, for `seconds`; for good when that is 0.
    fn served(&mut self, row: &KeyPackageRow, seconds: i32) {
        let (suite, reference) = (i32::from(row.suite), *row.reference.as_bytes());
        let values = (self.user, PACKAGE, suite, reference, encode_package(row), seconds);
        self.add(&self.statements.put_served, Box::new(values));
    }

    fn claim(&mut self, suite: u16, request: RequestId, claimed: &Claimed) {
        let seconds = i32::try_from(CLAIM_KEPT.as_secs()).unwrap_or(i32::MAX);
        let values = (self.user, CLAIM, i32::from(suite), request, encode_claimed(claimed), seconds);
        self.add(&self.statements.put_expiring, Box::new(values));
    }

    fn delete(&mut self, kind: i8, suite: u16, id: &[u8]) {
        let values = (self.user, kind, i32::from(suite), id.to_vec());
        self.add(&self.statements.delete, Box::new(values));
    }

    /// Whether there is nothing to write but the guard.
    fn is_empty(&self) -> bool {
        self.values.len() == 1
    }
}

impl Cql {
    /// The guard, once every change under way has come to its end.
    async fn guard(&self, user: UserId) -> Result<Option<Bytes>> {
        let statement = &self.statements.directory.key_packages.guard;
        let found = self.one::<(Option<Bytes>,)>("key_packages.guard", statement, (user.as_bytes(),)).await?;
        Ok(found.and_then(|(guard,)| guard))
    }

    /// What the user's devices offer, in all suites.
    async fn offers(&self, user: UserId) -> Result<Offers> {
        let mut offers = Offers::new();
        let take = |(suite, device, value): (i32, Bytes, Bytes)| {
            let suite = u16::try_from(suite).map_err(|_| corrupt("key_packages: a suite above what is counted"))?;
            offers.insert((suite, id(TABLE, &device)?), Offer::decode(value)?);
            Ok(ControlFlow::Continue(()))
        };
        let statement = &self.statements.directory.key_packages.offers;
        self.pages("key_packages.offers", statement, (user.as_bytes(),), take).await?;
        Ok(offers)
    }

    async fn key_package_row(
        &self,
        user: UserId,
        kind: i8,
        suite: u16,
        id: &[u8],
    ) -> Result<Option<(Option<Bytes>, Option<bool>)>> {
        let statement = &self.statements.directory.key_packages.get;
        self.one("key_packages.get", statement, (user.as_bytes(), kind, i32::from(suite), id)).await
    }

    async fn packages(&self, user: UserId, suite: u16, references: &[Digest]) -> Result<Packages> {
        let mut packages = Packages::new();
        if references.is_empty() {
            return Ok(packages);
        }
        let wanted: Vec<&[u8]> = references.iter().map(|reference| &reference.as_bytes()[..]).collect();
        let take = |(reference, value, served): (Bytes, Option<Bytes>, Option<bool>)| {
            let value = value.ok_or_else(|| corrupt("key_packages: a package without bytes"))?;
            let package = Package { row: decode_package(value)?, served: served.unwrap_or(false) };
            packages.insert(id(TABLE, &reference)?, package);
            Ok(ControlFlow::Continue(()))
        };
        let statement = &self.statements.directory.key_packages.packages;
        self.pages("key_packages.packages", statement, (user.as_bytes(), i32::from(suite), wanted), take).await?;
        Ok(packages)
    }

    /// Changes a user's partition: reads the guard, lets the plan read on and say what to write, and writes if the guard is
    /// still the same; else again.
    async fn change_key_packages(&self, user: UserId, plan: Plan<'_>) -> Result<Claimed> {
        let _alone = self.directory.alone(user.as_bytes()).await;
        let (mut unsure, mut tries) = (false, self.directory.tries());
        while tries.again().await {
            let guard = match self.guard(user).await {
                Err(_) if unsure => continue,
                guard => guard?,
            };
            let mut change = Change::new(&self.statements.directory.key_packages, user, guard);
            let answer = match plan {
                Plan::Claim(claim) => self.plan_claim(claim, &mut change).await?,
                Plan::Publish(rows, keep) => self.plan_publish(user, rows, keep, &mut change).await?,
                Plan::Drop(device) => self.plan_drop(user, device, &mut change).await?,
            };
            if change.is_empty() {
                return Ok(answer);
            }
            let Change { mut batch, values, .. } = change;
            match self.lwt_batch("key_packages.change", &mut batch, values).await {
                Ok(Lwt::Applied) => return Ok(answer),
                Ok(Lwt::Refused(_)) => (),
                Err(failure @ Failure::NotApplied(_)) if !unsure => return Err(failure),
                Err(_) => unsure = true,
            }
        }
        Err(tries.failure(TABLE, unsure))
    }

    /// What a request has claimed.
    pub(super) async fn claimed(&self, user: UserId, suite: u16, request: RequestId) -> Result<Option<Claimed>> {
        let found = self.key_package_row(user, CLAIM, suite, &request).await?;
        found.and_then(|(value, _)| value).map(decode_claimed).transpose()
    }

    pub(super) async fn claim_key_packages(&self, claim: &Claim<'_>) -> Result<Claimed> {
        self.directory.tell_time(claim.now);
        self.change_key_packages(claim.user, Plan::Claim(claim)).await
    }

    async fn plan_claim(&self, claim: &Claim<'_>, change: &mut Change<'_>) -> Result<Claimed> {
        if let Some(claimed) = self.claimed(claim.user, claim.suite, claim.request).await? {
            return Ok(claimed);
        }
        let mut offers = self.offers(claim.user).await?;
        let mut claimed = Claimed::default();
        let mut served = Vec::new();
        let mut seen = BTreeSet::new();
        for device in claim.devices.iter().copied().filter(|device| seen.insert(*device)) {
            let offer = offers.entry((claim.suite, device)).or_default();
            match offer.serve(claim.not_before_end, claim.now) {
                Some(reference) => {
                    served.push(reference);
                    change.offer((claim.suite, device), offer);
                }
                None => claimed.missing.push(device),
            }
            claimed.left.push((device, offer.count(claim.not_before_end)));
        }
        let mut packages = self.packages(claim.user, claim.suite, &served).await?;
        for reference in served {
            let package = packages.remove(&reference);
            let package = package.ok_or_else(|| corrupt("key_packages: an offer names a package that is not there"))?;
            if !package.row.last_resort {
                change.served(&package.row, kept(&package.row, claim.now));
            } else if !package.served {
                change.served(&package.row, 0);
            }
            claimed.packages.push(package.row);
        }
        change.claim(claim.suite, claim.request, &claimed);
        Ok(claimed)
    }

    /// Takes in packages, user by user. Forgets those of the same devices whose life ended.
    pub(super) async fn publish_key_packages(&self, rows: &[KeyPackageRow], keep: u32) -> Result<u32> {
        let mut by_user: BTreeMap<UserId, Vec<&KeyPackageRow>> = BTreeMap::new();
        for row in rows {
            by_user.entry(row.user).or_default().push(row);
        }
        let mut count = 0;
        for (user, rows) in by_user {
            // Of several last-resort packages of a device the last one stays.
            let mut last_resorts: BTreeMap<(u16, DeviceId), &KeyPackageRow> = BTreeMap::new();
            for row in rows.iter().filter(|row| row.last_resort) {
                last_resorts.insert((row.suite, row.device), row);
            }
            let ordered: Vec<_> =
                last_resorts.into_values().chain(rows.iter().copied().filter(|row| !row.last_resort)).collect();
            let of: BTreeSet<_> = rows.iter().map(|row| (row.suite, row.device)).collect();
            for part in ordered.chunks(PUBLISH_ROWS) {
                self.change_key_packages(user, Plan::Publish(part, keep)).await?;
            }
            let offers = self.offers(user).await?;
            let latest = self.directory.latest();
            count += of.iter().filter_map(|of| offers.get(of)).map(|offer| offer.count(latest)).sum::<u32>();
        }
        Ok(count)
    }

    async fn plan_publish(
        &self,
        user: UserId,
        rows: &[&KeyPackageRow],
        keep: u32,
        change: &mut Change<'_>,
    ) -> Result<Claimed> {
        let latest = self.directory.latest();
        let mut offers = self.offers(user).await?;
        let mut known = self.known(user, rows, &offers).await?;
        let (mut changed, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for of in rows.iter().map(|row| (row.suite, row.device)).collect::<BTreeSet<_>>() {
            for reference in offers.entry(of).or_default().take_ended(latest) {
                known.remove(&(of.0, reference));
                ended.insert((of.0, reference));
                changed.insert(of);
            }
        }
        for row in rows {
            let (of, named) = ((row.suite, row.device), (row.suite, row.reference));
            let offer = offers.entry(of).or_default();
            if known.contains_key(&named) || (!row.last_resort && offer.count(latest) >= keep) {
                continue;
            }
            if row.last_resort {
                let old = offer.last_resort.replace(LastResort { reference: row.reference, used: None });
                if let Some(old) = old.and_then(|old| known.get(&(row.suite, old.reference))) {
                    retire(change, old, latest);
                }
            } else {
                offer.add(row);
            }
            change.package(row);
            // Of a deletion and a write in one change the deletion wins.
            ended.remove(&named);
            known.insert(named, Package { row: (*row).clone(), served: false });
            changed.insert(of);
        }
        for (suite, reference) in ended {
            change.delete(PACKAGE, suite, reference.as_bytes());
        }
        for of in changed {
            change.offer(of, offers.entry(of).or_default());
        }
        Ok(Claimed::default())
    }

    /// Those of the packages that are stored already, and the last-resort ones that they may replace.
    async fn known(
        &self,
        user: UserId,
        rows: &[&KeyPackageRow],
        offers: &Offers,
    ) -> Result<BTreeMap<(u16, Digest), Package>> {
        let mut wanted: BTreeMap<u16, BTreeSet<Digest>> = BTreeMap::new();
        for row in rows {
            let of = wanted.entry(row.suite).or_default();
            of.insert(row.reference);
            let last_resort = offers.get(&(row.suite, row.device)).and_then(|offer| offer.last_resort);
            of.extend(last_resort.filter(|_| row.last_resort).map(|last_resort| last_resort.reference));
        }
        let mut known = BTreeMap::new();
        for (suite, references) in wanted {
            let references: Vec<_> = references.into_iter().collect();
            let found = self.packages(user, suite, &references).await?;
            known.extend(found.into_iter().map(|(reference, package)| ((suite, reference), package)));
        }
        Ok(known)
    }

    pub(super) async fn served_key_package(
        &self,
        user: UserId,
        suite: u16,
        reference: Digest,
    ) -> Result<Option<KeyPackageRow>> {
        match self.key_package_row(user, PACKAGE, suite, reference.as_bytes()).await? {
            Some((Some(value), Some(true))) => decode_package(value).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) async fn key_package_status(
        &self,
        user: UserId,
        device: DeviceId,
        suite: u16,
        end: Timestamp,
    ) -> Result<KeyPackageStatus> {
        let found = self.key_package_row(user, OFFER, suite, device.as_bytes()).await?;
        let offer = found.and_then(|(value, _)| value).map(Offer::decode).transpose()?;
        Ok(offer.unwrap_or_default().status(end))
    }

    /// Forgets what a device could still be served, in all suites.
    pub(super) async fn drop_key_packages(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.change_key_packages(user, Plan::Drop(device)).await.map(drop)
    }

    async fn plan_drop(&self, user: UserId, device: DeviceId, change: &mut Change<'_>) -> Result<Claimed> {
        let offers = self.offers(user).await?;
        for ((suite, _), offer) in offers.iter().filter(|((_, of), _)| *of == device) {
            for reference in offer.references() {
                change.delete(PACKAGE, *suite, reference.as_bytes());
            }
            if let Some(last_resort) = &offer.last_resort {
                let found = self.packages(user, *suite, &[last_resort.reference]).await?;
                if let Some(package) = found.get(&last_resort.reference) {
                    retire(change, package, self.directory.latest());
                }
            }
            change.delete(OFFER, *suite, device.as_bytes());
        }
        Ok(Claimed::default())
    }
}

/// A last-resort package that is offered no more: found until its life ends when it was served, else gone.
fn retire(change: &mut Change<'_>, package: &Package, now: Timestamp) {
    if package.served {
        change.served(&package.row, kept(&package.row, now));
    } else {
        change.delete(PACKAGE, package.row.suite, package.row.reference.as_bytes());
    }
}
