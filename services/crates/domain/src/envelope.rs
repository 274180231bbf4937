//! What servers act on, in clear, around an MLS message they cannot read.

use bytes::Bytes;

use crate::ids::{ConversationId, DeviceId, MessageId, UserId};
use crate::time::Timestamp;

/// The generation of a conversation's MLS group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u32);

/// An epoch of an MLS group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// A place in a conversation, dense from 1; 0 stands for "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

/// What the MLS message in an envelope is. The numbers are those of `wardline.v1.MessageKind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// A PrivateMessage with application data.
    Application = 1,
    /// A commit by a member.
    Commit = 2,
    /// A commit by a device that joins (RFC 9420 section 12.4.3.2).
    ExternalCommit = 3,
}

/// How soon a message wants to be answered. The numbers are those of `wardline.v1.Urgency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Urgency {
    /// In the course of the day.
    #[default]
    Routine = 1,
    /// Soon.
    Urgent = 2,
    /// At once.
    Stat = 3,
}

/// An envelope, parsed at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Where it goes.
    pub conversation: ConversationId,
    /// Who sends it.
    pub sender: UserId,
    /// With which device.
    pub device: DeviceId,
    /// Its id.
    pub message: MessageId,
    /// The MLS group's generation.
    pub generation: Generation,
    /// The MLS epoch it was made in.
    pub epoch: Epoch,
    /// What the MLS message is.
    pub kind: MessageKind,
    /// How soon it wants to be answered.
    pub urgency: Urgency,
    /// By when an answer is wanted.
    pub respond_by: Option<Timestamp>,
    /// Not to be sequenced if accepted later than this.
    pub expires_at: Option<Timestamp>,
}

/// The bytes of a sealed message, exactly as received: hashes cover these, never a re-encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The envelope's bytes.
    pub envelope: Bytes,
    /// The MLS message's bytes.
    pub mls_message: Bytes,
}

impl Sealed {
    /// Both lengths together.
    pub fn len(&self) -> usize {
        self.envelope.len() + self.mls_message.len()
    }

    /// Whether both are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({} + {} bytes)", self.envelope.len(), self.mls_message.len())
    }
}
