//! What an MLSMessage says in clear before its content (RFC 9420 section 6): form, group, epoch, authenticated data.
//!
//! Deliberately absent: everything a conversation does not carry, that is proposals of their own, encrypted handshakes,
//! application data in clear, senders from outside the group. They are refused here.

use bytes::Bytes;

use super::reader::Reader;
use super::{Form, Header, InvalidMls};
use crate::envelope::{Epoch, Generation};
use crate::ids::ConversationId;

/// ProtocolVersion mls10.
pub(super) const VERSION_MLS10: u16 = 1;

/// WireFormat (RFC 9420 section 17.2).
pub(super) const WIRE_PUBLIC: u16 = 1;
pub(super) const WIRE_PRIVATE: u16 = 2;
pub(super) const WIRE_WELCOME: u16 = 3;
pub(super) const WIRE_KEY_PACKAGE: u16 = 5;

/// ContentType (RFC 9420 section 6).
const CONTENT_APPLICATION: u8 = 1;
const CONTENT_COMMIT: u8 = 3;

/// SenderType (RFC 9420 section 6).
const SENDER_MEMBER: u8 = 1;
const SENDER_NEW_MEMBER_COMMIT: u8 = 4;

/// Reads an MLSMessage's version and wire format.
pub(super) fn wire_format(reader: &mut Reader<'_>) -> Result<u16, InvalidMls> {
    if reader.u16()? != VERSION_MLS10 {
        return Err(InvalidMls("the protocol version is not mls10"));
    }
    reader.u16()
}

/// Reads an MLSMessage's header. Cheap: stops before the content.
///
/// # Errors
/// When the message is neither a PrivateMessage with application data nor a PublicMessage with a commit by a member or
/// a new member, or its group id is not one of ours.
pub fn header(mls_message: &Bytes) -> Result<Header, InvalidMls> {
    let mut reader = Reader::new(mls_message);
    match wire_format(&mut reader)? {
        WIRE_PUBLIC => public(&mut reader),
        WIRE_PRIVATE => private(&mut reader),
        _ => Err(InvalidMls("the wire format is neither public nor private message")),
    }
}

/// Reads a PublicMessage up to the commit in it.
pub(super) fn public(reader: &mut Reader<'_>) -> Result<Header, InvalidMls> {
    let (conversation, generation) = group(reader.opaque()?)?;
    let epoch = Epoch(reader.u64()?);
    let form = match reader.u8()? {
        SENDER_MEMBER => Form::MemberCommit(reader.u32()?),
        SENDER_NEW_MEMBER_COMMIT => Form::NewMemberCommit,
        _ => return Err(InvalidMls("the sender is neither a member nor a joiner")),
    };
    let authenticated_data = reader.shared()?;
    if reader.u8()? != CONTENT_COMMIT {
        return Err(InvalidMls("the public message is not a commit"));
    }
    Ok(Header { form, conversation, generation, epoch, authenticated_data })
}

/// Reads a PrivateMessage; of the ciphertext only that it is there and nothing after it.
fn private(reader: &mut Reader<'_>) -> Result<Header, InvalidMls> {
    let (conversation, generation) = group(reader.opaque()?)?;
    let epoch = Epoch(reader.u64()?);
    if reader.u8()? != CONTENT_APPLICATION {
        return Err(InvalidMls("the private message is not application data"));
    }
    let authenticated_data = reader.shared()?;
    reader.skip_opaque()?; // encrypted_sender_data
    reader.skip_opaque()?; // ciphertext
    reader.finish()?;
    Ok(Header { form: Form::PrivateApplication, conversation, generation, epoch, authenticated_data })
}

/// The two parts of a group id of ours.
fn group(id: &[u8]) -> Result<(ConversationId, Generation), InvalidMls> {
    let refused = InvalidMls("the group id is not one of ours");
    let (conversation, generation) = id.split_last_chunk::<4>().ok_or(refused)?;
    let conversation = ConversationId::try_from(conversation).map_err(|_| refused)?;
    Ok((conversation, Generation(u32::from_be_bytes(*generation))))
}
