//! A device's way to its owner: found, opened, and found again when it ends.
//!
//! Deliberately absent: the device's stream.

use tokio::time::Instant;
use wardline_domain::Position;
use wardline_proto::internal::v1::connect_response::Frame as Down;
use wardline_proto::internal::v1::{LinkEndReason, LinkEnded, LinkOpen, LinkOpened};
use wardline_proto::reason::Reason;
use wardline_registry::Owner;

use super::Edge;
use super::links::Lane;
use crate::backoff::Backoff;

/// Frames that may wait for a device beyond its window: receipts and the like.
const SPARE_FRAMES: usize = 256;

/// Why an attachment is not, or no longer, open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Find the owner again.
    Owner,
    /// The stream ends with this.
    For(Reason),
}

/// What an owner's last word means for the stream.
pub(crate) fn lost(ended: &LinkEnded) -> Lost {
    match LinkEndReason::try_from(ended.reason) {
        Ok(LinkEndReason::Revoked) => Lost::For(Reason::DeviceRevoked),
        Ok(LinkEndReason::Replaced) => Lost::For(Reason::AttachmentReplaced),
        Ok(LinkEndReason::CursorInvalid) => Lost::For(Reason::CursorInvalid),
        Ok(LinkEndReason::NotOwner | LinkEndReason::Unspecified) | Err(_) => Lost::Owner,
    }
}

impl Edge {
    /// Opens an attachment, however often it takes; `until`: then the stream ends with UNAVAILABLE.
    pub(crate) async fn route(&self, open: LinkOpen, until: Option<Instant>) -> Result<Lane, Reason> {
        let mut backoff = Backoff::new(&self.owner.options.timings);
        let mut refused = None;
        loop {
            if let Some(owner) = self.locate(open.partition, refused.as_ref()).await {
                match self.open_at(&owner, open.clone()).await {
                    Ok(lane) => return Ok(lane),
                    Err(Lost::For(reason)) => return Err(reason),
                    Err(Lost::Owner) => refused = Some(owner),
                }
            } else {
                // Whoever refused may have taken the partition since.
                refused = None;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Reason::Unavailable);
            }
            backoff.pause().await;
        }
    }

    async fn open_at(&self, owner: &Owner, mut open: LinkOpen) -> Result<Lane, Lost> {
        let partition = open.partition;
        open.min_term = self.owners.term(partition).as_u64();
        let link = self.links.to(&owner.address).await.map_err(|_| Lost::Owner)?;
        let queue = open.window_events as usize + SPARE_FRAMES;
        let opening = async {
            let mut lane = link.open(open, queue).await.map_err(|_| Lost::Owner)?;
            match lane.down.recv().await {
                Some(Down::Opened(LinkOpened { term })) if self.owners.saw(partition, Position::from_u64(term)) => {
                    Ok(lane)
                }
                Some(Down::Ended(ended)) => Err(lost(&ended)),
                Some(Down::Opened(_) | Down::Down(_)) | None => Err(Lost::Owner),
            }
        };
        let patience = self.owner.options.timings.open_timeout;
        tokio::time::timeout(patience, opening).await.unwrap_or(Err(Lost::Owner))
    }
}
