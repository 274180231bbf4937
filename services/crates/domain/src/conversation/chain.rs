//! The hash chain over a conversation's sequence. It covers bytes as received, never a re-encoding.

use crate::Digest;
use crate::envelope::Sequence;
use crate::ids::ConversationId;

/// chain(0): SHA-256(conversation_id).
pub fn chain_start(id: ConversationId) -> Digest {
    Digest::of(id.as_bytes())
}

/// chain(n) = SHA-256(chain(n−1) ‖ u64be n ‖ SHA-256(envelope) ‖ SHA-256(mls_message)).
pub fn chain_next(previous: Digest, sequence: Sequence, envelope: Digest, mls_message: Digest) -> Digest {
    Digest::of_parts(&[previous.as_bytes(), &sequence.0.to_be_bytes(), envelope.as_bytes(), mls_message.as_bytes()])
}

/// The digest of a submission's bytes that an outcome row keeps.
pub fn payload_digest(envelope: Digest, mls_message: Digest) -> Digest {
    Digest::of_parts(&[envelope.as_bytes(), mls_message.as_bytes()])
}
