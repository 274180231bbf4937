//! What people say: the plaintext inside an MLS application message (`wardline.content.v1.Content`).
//!
//! Deliberately absent: attachments outside the message. What is small travels sealed inside it.

use std::fmt;

use prost::Message as _;
use uuid::Uuid;
use wardline_domain::Timestamp;
use wardline_domain::envelope::Urgency;
use wardline_proto::content::v1 as wire;
use wardline_proto::convert::time;

use crate::error::Error;

/// The largest attachment that travels inside its message, in bytes.
pub(crate) const MAX_INLINE_ATTACHMENT_BYTES: usize = 64 * 1024;

/// What stays the same when content is sealed again under another message id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub(crate) [u8; 16]);

impl ContentId {
    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentId(…)")
    }
}

/// What a message says.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// Text.
    Text {
        /// UTF-8.
        text: String,
        /// What it replies to.
        reply_to: Option<ContentId>,
    },
    /// A small file.
    Attachment(Attached),
    /// A body that this version does not know.
    Unknown,
}

/// A small file, opened.
#[derive(Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub file_name: String,
    /// Its media type.
    pub media_type: String,
    /// Its bytes, in clear.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Body {
    /// Lengths only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text, .. } => write!(f, "Text({} bytes)", text.len()),
            Self::Attachment(file) => file.fmt(f),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

impl fmt::Debug for Attached {
    /// Lengths only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attached({} bytes)", self.bytes.len())
    }
}

impl Body {
    /// Its text, when it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// What to send, and how urgently.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What it says.
    pub body: Body,
    /// How soon it wants to be answered; in clear.
    pub urgency: Urgency,
    /// By when an answer is wanted; in clear.
    pub respond_by: Option<Timestamp>,
    /// Not to be sequenced if accepted later than this; in clear.
    pub expires_at: Option<Timestamp>,
}

impl Outgoing {
    /// A routine text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Body::Text { text: text.into(), reply_to: None })
    }

    /// A routine attachment.
    pub fn attachment(file_name: impl Into<String>, media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self::new(Body::Attachment(Attached { file_name: file_name.into(), media_type: media_type.into(), bytes }))
    }

    /// Routine content.
    pub const fn new(body: Body) -> Self {
        Self { body, urgency: Urgency::Routine, respond_by: None, expires_at: None }
    }
}

/// Content as it is stored: the id, and the plaintext's bytes.
pub(crate) struct Plain {
    pub(crate) id: ContentId,
    pub(crate) bytes: Vec<u8>,
}

/// Serializes content under a new id.
pub(crate) fn encode(id: ContentId, now: Timestamp, body: &Body) -> Result<Plain, Error> {
    let body = match body {
        Body::Text { text, reply_to } => wire::content::Body::Text(wire::Text {
            text: text.clone(),
            reply_to: reply_to.map(|id| id.to_string()).unwrap_or_default(),
        }),
        Body::Attachment(file) => wire::content::Body::Attachment(crate::mls::attachment::seal(file)?),
        Body::Unknown => return Err(Error::Invalid("content of an unknown kind cannot be sent")),
    };
    let content = wire::Content { content_id: id.to_string(), create_time: Some(time::to_wire(now)), body: Some(body) };
    Ok(Plain { id, bytes: content.encode_to_vec() })
}

/// The id of received plaintext; `None` when it is not Content.
pub(crate) fn id_of(plaintext: &[u8]) -> Option<ContentId> {
    let content = wire::Content::decode(plaintext).ok()?;
    Uuid::try_parse(&content.content_id).ok().map(|id| ContentId(*id.as_bytes()))
}

/// Reads stored plaintext. What does not decode, verify or is not known is [`Body::Unknown`].
pub(crate) fn decode(plaintext: &[u8]) -> Body {
    match wire::Content::decode(plaintext).ok().and_then(|content| content.body) {
        Some(wire::content::Body::Text(text)) => {
            let reply_to = Uuid::try_parse(&text.reply_to).ok().map(|id| ContentId(*id.as_bytes()));
            Body::Text { text: text.text, reply_to }
        }
        Some(wire::content::Body::Attachment(sealed)) => {
            crate::mls::attachment::open(&sealed).map_or(Body::Unknown, Body::Attachment)
        }
        None => Body::Unknown,
    }
}
