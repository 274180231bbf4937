//! The layer that turns `authorization: Bearer …` into a [`crate::Caller`] in the request's extensions.

use std::sync::Arc;

use wardline_proto::reason::Reason;
use wardline_registry::Registry;

use crate::{Caller, Clock, revocations::Revocations, session::SessionKeys};

/// What a call is authenticated against. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    /// Verifies tokens.
    pub keys: Arc<SessionKeys>,
    /// Refuses the revoked.
    pub revocations: Revocations,
    /// Refuses sessions that were ended; its absence ends none.
    pub registry: Arc<dyn Registry>,
    /// Tells the time.
    pub clock: Clock,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authenticator")
    }
}

#[allow(clippy::todo, unused_variables)]
impl Authenticator {
    /// The caller that a token speaks for, if it may still call. Also used inside streams, to renew.
    pub async fn authenticate(&self, token: &str) -> Result<Caller, Reason> {
        todo!()
    }
}

/// A tower layer for tonic servers: every request of the services under it carries a [`Caller`] or is answered with
/// UNAUTHENTICATED before it reaches them.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    /// Against what.
    pub authenticator: Authenticator,
    /// Full method paths (`/wardline.v1.SessionService/CreateSession`) that need no session.
    pub open: &'static [&'static str],
}
