//! Table `devices`: a user's devices and the log of them, in one partition, so that an entry and the device's row are
//! written together or not at all.
//!
//! The partition's `head` says where the log ends. Every change compares and sets it, so whoever read the head and then
//! writes by it knows that nothing changed in between. Its `fence` rises when somebody else must be kept from writing by
//! what they read before: see [`super::identities`].

use std::ops::ControlFlow;

use bytes::Bytes;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::{DeviceId, Digest, UserId};
use wardline_store::directory::{Appended, DeviceLogRow, DeviceRow};
use wardline_store::encoding::directory::{decode_device, decode_device_log, encode_device, encode_device_log};
use wardline_store::encoding::{Decoder, Encoder};
use wardline_store::{Failure, Result};

use super::identities::Acquired;
use crate::number::{corrupt, id, limit};
use crate::session::{Cql, Lwt};
use crate::statements::Preparer;

const TABLE: &str = "devices";

/// The kinds of rows.
const LOG: i8 = 0;
const DEVICE: i8 = 1;

/// How many rows come in a page.
const PAGE: i32 = 200;

pub(super) struct Statements {
    head: PreparedStatement,
    set_head: PreparedStatement,
    put: PreparedStatement,
    get: PreparedStatement,
    above: PreparedStatement,
}

impl Statements {
    pub(super) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            head: p.read_serial("SELECT head FROM {ks}.devices WHERE user = ? LIMIT 1").await?,
            set_head: p.lwt("UPDATE {ks}.devices SET head = ? WHERE user = ? IF head = ?").await?,
            put: p.lwt("INSERT INTO {ks}.devices (user, kind, id, value) VALUES (?, ?, ?, ?)").await?,
            get: p.read("SELECT value FROM {ks}.devices WHERE user = ? AND kind = ? AND id = ?").await?,
            above: p
                .read_paged(PAGE, "SELECT id, value FROM {ks}.devices WHERE user = ? AND kind = ? AND id > ? LIMIT ?")
                .await?,
        })
    }
}

/// Where a user's log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) hash: Digest,
    pub(super) fence: u64,
}

impl Head {
    pub(super) fn write(&self, value: &mut Encoder) {
        value.u64(self.version).raw(self.hash.as_bytes()).u64(self.fence);
    }

    pub(super) fn read(value: &mut Decoder) -> Result<Self> {
        Ok(Self { version: value.u64()?, hash: value.digest()?, fence: value.u64()? })
    }

    fn encode(&self) -> Bytes {
        let mut value = Encoder::new(48);
        self.write(&mut value);
        value.finish()
    }

    /// The cell before the first entry or fence is not there.
    fn cell(&self) -> Option<Bytes> {
        (*self != Self::default()).then(|| self.encode())
    }
}

/// A statement's values.
type Values = Box<dyn SerializeRow + Send + Sync>;

impl Cql {
    /// Where the log ends, once every change under way has come to its end.
    pub(super) async fn device_log_head(&self, user: UserId) -> Result<Head> {
        let statement = &self.statements.directory.devices.head;
        let found = self.one::<(Option<Bytes>,)>("devices.head", statement, (user.as_bytes(),)).await?;
        let Some(bytes) = found.and_then(|(head,)| head) else { return Ok(Head::default()) };
        let mut value = Decoder::new(TABLE, bytes)?;
        let head = Head::read(&mut value)?;
        value.finish(head)
    }

    async fn devices_row(&self, user: UserId, kind: i8, id: &[u8]) -> Result<Option<Bytes>> {
        let statement = &self.statements.directory.devices.get;
        let found = self.one::<(Option<Bytes>,)>("devices.get", statement, (user.as_bytes(), kind, id)).await?;
        Ok(found.and_then(|(value,)| value))
    }

    pub(super) async fn device(&self, user: UserId, device: DeviceId) -> Result<Option<DeviceRow>> {
        let stored = self.devices_row(user, DEVICE, device.as_bytes()).await?;
        stored.map(|bytes| decode_device(user, device, bytes)).transpose()
    }

    pub(super) async fn devices(&self, user: UserId) -> Result<Vec<DeviceRow>> {
        let mut rows = Vec::new();
        let take = |(device, value): (Bytes, Bytes)| {
            rows.push(decode_device(user, id(TABLE, &device)?, value)?);
            Ok(ControlFlow::Continue(()))
        };
        self.devices_above(user, DEVICE, &[], usize::MAX, take).await?;
        Ok(rows)
    }

