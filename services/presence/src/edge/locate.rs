//! Finding a partition's owner: what is known here, the registry, and any instance that answers; the highest term counts,
//! and a lower one than seen before is refused.
//!
//! Deliberately absent: certainty. The owner itself says whether it is one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use tonic::transport::Uri;
use wardline_domain::Position;
use wardline_proto::internal::v1::LocateRequest;
use wardline_registry::Owner;

use super::Edge;

/// Instances asked at once.
const ASKED_AT_ONCE: usize = 4;

/// Instances asked in all.
const MOST_ASKED: usize = 64;
/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(1);

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
        let peers = futures::future::join_all(self.owner.options.peers.iter().map(|peer| instances(peer))).await;
        let asked = peers.into_iter().flatten().take(MOST_ASKED).map(|peer| self.ask(peer, partition));
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

/// The instances that a peer's address stands for: a name may have several addresses, and each is another instance.
async fn instances(peer: &str) -> Vec<String> {
    let named = || vec![peer.to_owned()];
    let Ok(uri) = peer.parse::<Uri>() else { return named() };
    let (Some(scheme), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else { return named() };
    let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await;
    let mut found: Vec<SocketAddr> = found.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default();
    found.sort_unstable();
    found.dedup();
    // The one behind a name is asked by the name, which its certificate has.
    if found.len() < 2 { named() } else { found.into_iter().map(|at| format!("{scheme}://{at}")).collect() }
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

    /// What names one instance, or nothing that can be found, is asked as it is written.
    #[tokio::test]
    async fn one_instance_is_asked_as_it_is_written() {
        for peer in ["http://127.0.0.1:7405", "https://[::1]:7405", "http://no-such-instance.invalid:7405", "nonsense"]
        {
            assert_eq!(instances(peer).await, [peer]);
        }
    }
}
