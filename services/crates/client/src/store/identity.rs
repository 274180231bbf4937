//! Who the device is.

use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::types::Ciphersuite;
use rusqlite::{Connection, params};
use wardline_domain::{DeviceId, TenantId, Timestamp, UserId};
use zeroize::Zeroizing;

use super::Fixed;
use crate::core::{Account, Identity};
use crate::dpop::AuthKey;
use crate::error::{Error, mls};
use crate::secret::Secret;

/// Makes keys and an id, and saves them.
pub(crate) fn create(connection: &mut Connection, suite: u16, now: Timestamp) -> Result<Identity, Error> {
    let scheme = Ciphersuite::try_from(suite).map_err(mls)?.signature_algorithm();
    let signer = SignatureKeyPair::new(scheme).map_err(mls)?;
    let auth = AuthKey::generate();
    let random = Secret::random(10);
    let random: &[u8; 10] = random.expose().try_into().expect("ten bytes were asked for");
    let id = uuid::Builder::from_unix_timestamp_millis(now.as_millis(), random).into_uuid();
    let device = DeviceId::from_bytes(*id.as_bytes());
    let mut stored = Zeroizing::new(Vec::new());
    ciborium::into_writer(&signer, &mut *stored).map_err(|error| Error::Store(error.to_string()))?;
    connection.execute(
        "INSERT INTO identity (one, device, auth_seed, suite, signer) VALUES (1, ?, ?, ?, ?)",
        params![device.as_bytes(), auth.seed().expose(), suite, *stored],
    )?;
    Ok(Identity { device, auth, suite, signer, account: None })
}

/// Reads it back.
pub(crate) fn load(connection: &Connection) -> Result<Identity, Error> {
    let (device, seed, suite, signer, tenant, user) =
        connection.query_row("SELECT device, auth_seed, suite, signer, tenant, user FROM identity", [], |row| {
            let device: Fixed<16> = row.get(0)?;
            let seed: Fixed<32> = row.get(1)?;
            let signer: Vec<u8> = row.get(3)?;
            let tenant: Option<Fixed<16>> = row.get(4)?;
            let user: Option<Fixed<16>> = row.get(5)?;
            Ok((device, Zeroizing::new(seed.0), row.get(2)?, Zeroizing::new(signer), tenant, user))
        })?;
    let signer = ciborium::from_reader(signer.as_slice()).map_err(|error| Error::Store(error.to_string()))?;
    let account = tenant
        .zip(user)
        .map(|(tenant, user)| Account { tenant: TenantId::from_bytes(tenant.0), user: UserId::from_bytes(user.0) });
    Ok(Identity { device: DeviceId::from_bytes(device.0), auth: AuthKey::from_seed(&seed), suite, signer, account })
}

/// Saves whose device it is.
pub(crate) fn set_account(connection: &Connection, account: Account) -> Result<(), Error> {
    connection.execute(
        "UPDATE identity SET tenant = ?, user = ?",
        params![account.tenant.as_bytes(), account.user.as_bytes()],
    )?;
    Ok(())
}
