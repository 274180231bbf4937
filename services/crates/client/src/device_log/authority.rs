//! The tenant authority's keys: given by configuration, or pinned when they are first seen.
//!
//! Who answers GetServerInfo is not authenticated beyond its TLS certificate, so what it says later must be what it said first.
//! Deliberately absent: rotation. New keys come by configuration ([`crate::Options::authority_keys`]), which replaces the pin.

use std::sync::Arc;

use crate::device::Inner;
use crate::error::Error;
use crate::store;

/// The keys that revocations are held against. Asks the server only when nothing is configured and nothing pinned.
pub(crate) async fn pinned(inner: &Arc<Inner>) -> Result<Vec<[u8; 32]>, Error> {
    let held = inner.read(|core| store::authority::load(core.connection()))?;
    if let Some(configured) = &inner.options.authority_keys {
        let configured = sorted(configured.clone());
        if held.as_ref() != Some(&configured) {
            inner.step(|step| store::authority::replace(&step.tx, &configured))?;
        }
        return Ok(configured);
    }
    match held {
        Some(held) => Ok(held),
        None => {
            let published = sorted(inner.rpc.authority_keys().await?);
            inner.step(|step| store::authority::pin(&step.tx, &published))
        }
    }
}

/// As [`pinned`], after the server has said the same.
///
/// # Errors
/// [`Error::Untrusted`] when it says something else.
pub(crate) async fn confirmed(inner: &Arc<Inner>) -> Result<Vec<[u8; 32]>, Error> {
    let pinned = pinned(inner).await?;
    if sorted(inner.rpc.authority_keys().await?) == pinned {
        Ok(pinned)
    } else {
        Err(Error::Untrusted("the tenant authority's keys are not those that were pinned"))
    }
}

fn sorted(mut keys: Vec<[u8; 32]>) -> Vec<[u8; 32]> {
    keys.sort_unstable();
    keys.dedup();
    keys
}
