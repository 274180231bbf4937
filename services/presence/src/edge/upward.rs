//! Frames on their way from a device to its owner.
//!
//! While the owner is sought nothing is queued, so that a device cannot fill the memory meanwhile: what counts is repeated
//! to the next owner ([`super::device`] keeps it), and the rest is a hint.
//!
//! Deliberately absent: what is repeated.

use std::collections::VecDeque;

use wardline_proto::v1::AttachRequest;
use wardline_proto::v1::attach_request::Frame;

/// The queue. Closed at first.
#[derive(Debug, Default)]
pub(super) struct Upward {
    open: bool,
    frames: VecDeque<AttachRequest>,
}

impl Upward {
    /// There is an owner.
    pub(super) const fn open(&mut self) {
        self.open = true;
    }

    /// The owner is gone, and what was meant for it.
    pub(super) fn close(&mut self) {
        self.open = false;
        self.frames.clear();
    }

    /// Queues a frame, if there is an owner.
    pub(super) fn push(&mut self, frame: Frame) {
        if self.open {
            self.frames.push_back(AttachRequest { frame: Some(frame) });
        }
    }

    pub(super) fn pop(&mut self) -> Option<AttachRequest> {
        self.frames.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use wardline_proto::v1::AttachActivity;

    use super::*;

    /// The law: whatever a device sends while there is no owner takes no memory; what it sends after that goes up in order.
    #[test]
    fn nothing_is_queued_without_an_owner() {
        let mut upward = Upward::default();
        for _ in 0..2 {
            for _ in 0..1000 {
                upward.push(Frame::Activity(AttachActivity {}));
            }
            assert!(upward.is_empty());
            upward.open();
            upward.push(Frame::Activity(AttachActivity {}));
            assert!(upward.pop().is_some() && upward.is_empty());
            upward.push(Frame::Activity(AttachActivity {}));
            upward.close();
            assert!(upward.is_empty());
        }
    }
}
