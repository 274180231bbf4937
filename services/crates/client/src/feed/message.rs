//! One sequenced message, parsed: what the feed, history and resync have in common.

use bytes::Bytes;
use wardline_domain::conversation::payload_digest;
use wardline_domain::envelope::Envelope;
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Timestamp, UserId};
use wardline_proto::convert::{envelope, ids, time};
use wardline_proto::v1;

use crate::error::Error;
use crate::view::{HistoryEntry, HistoryKind};

/// A sequenced message with its body at hand.
pub(crate) struct Sequenced {
    pub(crate) conversation: ConversationId,
    pub(crate) sequence: u64,
    pub(crate) chain: Digest,
    pub(crate) envelope_digest: Digest,
    pub(crate) mls_digest: Digest,
    pub(crate) mls_message: Bytes,
    /// `None` when it does not parse; then it is there and unreadable.
    pub(crate) envelope: Option<Envelope>,
    pub(crate) accepted_at: Option<Timestamp>,
}

impl Sequenced {
    /// From the wire. The body must have been fetched.
    pub(crate) fn parse(wire: &v1::Message) -> Result<Self, Error> {
        let Some(v1::message::Body::MlsMessage(mls_message)) = &wire.body else {
            return Err(Error::Untrusted("a message without its body"));
        };
        let id = ids::conversation(&wire.conversation_id, "").map_err(|_| Error::Untrusted("a message of nowhere"))?;
        let clear = envelope::decode(&wire.envelope).ok().filter(|envelope| envelope.conversation == id);
        Ok(Self {
            conversation: id,
            sequence: wire.sequence,
            chain: Digest::try_from(wire.chain_hash.as_ref())
                .map_err(|_| Error::Untrusted("a message without its chain hash"))?,
            envelope_digest: Digest::of(&wire.envelope),
            mls_digest: Digest::of(mls_message),
            mls_message: mls_message.clone(),
            envelope: clear,
            accepted_at: wire.accept_time.as_ref().and_then(|at| time::from_wire(at, "").ok()),
        })
    }

    /// Its entry, of the kind that it turned out to be.
    pub(crate) fn entry(&self, kind: HistoryKind) -> HistoryEntry {
        let (sender, device, message) = self.envelope.as_ref().map_or(
            (UserId::from_bytes([0; 16]), DeviceId::from_bytes([0; 16]), MessageId::from_bytes([0; 16])),
            |envelope| (envelope.sender, envelope.device, envelope.message),
        );
        HistoryEntry {
            conversation: self.conversation,
            sequence: self.sequence,
            sender,
            device,
            message,
            kind,
            payload: payload_digest(self.envelope_digest, self.mls_digest),
            chain: self.chain,
            accepted_at: self.accepted_at,
        }
    }
}
