//! Tables `users` and `users_by_external_id`.
//!
//! A claim of an external id holds the whole row it is made for. Whoever finds a claim tries to put its row in place first:
//! then the row stands, or another stands in its place for good, since versions only rise, and the claim is void.

use bytes::Bytes;
use wardline_domain::{TenantId, UserId};
use wardline_store::directory::{Put, UserRow};
use wardline_store::encoding::directory::{decode_user, encode_user};
use wardline_store::encoding::{Decoder, Encoder};
use wardline_store::{Failure, Result};

use super::EXTERNAL_IDS;
use super::cells::Insert;
use crate::number::corrupt;
use crate::session::Cql;

fn external_key(tenant: TenantId, external_id: &str) -> Vec<u8> {
    [tenant.as_bytes(), external_id.as_bytes()].concat()
}

fn encode_claim(row: &UserRow) -> Bytes {
    let user = encode_user(row);
    let mut value = Encoder::new(16 + user.len());
    value.raw(row.user.as_bytes()).raw(&user);
    value.finish()
}

fn decode_claim(bytes: Bytes) -> Result<UserRow> {
    let mut value = Decoder::new(EXTERNAL_IDS, bytes)?;
    let user = UserId::from_bytes(value.array()?);
    decode_user(user, value.rest())
}

fn named(row: &UserRow, tenant: TenantId, external_id: &str) -> bool {
    (row.tenant, row.external_id.as_str()) == (tenant, external_id)
}

impl Cql {
    pub(super) async fn user(&self, user: UserId) -> Result<Option<UserRow>> {
        let stored = self.statements.directory.users.get(self, user.as_bytes()).await?;
        stored.map(|bytes| decode_user(user, bytes)).transpose()
    }

    async fn user_serial(&self, user: UserId) -> Result<Option<(UserRow, Bytes)>> {
        let stored = self.statements.directory.users.get_serial(self, user.as_bytes()).await?;
        stored.map(|bytes| Ok((decode_user(user, bytes.clone())?, bytes))).transpose()
    }

    /// The user whose row bears the claim out.
    pub(super) async fn user_by_external_id(&self, tenant: TenantId, external_id: &str) -> Result<Option<UserRow>> {
        let claims = &self.statements.directory.external_ids;
        let Some(claim) = claims.get(self, &external_key(tenant, external_id)).await? else { return Ok(None) };
        let row = self.user(decode_claim(claim)?.user).await?;
        Ok(row.filter(|row| named(row, tenant, external_id)))
    }

    pub(super) async fn create_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        let _alone = self.directory.alone(&external_key(row.tenant, &row.external_id)).await;
        if let Some((stored, _)) = self.user_serial(row.user).await? {
            return Ok(Put::Exists(stored));
        }
        if let Some(owner) = self.claim_external_id(row).await? {
            return Ok(Put::Exists(owner));
        }
        let users = &self.statements.directory.users;
        match users.insert(self, row.user.as_bytes(), &encode_user(row)).await? {
            Insert::Applied => Ok(Put::Applied),
            // Who met the claim has put the row in place.
            Insert::Exists(stored) if stored == encode_user(row) => Ok(Put::Applied),
            Insert::Exists(stored) => Ok(Put::Exists(decode_user(row.user, stored)?)),
        }
    }

    pub(super) async fn update_user(&self, row: &UserRow) -> Result<Put<UserRow>> {
        let _alone = self.directory.alone(row.user.as_bytes()).await;
        let Some((stored, bytes)) = self.user_serial(row.user).await? else {
            return Err(corrupt("users: an update of a user that was never created"));
        };
        if stored.version.checked_add(1) != Some(row.version) {
            return Ok(Put::Exists(stored));
        }
        if !named(&stored, row.tenant, &row.external_id)
            && let Some(owner) = self.claim_external_id(row).await?
        {
            return Ok(Put::Exists(owner));
        }
        let value = encode_user(row);
        if self.statements.directory.users.replace(self, row.user.as_bytes(), &bytes, &value).await? {
            return Ok(Put::Applied);
        }
        let stored = self.user_serial(row.user).await?;
        let (stored, bytes) = stored.ok_or_else(|| corrupt("users: a user is gone"))?;
        Ok(if bytes == value { Put::Applied } else { Put::Exists(stored) })
    }

    /// Claims the row's external id for it. Answers with whom it belongs to, when that is another row.
    async fn claim_external_id(&self, row: &UserRow) -> Result<Option<UserRow>> {
        let claims = &self.statements.directory.external_ids;
        let (key, claim) = (external_key(row.tenant, &row.external_id), encode_claim(row));
        let mut tries = self.directory.tries();
        while tries.again().await {
            let stands = match claims.insert(self, &key, &claim).await? {
                Insert::Applied => return Ok(None),
                Insert::Exists(stands) if stands == claim => return Ok(None),
                Insert::Exists(stands) => stands,
            };
            let candidate = decode_claim(stands.clone())?;
            self.put_in_place(&candidate).await?;
            if let Some((owner, _)) = self.user_serial(candidate.user).await?
                && named(&owner, row.tenant, &row.external_id)
            {
                return Ok(Some(owner));
            }
            if claims.replace(self, &key, &stands, &claim).await? {
                return Ok(None);
            }
        }
        Err(tries.failure(EXTERNAL_IDS, false))
    }

    /// Puts a claim's row where it is meant to go, if it still can.
    async fn put_in_place(&self, candidate: &UserRow) -> Result<()> {
        let users = &self.statements.directory.users;
        let (key, value) = (candidate.user.as_bytes(), encode_user(candidate));
        let end = match self.user_serial(candidate.user).await? {
            None if candidate.version == 1 => users.insert(self, key, &value).await.map(drop),
            Some((stored, bytes)) if stored.version.checked_add(1) == Some(candidate.version) => {
                users.replace(self, key, &bytes, &value).await.map(drop)
            }
            _ => Ok(()),
        };
        // Not knowing is no reason to say that this caller's own change may have happened.
        end.map_err(|failure| Failure::NotApplied(failure.cause().clone()))
    }
}
