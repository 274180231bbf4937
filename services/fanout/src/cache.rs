//! Heads and rosters in memory, bounded by bytes over all partitions of the process.
//!
//! An entry belongs to one assignment of a partition: what an earlier assignment left is never read again, because another
//! process may have folded on meanwhile. Losing an entry costs a read and nothing else.
//!
//! Deliberately absent: anything not yet written. An entry is put in when its batch has been folded, and read again only
//! after that batch's effects, its head among them, are done.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use wardline_domain::ConversationId;
use wardline_domain::conversation::Conversation;

use crate::feed_records::Grouping;

/// A conversation, and its audience by feeds partition when that was last asked for.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) conversation: Conversation,
    pub(crate) grouping: Option<Arc<Grouping>>,
}

type Key = (u64, ConversationId);

/// All partitions' entries.
pub(crate) struct Cache {
    entries: quick_cache::sync::Cache<Key, Entry, ByBytes>,
    assignments: AtomicU64,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} conversations)", self.entries.len())
    }
}

/// One assignment's entries.
#[derive(Debug)]
pub(crate) struct Share {
    cache: Arc<Cache>,
    assignment: u64,
}

impl Cache {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        // A guess at the number of entries sizes the table; a wrong one costs a little memory or a resize.
        let estimated = usize::try_from(bytes / 4096).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        let entries = quick_cache::sync::Cache::with_weighter(estimated, bytes, ByBytes);
        Arc::new(Self { entries, assignments: AtomicU64::new(0) })
    }

    /// An empty share for a partition assigned just now.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { cache: Arc::clone(self), assignment: self.assignments.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Share {
    pub(crate) fn get(&self, conversation: ConversationId) -> Option<Entry> {
        self.cache.entries.get(&(self.assignment, conversation))
    }

    pub(crate) fn put(&self, entry: Entry) {
        self.cache.entries.insert((self.assignment, entry.conversation.id), entry);
    }

    /// About how many bytes all partitions' entries take.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.entries.weight()
    }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Entry> for ByBytes {
    /// About what an entry takes. Measured by count: a leaf lies in the roster and its indexes, a sender in the head.
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        const ENTRY: u64 = 1024;
        const LEAF: u64 = 400;
        const SENDER: u64 = 64;
        let senders = entry.conversation.head.as_ref().map_or(0, |head| head.newest.len());
        ENTRY + LEAF * entry.conversation.roster.leaves().len() as u64 + SENDER * senders as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u8) -> Entry {
        Entry { conversation: Conversation::absent(ConversationId::from_bytes([id; 16])), grouping: None }
    }

    #[test]
    fn a_later_assignment_reads_nothing_of_an_earlier_one() {
        let cache = Cache::new(1 << 20);
        let (first, id) = (cache.share(), ConversationId::from_bytes([1; 16]));
        first.put(entry(1));
        assert!(first.get(id).is_some());
        assert!(cache.share().get(id).is_none());
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let cache = Cache::new(64 << 10);
        let share = cache.share();
        for id in 0..=255 {
            share.put(entry(id));
        }
        assert!(cache.entries.weight() <= 64 << 10);
        assert!(!cache.entries.is_empty());
    }
}
