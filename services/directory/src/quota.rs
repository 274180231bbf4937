//! Quotas by the registry: fairness, not safety. A registry that does not answer grants.

use wardline_domain::Digest;
use wardline_proto::reason::Reason;
use wardline_registry::{Allowance, Rate, Registry};
use wardline_runtime::Refusal;

/// Takes `cost` from the bucket of `subject` for `what`.
pub(crate) async fn take(
    registry: &dyn Registry,
    what: &'static str,
    subject: &[u8],
    rate: Rate,
    cost: u32,
) -> Result<(), Refusal> {
    let digest = Digest::of_parts(&[b"wardline quota\0", what.as_bytes(), &[0], subject]);
    let mut key = [0; 16];
    key.copy_from_slice(&digest.as_bytes()[..16]);
    match registry.take(key, rate, cost).await {
        Ok(Allowance::Exhausted(delay)) => Err(Refusal::new(Reason::QuotaExceeded).retry_after(delay)),
        Ok(Allowance::Granted) => Ok(()),
        Err(failure) => {
            tracing::debug!(%failure, "the registry did not answer");
            Ok(())
        }
    }
}
