//! openmls' provider over a connection: its storage, with CBOR (RFC 8949) as the codec, and RustCrypto.
//!
//! CBOR and not postcard: some of openmls' types accept several older forms of themselves, which needs a self-describing
//! format. Against JSON it halves what a group takes.

use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use openmls_traits::OpenMlsProvider;
use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// CBOR.
#[derive(Debug, Default)]
pub(crate) struct Cbor;

/// What CBOR could not do. Without details: they could quote what was being read.
#[derive(Debug, thiserror::Error)]
#[error("not the CBOR that was expected")]
pub(crate) struct NotCbor;

impl Codec for Cbor {
    type Error = NotCbor;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, NotCbor> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).map_err(|_| NotCbor)?;
        Ok(bytes)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, NotCbor> {
        ciborium::from_reader(slice).map_err(|_| NotCbor)
    }
}

/// openmls' provider for one step.
pub(crate) struct Provider<'a> {
    crypto: RustCrypto,
    storage: SqliteStorageProvider<Cbor, &'a Connection>,
}

impl<'a> Provider<'a> {
    /// Over a connection, which may be inside a transaction.
    pub(crate) fn new(connection: &'a Connection) -> Self {
        Self { crypto: RustCrypto::default(), storage: SqliteStorageProvider::new(connection) }
    }
}

impl<'a> OpenMlsProvider for Provider<'a> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = SqliteStorageProvider<Cbor, &'a Connection>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &RustCrypto {
        &self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        &self.crypto
    }
}
