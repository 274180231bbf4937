//! One device's place in its feed, as a state machine without I/O: what may be sent next, what is unacknowledged, and when
//! the device passes from the store to the live ring and back.
//!
//! ```text
//!            hand_over                 window full
//!   Behind ────────────▶ Live ─────────────────────────▶ Full
//!     ▲  ▲ ◀──────────── (a break, no room on the link)    │ acknowledged down to half
//!     │  └─────────────────────────────────────────────────┘
//!     │ resumed          chain broken for good
//!     └────────── Expired ◀── Behind
//! ```
//! Laws (held by the property test below): what is sent is the feed from the cursor on, in order, nothing twice, nothing
//! left out; never more than the window is unacknowledged. A device without a cursor starts at the oldest row kept, so its
//! first event may name any `previous`.
//!
//! Deliberately absent: where rows come from, their bodies, time.

use std::collections::VecDeque;
use std::time::SystemTime;

use wardline_domain::envelope::Sequence;
use wardline_domain::{ConversationId, Position, Timestamp, UserId};
use wardline_log::trace::TraceParent;

/// How much may be unacknowledged. One event is always let through, however large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Events.
    pub(crate) events: usize,
    /// Bytes of their bodies.
    pub(crate) bytes: usize,
}

/// What an acknowledgement of an event says: a message reached the device, or it joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// The conversation.
    pub(crate) conversation: ConversationId,
    /// The sequence.
    pub(crate) sequence: Sequence,
    /// Who sent the message, and is to be told. `None` for a Welcome: what lies at or below its sequence was before the
    /// device, and is never said to be delivered to it.
    pub(crate) sender: Option<UserId>,
    /// When ingest accepted the message, if it was pushed as it happened: what a device catches up with is as old as its
    /// absence was long.
    pub(crate) accepted_at: Option<Timestamp>,
    /// The span that it was sent under, if that is sampled.
    pub(crate) sent: Option<Sent>,
}

/// The sending of an event, for the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The span that it comes from.
    pub(crate) from: TraceParent,
    /// When it was sent.
    pub(crate) at: SystemTime,
}

/// An event that could be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its place.
    pub(crate) position: Position,
    /// The place of the user's event before it.
    pub(crate) previous: Option<Position>,
    /// How large it is.
    pub(crate) bytes: usize,
    /// What its acknowledgement will say; `None` when it is neither message nor Welcome, or not for this device.
    pub(crate) delivered: Option<Delivered>,
}

/// Where the device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There may be more in the store or the ring.
    Behind,
    /// All has been sent; what is published next is offered at once.
    Live,
    /// The window is used up.
    Full,
    /// Events are gone: nothing is sent until `resume` is acknowledged.
    Expired {
        /// The place to resume at.
        resume: Position,
    },
}

/// What became of a published event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Send it now.
    Send,
    /// Not now; it will come by catching up, or has been sent.
    Hold,
    /// Not now: the device fell behind with this event, somebody must begin to catch up.
    FellBehind,
}

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    /// The rows of the page to send.
    pub(crate) from: usize,
    /// Up to, not including.
    pub(crate) to: usize,
    /// What comes after them.
    pub(crate) then: Then,
}

/// What comes after a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Go on.
    Continue,
    /// A row is missing between the last one and the next: read again; when it stays so, events are gone.
    Broken,
    /// Nothing more until an acknowledgement, or for good.
    Stop,
}

/// What an acknowledgement came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// Known already.
    Nothing,
    /// These reached the device. `wake`: there is room again, somebody must go on catching up.
    Through {
        /// Messages among them.
        delivered: Vec<Delivered>,
        /// Whether to go on catching up.
        wake: bool,
    },
    /// The device accepts that events are gone. Call [`Attachment::resumed`] when that is recorded.
    Resume(Position),
}

/// The cursor was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotSent;

/// One device's place in its feed.
#[derive(Debug)]
pub(crate) struct Attachment {
    phase: Phase,
    /// The last event sent.
    sent: Option<Position>,
    /// All of the feed up to here has been sent; at least `sent`.
    seen: Option<Position>,
    /// A place the feed is known to have reached: when a read to the end does not meet it, rows are gone.
    reaches: Option<Position>,
    acknowledged: Option<Position>,
    window: Window,
    in_flight: VecDeque<Item>,
    bytes_in_flight: usize,
}

impl Attachment {
    /// Starts behind `sent`. `reaches`: the feed's head. `in_flight`: what was sent above `acknowledged` by somebody else.
    pub(crate) fn new(
        sent: Option<Position>,
        acknowledged: Option<Position>,
        reaches: Option<Position>,
        in_flight: Vec<Item>,
        window: Window,
    ) -> Self {
        let bytes_in_flight = in_flight.iter().map(|item| item.bytes).sum();
        Self {
            phase: Phase::Behind,
            sent,
            seen: sent,
            reaches: reaches.filter(|_| sent.is_some()),
            acknowledged,
            window,
            in_flight: in_flight.into(),
            bytes_in_flight,
        }
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    /// How many events are unacknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.in_flight.len()
    }

