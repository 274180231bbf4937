//! Frames from owner to edge.
//!
//! Deliberately absent: when to send them.

use std::time::SystemTime;

use prost::Message as _;
use tokio::sync::mpsc::OwnedPermit;
use wardline_domain::{Position, UserId};
use wardline_proto::internal::v1::connect_response::Frame;
use wardline_proto::internal::v1::{ConnectResponse, LinkEndReason, LinkEnded, LinkOpened};
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_proto::v1::{self, event::Body};

use super::attachment::{Delivered, Item, Sent};
use super::ring::Row;
use crate::cursor;

/// Events gathered for one frame, with room for it on the link.
#[derive(Debug)]
pub(crate) struct Batch {
    permit: OwnedPermit<ConnectResponse>,
    events: Vec<v1::Event>,
    pub(crate) bytes: usize,
}

impl Batch {
    pub(crate) const fn new(permit: OwnedPermit<ConnectResponse>) -> Self {
        Self { permit, events: Vec::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, event: v1::Event, bytes: usize) {
        self.events.push(event);
        self.bytes += bytes;
    }

    /// Sends what was gathered, if anything.
    pub(crate) fn send(self, number: u64) {
        if !self.events.is_empty() {
            self.permit.send(events(number, self.events));
        }
    }
}

/// What a row weighs in the window.
pub(crate) fn item(row: &Row, body: Option<&Body>) -> Item {
    Item {
        position: row.position,
        previous: row.previous,
        bytes: body.map_or(0, body_bytes),
        delivered: body.and_then(|_| row.event.delivered()).map(|delivered| Delivered { sent: sent(row), ..delivered }),
    }
}

/// The clock is asked only for what is sampled.
fn sent(row: &Row) -> Option<Sent> {
    row.trace.map(|from| Sent { from, at: SystemTime::now() })
}

/// A row for its device; without body when it is for others.
pub(crate) fn event(user: UserId, row: &Row, body: Option<Body>) -> v1::Event {
    v1::Event {
        cursor: cursor::encode(user, row.position),
        previous: cursor::encode_optional(user, row.previous),
        body,
    }
}

pub(crate) fn events(number: u64, events: Vec<v1::Event>) -> ConnectResponse {
    down(number, Down::Events(v1::AttachEvents { events }))
}

pub(crate) fn receipts(number: u64, watermarks: Vec<v1::Watermark>) -> ConnectResponse {
    down(number, Down::Receipts(v1::AttachReceipts { watermarks }))
}

pub(crate) fn caught_up(number: u64) -> ConnectResponse {
    down(number, Down::CaughtUp(v1::AttachCaughtUp {}))
}

pub(crate) fn expired(number: u64, user: UserId, resume: Position) -> ConnectResponse {
    down(number, Down::CursorExpired(v1::AttachCursorExpired { resume_cursor: cursor::encode(user, resume) }))
}

pub(crate) fn opened(number: u64, term: Position) -> ConnectResponse {
    frame(number, Frame::Opened(LinkOpened { term: term.as_u64() }))
}

pub(crate) fn ended(number: u64, reason: LinkEndReason) -> ConnectResponse {
    frame(number, Frame::Ended(LinkEnded { reason: reason as i32 }))
}

fn down(number: u64, down: Down) -> ConnectResponse {
    frame(number, Frame::Down(v1::AttachResponse { frame: Some(down) }))
}

fn frame(number: u64, frame: Frame) -> ConnectResponse {
    ConnectResponse { attachments: vec![number], frame: Some(frame) }
}

fn body_bytes(body: &Body) -> usize {
    match body {
        Body::Message(message) => message.encoded_len(),
        Body::Welcome(welcome) => welcome.encoded_len(),
        Body::Rejected(_) | Body::ConversationChanged(_) | Body::DeviceChanged(_) | Body::KeyPackagesLow(_) => 128,
    }
}
