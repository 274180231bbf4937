//! Finding a partition's owner: what is known here, the registry, and any instance that answers; the highest term counts,
//! and a lower one than seen before is refused.
//!
//! Deliberately absent: certainty. The owner itself says whether it is one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt as _;
use wardline_domain::Position;
use wardline_proto::internal::v1::LocateRequest;
use wardline_registry::Owner;

use super::Edge;

/// Instances asked at once.
const ASKED_AT_ONCE: usize = 4;

/// The highest term seen of each partition.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<HashMap<u32, Position>>);

impl Owners {
    /// The highest term seen; zero for none.
    pub(crate) fn term(&self, partition: u32) -> Position {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied().unwrap_or_default()
    }

    /// An owner opened an attachment. False when its term is over.
    pub(crate) fn saw(&self, partition: u32, term: Position) -> bool {
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = terms.entry(partition).or_default();
        let current = term >= *known;
        *known = term.max(*known);
        current
    }
}

impl Edge {
    /// Who probably owns the partition. `refused`: who just said it does not.
    pub(crate) async fn locate(&self, partition: u32, refused: Option<&Owner>) -> Option<Owner> {
        let least = self.owners.term(partition);
        let fits = |owner: &Owner| owner.term >= least && refused != Some(owner) && !owner.address.is_empty();
        if let Some(term) = self.owner.term(partition) {
            let owner = Owner { term, address: self.owner.options.link_address.clone() };
            if fits(&owner) {
                return Some(owner);
            }
        }
        if let Some(owner) = self.owner.registry.owner(partition).await.ok().flatten().filter(fits) {
            return Some(owner);
        }
        let asked = self.owner.options.peers.iter().cloned().map(|peer| self.ask(peer, partition));
        let answers = futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        let answers: Vec<Option<Owner>> = answers.collect().await;
        answers.into_iter().flatten().filter(fits).max_by_key(|owner| owner.term)
    }

    async fn ask(&self, peer: String, partition: u32) -> Option<Owner> {
        let mut client = self.links.client(&peer).ok()?;
        let asking = client.locate(LocateRequest { partition });
        let answer =
            tokio::time::timeout(self.owner.options.timings.open_timeout, asking).await.ok()?.ok()?.into_inner();
        Some(Owner { term: Position::from_u64(answer.term), address: answer.address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A term that is over is refused, whoever offers it.
    #[test]
    fn a_lower_term_is_refused() {
        let owners = Owners::default();
        assert!(owners.saw(3, Position::from_u64(9)));
        assert!(!owners.saw(3, Position::from_u64(8)));
        assert!(owners.saw(3, Position::from_u64(9)));
        assert!(owners.saw(4, Position::from_u64(1)));
        assert_eq!(owners.term(3), Position::from_u64(9));
    }
}