    /// Everything up to here has been sent.
    pub(crate) const fn seen(&self) -> Option<Position> {
        self.seen
    }

    /// An event was published. Sent at once to a live device whose window has room.
    pub(crate) fn offer(&mut self, item: Item) -> Offer {
        if self.phase != Phase::Live || self.seen >= Some(item.position) {
            return Offer::Hold;
        }
        if !self.follows(&item) {
            self.phase = Phase::Behind;
            return Offer::FellBehind;
        }
        if !self.has_room(item.bytes) {
            self.phase = Phase::Full;
            return Offer::Hold;
        }
        self.take(item);
        Offer::Send
    }

    /// A live device could not be offered something. Answers whether somebody must begin to catch up.
    pub(crate) fn fall_behind(&mut self) -> bool {
        let live = self.phase == Phase::Live;
        if live {
            self.phase = Phase::Behind;
        }
        live
    }

    /// Rows above [`Attachment::seen`] in order, verified before any is sent. `end`: there are no more rows of this user up
    /// to and including it.
    pub(crate) fn page(&mut self, rows: &[Item], end: Option<Position>) -> Page {
        if self.phase != Phase::Behind {
            return Page { from: 0, to: 0, then: Then::Stop };
        }
        let from = rows.partition_point(|row| self.seen >= Some(row.position));
        let mut to = from;
        for row in &rows[from..] {
            if !self.follows(row) {
                return Page { from, to, then: Then::Broken };
            }
            if !self.has_room(row.bytes) {
                self.phase = Phase::Full;
                return Page { from, to, then: Then::Stop };
            }
            self.take(*row);
            to += 1;
        }
        if let Some(end) = end {
            if self.reaches.is_some_and(|reaches| reaches <= end && self.sent < Some(reaches)) {
                return Page { from, to, then: Then::Broken };
            }
            self.seen = self.seen.max(Some(end));
        }
        Page { from, to, then: Then::Continue }
    }

    /// The caller knows that nothing has been published above [`Attachment::seen`], and keeps it so meanwhile. Answers
    /// whether the device is live now.
    pub(crate) fn hand_over(&mut self) -> bool {
        if self.phase == Phase::Behind {
            self.phase = Phase::Live;
        }
        self.phase == Phase::Live
    }

    /// Rows are gone for good.
    pub(crate) fn expire(&mut self, resume: Position) {
        self.phase = Phase::Expired { resume };
    }

    /// The gap up to `at` is recorded; goes on behind it.
    pub(crate) fn resumed(&mut self, at: Position) {
        if !matches!(self.phase, Phase::Expired { .. }) {
            return;
        }
        self.phase = Phase::Behind;
        self.sent = Some(at);
        self.seen = Some(at);
        self.reaches = None;
        self.acknowledged = Some(at);
        self.in_flight.clear();
        self.bytes_in_flight = 0;
    }

    /// Everything up to `at` is safe on the device.
    pub(crate) fn acknowledge(&mut self, at: Position) -> Result<Acknowledged, NotSent> {
        if self.acknowledged >= Some(at) {
            return Ok(Acknowledged::Nothing);
        }
        if let Phase::Expired { resume } = self.phase
            && at <= resume
            && self.sent < Some(at)
        {
            return Ok(Acknowledged::Resume(at));
        }
        let through = self.in_flight.binary_search_by_key(&at, |item| item.position).map_err(|_| NotSent)?;
        let items: Vec<Item> = self.in_flight.drain(..=through).collect();
        self.bytes_in_flight -= items.iter().map(|item| item.bytes).sum::<usize>();
        self.acknowledged = Some(at);
        let wake = self.phase == Phase::Full
            && self.in_flight.len() <= self.window.events / 2
            && self.bytes_in_flight <= self.window.bytes / 2;
        if wake {
            self.phase = Phase::Behind;
        }
        Ok(Acknowledged::Through { delivered: items.iter().filter_map(|item| item.delivered).collect(), wake })
    }

    fn follows(&self, item: &Item) -> bool {
        self.sent.is_none() || item.previous == self.sent
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < self.window.events
                && self.bytes_in_flight.saturating_add(bytes) <= self.window.bytes)
    }

    fn take(&mut self, item: Item) {
        self.sent = Some(item.position);
        self.seen = Some(item.position);
        self.bytes_in_flight += item.bytes;
        self.in_flight.push_back(item);
    }
}
