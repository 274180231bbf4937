//! Table `device_claims`: a device's id, session key and MLS keys belong to one device of one user, for good.
//!
//! A claim names the device and the head of its user's log that it was made at. It is borne out once the device's row or log
//! has what it claims; until then only a write at that very head can bear it out. So whoever finds one that is not borne out
//! waits a little for its owner, then makes sure that nothing is written at that head any more, looks once more, and takes
//! it over. An owner that was merely slow finds its write refused and begins anew.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wardline_domain::{DeviceId, Digest, UserId};
use wardline_store::Result;
use wardline_store::directory::{Appended, DeviceRow, MlsKeyRow};
use wardline_store::encoding::{Decoder, Encoder};

use super::cells::Insert;
use super::devices::Head;
use super::pause;
use crate::session::Cql;

/// How long the owner of a claim has for its write before another takes the claim over.
const PATIENCE: Duration = Duration::from_millis(400);

/// What belongs to one device.
#[derive(Debug, Clone, Copy)]
enum Identity<'a> {
    SessionKey(Digest),
    DeviceId(DeviceId),
    MlsKey(&'a MlsKeyRow),
}

/// How claiming a device's identities ended.
#[derive(Debug)]
pub(super) enum Acquired {
    /// All are its own.
    All,
    /// One belongs to another.
    Taken(Appended),
    /// Something changed meanwhile: begin with the log's head.
    Again,
}

/// Who claims, and at which head of the user's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    user: UserId,
    device: DeviceId,
    head: Head,
}

impl Claim {
    fn encode(&self) -> Bytes {
        let mut value = Encoder::new(80);
        value.raw(self.user.as_bytes()).raw(self.device.as_bytes());
        self.head.write(&mut value);
        value.finish()
    }

    fn decode(bytes: Bytes) -> Result<Self> {
        let mut value = Decoder::new("device_claims", bytes)?;
        let claim = Self {
            user: UserId::from_bytes(value.array()?),
            device: DeviceId::from_bytes(value.array()?),
            head: Head::read(&mut value)?,
        };
        value.finish(claim)
    }
}

impl<'a> Identity<'a> {
    /// What an entry claims, in the order in which they are told. One that ends a device claims its session key only.
    fn of(device: &'a DeviceRow) -> Vec<Self> {
        let mut all = vec![Self::SessionKey(device.thumbprint)];
        if !device.revoked {
            all.push(Self::DeviceId(device.device));
            all.extend(device.mls_keys.iter().map(Self::MlsKey));
        }
        all
    }

    fn key(&self) -> Vec<u8> {
        match self {
            Self::SessionKey(thumbprint) => [&[0], &thumbprint.as_bytes()[..]].concat(),
            Self::DeviceId(device) => [&[1], &device.as_bytes()[..]].concat(),
            Self::MlsKey(key) => [&[2], &key.suite.to_be_bytes()[..], &key.public_key].concat(),
        }
    }

    /// The answer to whoever wants what belongs to another.
    fn taken(&self) -> Appended {
        match self {
            Self::SessionKey(_) => Appended::KeyTaken,
            Self::DeviceId(_) => Appended::DeviceTaken,
            Self::MlsKey(_) => Appended::MlsKeyTaken,
        }
    }

    /// Whether the row has it.
    fn is_of(&self, row: &DeviceRow) -> bool {
        match self {
            Self::SessionKey(thumbprint) => row.thumbprint == *thumbprint,
            Self::DeviceId(device) => row.device == *device,
            Self::MlsKey(key) => has_key(row, key),
        }
    }
}

fn has_key(row: &DeviceRow, wanted: &MlsKeyRow) -> bool {
    row.mls_keys.iter().any(|key| (key.suite, &key.public_key) == (wanted.suite, &wanted.public_key))
}

impl Cql {
    pub(super) async fn device_by_thumbprint(&self, thumbprint: Digest) -> Result<Option<DeviceRow>> {
        let identity = Identity::SessionKey(thumbprint);
        let stored = self.statements.directory.identities.get(self, &identity.key()).await?;
        let Some(claim) = stored.map(Claim::decode).transpose()? else { return Ok(None) };
        let row = self.device(claim.user, claim.device).await?;
        Ok(row.filter(|row| identity.is_of(row)))
    }

