//! Ids: strings in the public API, 16 bytes inside.

use bytes::Bytes;
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, TenantId, UserId};

use super::Violation;

macro_rules! parse {
    ($($name:ident $bytes_name:ident $type:ident;)*) => {
        $(
            /// Parses the hyphenated form.
            pub fn $name(text: &str, field: &'static str) -> Result<$type, Violation> {
                text.parse().map_err(|_| Violation::new(field, "must be a UUID in hyphenated form"))
            }

            /// Parses 16 bytes of a record or link frame.
            pub fn $bytes_name(bytes: &[u8], field: &'static str) -> Result<$type, Violation> {
                $type::try_from(bytes).map_err(|_| Violation::new(field, "must be 16 bytes"))
            }
        )*
    };
}

parse! {
    tenant tenant_bytes TenantId;
    user user_bytes UserId;
    device device_bytes DeviceId;
    conversation conversation_bytes ConversationId;
    message message_bytes MessageId;
}

/// Parses 32 bytes.
pub fn digest(bytes: &[u8], field: &'static str) -> Result<Digest, Violation> {
    Digest::try_from(bytes).map_err(|_| Violation::new(field, "must be 32 bytes"))
}

/// 16 bytes for a record or link frame.
pub fn bytes16(id: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(id)
}

/// 32 bytes for a record or frame.
pub fn bytes32(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// Parses a `request_id`.
pub fn request(text: &str, field: &'static str) -> Result<[u8; 16], Violation> {
    text.parse::<UserId>()
        .map(|id| *id.as_bytes())
        .map_err(|_| Violation::new(field, "must be a UUID in hyphenated form"))
}
