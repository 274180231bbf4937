//! Key packages: this device's own, and those it adds others with.

use std::sync::Arc;

use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::prelude::{
    KeyPackage, MlsMessageBodyIn, MlsMessageIn, MlsMessageOut, OpenMlsProvider as _, ProtocolVersion,
};
use wardline_domain::{DeviceId, UserId};
use wardline_proto::v1;

use super::config;
use super::group::{credential_of, encode};
use crate::core::Step;
use crate::device::Inner;
use crate::device_log::DeviceLog;
use crate::error::{Error, mls};
use crate::store;

/// The most key packages in one call.
const MAX_PER_CALL: u32 = 100;

impl Step<'_> {
    /// Makes a key package; its private keys go into the file.
    pub(crate) fn make_key_package(&self, last_resort: bool) -> Result<bytes::Bytes, Error> {
        let mut builder = KeyPackage::builder()
            .key_package_lifetime(config::lifetime(self.clock.now()))
            .leaf_node_capabilities(config::capabilities());
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        let suite = config::suite(self.me.suite)?;
        let bundle =
            builder.build(suite, &self.provider(), &self.me.signer, config::credential(self.me)?).map_err(mls)?;
        encode(&MlsMessageOut::from(bundle))
    }
}

/// Makes and publishes key packages and a last-resort one; answers how many the server has then.
pub(crate) async fn publish(inner: &Arc<Inner>, count: u32) -> Result<u32, Error> {
    let mut left = count;
    loop {
        let now = left.min(MAX_PER_CALL);
        let last_resort = left == count;
        let request = inner.step(|step| {
            let packages = (0..now).map(|_| step.make_key_package(false)).collect::<Result<_, _>>()?;
            let last_resort = if last_resort { step.make_key_package(true)? } else { bytes::Bytes::new() };
            Ok(v1::PublishKeyPackagesRequest { key_packages: packages, last_resort })
        })?;
        let available = inner.rpc.publish_key_packages(request).await?;
        left -= now;
        if left == 0 {
            inner.step(|step| store::feed::set_packages_low(&step.tx, false))?;
            return Ok(available);
        }
    }
}

/// Checks a claimed key package: signatures, lifetime, suite, that it is of the device it was claimed for, and that the
/// device's log knows its key.
pub(crate) fn check(
    provider: &super::provider::Provider<'_>,
    claimed: &v1::ClaimedKeyPackage,
    suite: u16,
    log: &DeviceLog,
) -> Result<(UserId, DeviceId, KeyPackage), Error> {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&claimed.key_package).map_err(mls)?;
    let MlsMessageBodyIn::KeyPackage(package) = message.extract() else {
        return Err(Error::Untrusted("what came as a key package is none"));
    };
    let package = package.validate(provider.crypto(), ProtocolVersion::Mls10).map_err(mls)?;
    let leaf = package.leaf_node();
    let credential = credential_of(leaf.credential()).ok_or(Error::Untrusted("a key package of a stranger"))?;
    if credential.principal.to_string() != claimed.user_id || credential.device.to_string() != claimed.device_id {
        return Err(Error::Untrusted("a key package of another device"));
    }
    let key = leaf.signature_key().as_slice();
    let known = log
        .devices
        .get(&credential.device)
        .is_some_and(|device| device.active && device.has_mls_key(credential.principal, suite, key));
    if !known || package.ciphersuite() != config::suite(suite)? {
        return Err(Error::Untrusted("a key package whose key is not in the device log"));
    }
    Ok((credential.principal, credential.device, package))
}
