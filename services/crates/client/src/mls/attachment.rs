//! Small files sealed inside their message: AES-256-GCM under a key that only the message carries.

use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto as _;
use openmls_traits::types::AeadType;
use wardline_domain::Digest;
use wardline_proto::content::v1 as wire;

use crate::content::{Attached, MAX_INLINE_ATTACHMENT_BYTES};
use crate::error::{Error, mls};
use crate::secret::{Secret, fill_random};

/// Seals a file under a new key.
pub(crate) fn seal(file: &Attached) -> Result<wire::Attachment, Error> {
    if file.bytes.len() > MAX_INLINE_ATTACHMENT_BYTES {
        return Err(Error::Invalid("the attachment is too large to travel inside its message"));
    }
    let key = Secret::random(32);
    let mut nonce = [0; 12];
    fill_random(&mut nonce);
    let sealed =
        RustCrypto::default().aead_encrypt(AeadType::Aes256Gcm, key.expose(), &file.bytes, &nonce, &[]).map_err(mls)?;
    Ok(wire::Attachment {
        file_name: file.file_name.clone(),
        media_type: file.media_type.clone(),
        size_bytes: file.bytes.len() as u64,
        sealed_sha256: Digest::of(&sealed).as_bytes().to_vec().into(),
        key: key.expose().to_vec().into(),
        nonce: nonce.to_vec().into(),
        url: String::new(),
        sealed: sealed.into(),
    })
}

/// Opens a file; `None` when it is not here or does not verify.
pub(crate) fn open(sealed: &wire::Attachment) -> Option<Attached> {
    let digest = Digest::try_from(sealed.sealed_sha256.as_ref()).ok()?;
    if digest != Digest::of(&sealed.sealed) || sealed.key.len() != 32 || sealed.nonce.len() != 12 {
        return None;
    }
    let bytes = RustCrypto::default()
        .aead_decrypt(AeadType::Aes256Gcm, &sealed.key, &sealed.sealed, &sealed.nonce, &[])
        .ok()?;
    Some(Attached { file_name: sealed.file_name.clone(), media_type: sealed.media_type.clone(), bytes })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_opens_to_what_was_sealed_and_not_after_a_change() {
        let file = Attached { file_name: "a.txt".into(), media_type: "text/plain".into(), bytes: vec![7; 1000] };
        let sealed = seal(&file).unwrap();
        assert_eq!(open(&sealed).unwrap(), file);
        let mut changed = sealed.clone();
        changed.key = vec![0; 32].into();
        assert!(open(&changed).is_none());
        let mut changed = sealed;
        changed.sealed = vec![0; 1016].into();
        assert!(open(&changed).is_none());
    }

    #[test]
    fn a_large_file_is_refused() {
        let bytes = vec![0; MAX_INLINE_ATTACHMENT_BYTES + 1];
        assert!(seal(&Attached { file_name: String::new(), media_type: String::new(), bytes }).is_err());
    }
}
