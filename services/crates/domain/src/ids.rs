//! Ids as distinct types. All are UUIDs (RFC 9562); on the wire of the public API they are strings, inside 16 bytes.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The text or bytes are not an id of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a {0}")]
pub struct InvalidId(pub &'static str);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = InvalidId;

            fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId($what))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Accepts the hyphenated form only.
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if text.len() != 36 {
                    return Err(InvalidId($what));
                }
                Uuid::try_parse(text)
                    .map(|uuid| Self(*uuid.as_bytes()))
                    .map_err(|_| InvalidId($what))
            }
        }

        impl fmt::Display for $name {
            /// For the public API. Diagnostics must not print ids of people or conversations.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_bytes(self.0).hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            /// Names the kind only, so that a stray `{:?}` tells nobody who talks to whom.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

id!(
    /// A health system.
    TenantId,
    "tenant id"
);
id!(
    /// A person, service, role or guest of a tenant.
    UserId,
    "user id"
);
id!(
    /// A device of a user.
    DeviceId,
    "device id"
);
id!(
    /// A conversation; the first 16 bytes of its MLS group id.
    ConversationId,
    "conversation id"
);
id!(
    /// A message of a device: a UUIDv7, so ids of one device rise with time.
    MessageId,
    "message id"
);

impl MessageId {
    /// Whether version and variant are those of UUIDv7 (RFC 9562 section 5.7).
    pub const fn is_v7(&self) -> bool {
        self.0[6] >> 4 == 7 && self.0[8] >> 6 == 0b10
    }

    /// Milliseconds since the Unix epoch, from the id's first 48 bits.
    pub const fn unix_millis(&self) -> u64 {
        let b = &self.0;
        u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]])
    }
}
