//! Revoked devices and deactivated users, folded from the compacted `directory` topic by every role that answers devices.

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use wardline_domain::{DeviceId, Failure, Timestamp, UserId};
use wardline_log::EventLog;
use wardline_proto::reason::Reason;

/// What the `directory` topic says so far. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Revocations {}

/// A device or user whose access ended just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A device was revoked.
    Device(UserId, DeviceId),
    /// A user was deactivated.
    User(UserId),
}

#[allow(clippy::todo, unused_variables)]
impl Revocations {
    /// Follows the topic until `stop`. Answers once everything that was in the topic at the call has been folded.
    pub async fn follow(log: Arc<dyn EventLog>, stop: CancellationToken) -> Result<Self, Failure> {
        todo!()
    }

    /// Whether the device (and its user) may still act: `Err(DeviceRevoked | UserDeactivated)`.
    pub fn check(&self, user: UserId, device: DeviceId) -> Result<(), Reason> {
        todo!()
    }

    /// Whether the user may still act.
    pub fn check_user(&self, user: UserId) -> Result<(), Reason> {
        todo!()
    }

    /// Tells of every end from now on. A receiver that lags must check all it holds.
    pub fn subscribe(&self) -> broadcast::Receiver<Ended> {
        todo!()
    }

    /// When the topic's newest record folded so far was appended.
    pub fn as_of(&self) -> Option<Timestamp> {
        todo!()
    }
}
