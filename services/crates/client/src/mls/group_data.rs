//! The title and other data of a group, sealed for its members under a key of the epoch.
//!
//! A device that joins by an external commit cannot read what was sealed before it; it seals what it knows, possibly an empty
//! title, and readers keep the title they have rather than an empty one.

use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto as _;
use openmls_traits::types::AeadType;
use prost::Message as _;
use wardline_proto::content::v1::GroupData;

use crate::error::{Error, mls};
use crate::secret::{Secret, fill_random};

/// The MLS exporter's label.
pub(crate) const LABEL: &str = "wardline group data v1";
/// AES-256-GCM.
pub(crate) const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Nonce, then ciphertext.
pub(crate) fn seal(key: &Secret, context: &[u8], title: &str) -> Result<Vec<u8>, Error> {
    let plain = GroupData { title: title.to_owned() }.encode_to_vec();
    let mut sealed = vec![0; NONCE_BYTES];
    fill_random(&mut sealed);
    let ciphertext =
        RustCrypto::default().aead_encrypt(AeadType::Aes256Gcm, key.expose(), &plain, &sealed, context).map_err(mls)?;
    sealed.extend(ciphertext);
    Ok(sealed)
}

/// The title; `None` when it does not open or is empty.
pub(crate) fn open(key: &Secret, context: &[u8], sealed: &[u8]) -> Option<String> {
    let (nonce, ciphertext) = sealed.split_at_checked(NONCE_BYTES)?;
    let plain =
        RustCrypto::default().aead_decrypt(AeadType::Aes256Gcm, key.expose(), ciphertext, nonce, context).ok()?;
    GroupData::decode(plain.as_slice()).ok().map(|data| data.title).filter(|title| !title.is_empty())
}