    /// Claims what the device has for it, to be borne out by a write at `head`. Who wants what belongs to another claims
    /// nothing.
    pub(super) async fn acquire_identities(&self, device: &DeviceRow, head: &Head) -> Result<Acquired> {
        let mine = Claim { user: device.user, device: device.device, head: *head };
        let wanted = Identity::of(device);
        let looked = self.each(wanted.iter().map(|identity| self.look(*identity, mine)).collect()).await?;
        for (identity, look) in wanted.iter().zip(&looked) {
            if matches!(look, Look::Taken) {
                return Ok(Acquired::Taken(identity.taken()));
            }
        }
        for (identity, _) in wanted.iter().zip(&looked).filter(|(_, look)| matches!(look, Look::Open)) {
            match self.acquire(*identity, &mine).await? {
                Acquired::All => (),
                end => return Ok(end),
            }
        }
        Ok(Acquired::All)
    }

    async fn look(&self, identity: Identity<'_>, mine: Claim) -> Result<Look> {
        let stored = self.statements.directory.identities.get(self, &identity.key()).await?;
        let Some(claim) = stored.map(Claim::decode).transpose()? else { return Ok(Look::Open) };
        if !self.borne_out(identity, &claim).await? {
            return Ok(Look::Open);
        }
        Ok(if (claim.user, claim.device) == (mine.user, mine.device) { Look::Own } else { Look::Taken })
    }

    /// Claims one thing.
    async fn acquire(&self, identity: Identity<'_>, mine: &Claim) -> Result<Acquired> {
        let claims = &self.statements.directory.identities;
        let (key, claim) = (identity.key(), mine.encode());
        let stands = match claims.insert(self, &key, &claim).await? {
            Insert::Applied => return Ok(Acquired::All),
            Insert::Exists(stands) if stands == claim => return Ok(Acquired::All),
            Insert::Exists(stands) => stands,
        };
        let theirs = Claim::decode(stands.clone())?;
        let own = (theirs.user, theirs.device) == (mine.user, mine.device);
        if !own && !self.outwaited(identity, &theirs, &stands).await? {
            return Ok(Acquired::Again);
        }
        if !own && self.device_log_head(theirs.user).await? == theirs.head {
            self.fence(theirs.user, &theirs.head).await?;
            // When the claim is of another device of the same user, it was this log's own head.
            return Ok(Acquired::Again);
        }
        if self.borne_out(identity, &theirs).await? {
            return Ok(if own { Acquired::All } else { Acquired::Taken(identity.taken()) });
        }
        let taken_over = claims.replace(self, &key, &stands, &claim).await?;
        Ok(if taken_over { Acquired::All } else { Acquired::Again })
    }

    /// Waits until the claim is borne out or its owner's time is over. Answers whether it is over, and the claim the same.
    async fn outwaited(&self, identity: Identity<'_>, theirs: &Claim, stands: &Bytes) -> Result<bool> {
        let begun = Instant::now();
        let key = identity.key();
        // Whose head has moved on cannot bear it out any more.
        while self.device_log_head(theirs.user).await? == theirs.head && begun.elapsed() < PATIENCE {
            if self.borne_out(identity, theirs).await? {
                return Ok(false);
            }
            pause(40).await;
        }
        Ok(self.statements.directory.identities.get_serial(self, &key).await?.as_ref() == Some(stands))
    }

    /// Whether the device has, or had at some time, what is claimed for it.
    async fn borne_out(&self, identity: Identity<'_>, claim: &Claim) -> Result<bool> {
        let Some(row) = self.device(claim.user, claim.device).await? else { return Ok(false) };
        if identity.is_of(&row) {
            return Ok(true);
        }
        let Identity::MlsKey(wanted) = identity else { return Ok(false) };
        let log = self.device_log(claim.user, 0, usize::MAX).await?;
        let had = |device: &DeviceRow| device.device == claim.device && !device.revoked && has_key(device, wanted);
        Ok(log.iter().any(|entry| had(&entry.device)))
    }
}

/// What stands of an identity.
#[derive(Debug)]
enum Look {
    /// The device's own already.
    Own,
    /// Another device's.
    Taken,
    /// Nobody's yet, or claimed and not borne out.
    Open,
}
