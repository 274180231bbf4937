//! The safety net of revocation: a roster that still names a revoked device gets its control record appended by whoever sees
//! it, even if the directory's own follow-up has not come this far.

use quick_cache::sync::Cache;
use wardline_domain::ConversationId;
use wardline_domain::record::{Body, Control};
use wardline_runtime::members::Seen;

use crate::Inner;

/// How many conversations are remembered as looked through.
const CAPACITY: usize = 100_000;

/// Which (roster version, number of ends folded) of a conversation has been looked through.
#[derive(Debug)]
pub(crate) struct Swept(Cache<ConversationId, (u64, u64)>);

impl Default for Swept {
    fn default() -> Self {
        Self(Cache::new(CAPACITY))
    }
}

impl Inner {
    /// Appends what is missing, without waiting. Repeats are harmless: a leaf that waits already stays as it is.
    pub(crate) fn sweep_revoked(&self, conversation: ConversationId, seen: &Seen) {
        let state = (seen.roster.version(), self.deps.revocations.changes());
        if self.swept.0.get(&conversation) == Some(state) {
            return;
        }
        let missing = seen
            .roster
            .leaves()
            .values()
            .filter(|leaf| !leaf.removal_pending)
            .filter(|leaf| self.deps.revocations.check(leaf.user, leaf.device).is_err());
        for leaf in missing {
            let control = Control::DeviceRevoked { user: leaf.user, device: leaf.device };
            // What is not appended now is found again at the next message: the state is then not remembered.
            match self.append(conversation, self.deps.clock.now(), &Body::Control(control)) {
                Ok(in_flight) => drop(in_flight),
                Err(_refusal) => return,
            }
        }
        self.swept.0.insert(conversation, state);
    }
}