    pub(super) async fn device_log(&self, user: UserId, after: u64, most: usize) -> Result<Vec<DeviceLogRow>> {
        let mut entries = Vec::new();
        if most == 0 {
            return Ok(entries);
        }
        let take = |(version, value): (Bytes, Bytes)| {
            let version = version.as_ref().try_into().map(u64::from_be_bytes);
            let version = version.map_err(|_| corrupt("devices: a version of another length"))?;
            entries.push(decode_device_log(user, version, value)?);
            Ok(ControlFlow::Continue(()))
        };
        self.devices_above(user, LOG, &after.to_be_bytes(), most, take).await?;
        Ok(entries)
    }

    async fn devices_above(
        &self,
        user: UserId,
        kind: i8,
        above: &[u8],
        most: usize,
        take: impl FnMut((Bytes, Bytes)) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let statement = &self.statements.directory.devices.above;
        let values = (user.as_bytes(), kind, above, limit(most));
        self.pages("devices.above", statement, values, take).await
    }

    async fn device_log_entry(&self, user: UserId, version: u64) -> Result<Option<DeviceLogRow>> {
        let stored = self.devices_row(user, LOG, &version.to_be_bytes()).await?;
        stored.map(|bytes| decode_device_log(user, version, bytes)).transpose()
    }

    pub(super) async fn append_device_log(&self, entry: &DeviceLogRow) -> Result<Appended> {
        let device = &entry.device;
        let _alone = self.directory.alone(device.user.as_bytes()).await;
        let (mut unsure, mut tries) = (false, self.directory.tries());
        while tries.again().await {
            let head = match self.device_log_head(device.user).await {
                Err(_) if unsure => continue,
                head => head?,
            };
            if let Some(end) = self.compare(entry, &head, unsure).await? {
                return Ok(end);
            }
            match self.acquire_identities(device, &head).await? {
                Acquired::All => (),
                Acquired::Taken(by) => return Ok(by),
                Acquired::Again => continue,
            }
            match self.write_entry(entry, &head).await {
                Ok(Lwt::Applied) => return Ok(Appended::Applied),
                Ok(Lwt::Refused(_)) => (),
                Err(failure @ Failure::NotApplied(_)) if !unsure => return Err(failure),
                Err(_) => unsure = true,
            }
        }
        Err(tries.failure(TABLE, unsure))
    }

    /// Whether the entry follows the head. Answers how it ended when it does not, or had been written before.
    async fn compare(&self, entry: &DeviceLogRow, head: &Head, unsure: bool) -> Result<Option<Appended>> {
        // The first entry has nothing to follow.
        let follows = head.version == 0 || head.hash == entry.previous_hash;
        if head.version.checked_add(1) == Some(entry.version) && follows {
            return Ok(None);
        }
        let mut repeat = (head.version, head.hash) == (entry.version, entry.hash);
        if unsure && !repeat {
            // Another entry may have come behind this one.
            let stored = self.device_log_entry(entry.device.user, entry.version).await?;
            repeat = stored.is_some_and(|stored| stored.hash == entry.hash);
        }
        Ok(Some(if repeat { Appended::Applied } else { Appended::Conflict { version: head.version } }))
    }

    /// Writes the entry and the device's row, and moves the head.
    async fn write_entry(&self, entry: &DeviceLogRow, head: &Head) -> Result<Lwt> {
        let (device, user) = (&entry.device, *entry.device.user.as_bytes());
        let stored = self.device(device.user, device.device).await?;
        if stored.is_some_and(|stored| stored.revoked) && !device.revoked {
            return Err(corrupt("device log: an entry brings a revoked device back"));
        }
        let next = Head { version: entry.version, hash: entry.hash, fence: head.fence };
        let statements = &self.statements.directory.devices;
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.append_statement(statements.set_head.clone());
        batch.append_statement(statements.put.clone());
        batch.append_statement(statements.put.clone());
        let values: Vec<Values> = vec![
            Box::new((next.encode(), user, head.cell())),
            Box::new((user, LOG, entry.version.to_be_bytes(), encode_device_log(entry))),
            Box::new((user, DEVICE, *device.device.as_bytes(), encode_device(device))),
        ];
        self.lwt_batch("devices.append", &mut batch, values).await
    }

    /// Keeps everybody who read this head from writing by it. The caller looks again whether it is the head no more.
    pub(super) async fn fence(&self, user: UserId, head: &Head) -> Result<()> {
        let next = Head { fence: head.fence.saturating_add(1), ..*head };
        let values = (next.encode(), user.as_bytes(), head.cell());
        match self.lwt("devices.fence", &self.statements.directory.devices.set_head, values).await {
            Ok(_) | Err(Failure::Unknown(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}
