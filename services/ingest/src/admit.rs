//! Pure checks of a sealed message: sizes, sender, and that the MLS message carries what the envelope declares.

use std::time::Duration;

use wardline_domain::conversation::{MESSAGE_ID_MAX_AGE_MILLIS, MESSAGE_ID_MAX_LEAD_MILLIS};
use wardline_domain::envelope::{Envelope, MessageKind, Sealed};
use wardline_domain::mls::{self, Form};
use wardline_domain::{Digest, Timestamp};
use wardline_proto::convert::envelope as wire_envelope;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::Refusal;
use wardline_runtime::caller::DeviceCaller;

use crate::MAX_MESSAGE_BYTES;

/// Which RPC the message came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Send and Publish.
    Content,
    /// Commit.
    Handshake,
}

/// A message that is well-formed, the caller's own, and what its envelope says it is.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    pub(crate) envelope: Envelope,
    pub(crate) sealed: Sealed,
}

/// Checks what needs nothing but the message and its caller.
pub(crate) fn admit(sealed: Option<v1::Sealed>, caller: &DeviceCaller, door: Door) -> Result<Admitted, Refusal> {
    let sealed = sealed.ok_or_else(|| Refusal::field("sealed", "is required"))?;
    if sealed.envelope.len() + sealed.mls_message.len() > MAX_MESSAGE_BYTES {
        return Err(Refusal::new(Reason::TooLarge).with("max_bytes", MAX_MESSAGE_BYTES.to_string()));
    }
    let envelope = wire_envelope::decode(&sealed.envelope)?;
    if envelope.sender != caller.user || envelope.device != caller.device {
        return Err(Refusal::new(Reason::SenderMismatch));
    }
    match (door, envelope.kind) {
        (Door::Content, MessageKind::Application)
        | (Door::Handshake, MessageKind::Commit | MessageKind::ExternalCommit) => {}
        (Door::Content, _) => return Err(Refusal::field("sealed.envelope.kind", "must be APPLICATION here")),
        (Door::Handshake, _) => return Err(Refusal::field("sealed.envelope.kind", "must be a commit here")),
    }
    let sealed = Sealed { envelope: sealed.envelope, mls_message: sealed.mls_message };
    agrees(&envelope, &sealed)?;
    Ok(Admitted { envelope, sealed })
}

/// The MLS header says the same as the envelope, and binds it.
fn agrees(envelope: &Envelope, sealed: &Sealed) -> Result<(), Refusal> {
    let header = mls::header(&sealed.mls_message)?;
    let form = matches!(
        (envelope.kind, header.form),
        (MessageKind::Application, Form::PrivateApplication)
            | (MessageKind::Commit, Form::MemberCommit(_))
            | (MessageKind::ExternalCommit, Form::NewMemberCommit)
    );
    let field = if !form {
        "kind"
    } else if header.conversation != envelope.conversation {
        "conversation_id"
    } else if header.generation != envelope.generation {
        "generation"
    } else if header.epoch != envelope.epoch {
        "epoch"
    } else if header.authenticated_data[..] != Digest::of(&sealed.envelope).as_bytes()[..] {
        "authenticated_data"
    } else {
        return Ok(());
    };
    Err(Refusal::new(Reason::EnvelopeMismatch).with("field", field))
}

/// Whether the fold would accept the record's times when it is stamped with `now`.
pub(crate) fn in_time(envelope: &Envelope, now: Timestamp) -> Result<(), Refusal> {
    let made = Timestamp::from_micros(envelope.message.unix_millis().saturating_mul(1000));
    if now.since(made) > Duration::from_millis(MESSAGE_ID_MAX_AGE_MILLIS)
        || made.since(now) > Duration::from_millis(MESSAGE_ID_MAX_LEAD_MILLIS)
    {
        return Err(Refusal::new(Reason::MessageIdTime));
    }
    if envelope.expires_at.is_some_and(|expires| now > expires) {
        return Err(Refusal::new(Reason::Expired));
    }
    Ok(())
}
