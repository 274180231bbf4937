//! Every security decision leaves a record in the `audit` topic.

use std::sync::Arc;

use wardline_log::EventLog;
use wardline_proto::reason::Reason;

use crate::{Caller, Clock};

/// Writes audit records for one role. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    /// Where they go.
    pub log: Arc<dyn EventLog>,
    /// The role's name.
    pub role: &'static str,
    /// Tells the time.
    pub clock: Clock,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Audit({})", self.role)
    }
}

#[allow(clippy::todo, unused_variables)]
impl Audit {
    /// Records a decision without waiting. `outcome` is the reason of a refusal.
    pub fn record(
        &self,
        action: &'static str,
        caller: Option<&Caller>,
        subject: Option<&[u8; 16]>,
        outcome: Result<(), Reason>,
    ) {
        todo!()
    }
}
