//! The topics.

/// A topic; on a cluster it is called `<prefix>.<name>.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// What devices send, by conversation.
    Conversations,
    /// What devices get, by user.
    Feeds,
    /// What devices acknowledge, by conversation.
    Receipts,
    /// Revocations and deactivations, by user; compacted.
    Directory,
    /// Security decisions.
    Audit,
    /// Records that do not decode.
    DeadLetters,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Conversations, Self::Feeds, Self::Receipts, Self::Directory, Self::Audit, Self::DeadLetters];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conversations => "conversations",
            Self::Feeds => "feeds",
            Self::Receipts => "receipts",
            Self::Directory => "directory",
            Self::Audit => "audit",
            Self::DeadLetters => "deadletters",
        }
    }

    /// Its number in stored marks; never changes.
    pub const fn number(self) -> u32 {
        match self {
            Self::Conversations => 1,
            Self::Feeds => 2,
            Self::Receipts => 3,
            Self::Directory => 4,
            Self::Audit => 5,
            Self::DeadLetters => 6,
        }
    }

    /// Whether only the last record of each key is kept.
    pub const fn compacted(self) -> bool {
        matches!(self, Self::Directory)
    }
}

/// A partition of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// The topic.
    pub topic: Topic,
    /// From 0.
    pub index: u32,
}

impl Partition {
    /// The number that stands in feed records and marks for it: (topic << 24) | index.
    pub const fn source(self) -> u32 {
        (self.topic.number() << 24) | self.index
    }
}
