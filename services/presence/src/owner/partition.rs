//! A feeds partition as its owner holds it: tenure, live ring, the attached devices. One lock; nothing in here waits, so the
//! fold is never held up by a device.
//!
//! Live events go from here straight onto the links; a device that is not live is left to its own task ([`super::serve`]).
//!
//! Deliberately absent: stores, and the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wardline_domain::{DeviceId, Position, Timestamp, UserId};
use wardline_proto::internal::v1::{self as link, LinkEndReason};
use wardline_proto::v1;

use super::attachment::{Acknowledged, Attachment, Item, NotSent, Offer, Page, Phase};
use super::frames::{self, Batch};
use super::ring::{Entry, Ring, Row, addressed};
use super::tenure::{Change, Instance, Tenure};
use crate::options::{Limits, Timings};

/// An attachment at its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeatId {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    /// Unique in this run: tells an attachment from the one it replaced.
    pub(crate) serial: u64,
}

/// How an attachment is told to end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    pub(crate) token: CancellationToken,
    reason: Arc<OnceLock<LinkEndReason>>,
}

impl Ending {
    /// Ends it; the first reason counts.
    pub(crate) fn end(&self, reason: LinkEndReason) {
        // A reason that came second changes nothing.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Why; `None` when the device or the link is gone.
    pub(crate) fn reason(&self) -> Option<LinkEndReason> {
        self.reason.get().copied()
    }
}

/// An attached device.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) device: DeviceId,
    pub(crate) serial: u64,
    /// The attachment's number on its link.
    pub(crate) number: u64,
    pub(crate) out: mpsc::Sender<link::ConnectResponse>,
    pub(crate) place: Attachment,
    pub(crate) wake: Arc<Notify>,
    pub(crate) ending: Ending,
    /// Receipts told of above this have not been sent.
    pub(crate) receipts_after: Option<Option<Position>>,
    /// The device accepted that events are gone, here.
    pub(crate) resuming: Option<Position>,
    pub(crate) active_at: Option<Timestamp>,
    pub(crate) batch: Option<Batch>,
}

/// What to do next for a device that is catching up.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing, until woken.
    Wait,
    /// Tell of receipts above this.
    Receipts(Option<Position>),
    /// Record that the device passes over what is gone, up to here.
    Resume(Position),
    /// Send these.
    Ring(Vec<Row>),
    /// Read these: above the first, through the second.
    Store(Option<Position>, Position),
    /// Nothing is left: call [`Partition::hand_over`].
    HandOver,
}

/// What a batch of feeds records says to attached devices, in order.
#[derive(Debug)]
pub(crate) enum Output {
    /// An event.
    Event(Arc<Entry>),
    /// An event whose row was there already: a replay. Whoever missed it reads the store.
    Replayed(Position),
    /// A claim.
    Claim(Position, bytes::Bytes),
    /// Receipts for a user.
    Receipts(Position, UserId, Vec<v1::Watermark>),
}

/// How many devices are in each phase, and how much waits for them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Census {
    pub(crate) behind: usize,
    pub(crate) live: usize,
    pub(crate) full: usize,
    pub(crate) expired: usize,
    pub(crate) unacknowledged: usize,
    pub(crate) ring_events: usize,
    pub(crate) ring_bytes: usize,
}

impl std::ops::AddAssign for Census {
    fn add_assign(&mut self, other: Self) {
        self.behind += other.behind;
        self.live += other.live;
        self.full += other.full;
        self.expired += other.expired;
        self.unacknowledged += other.unacknowledged;
        self.ring_events += other.ring_events;
        self.ring_bytes += other.ring_bytes;
    }
}

/// A feeds partition as its owner holds it.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) index: u32,
    limits: Limits,
    timings: Timings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tenure: Tenure,
    /// Rows and feed heads are written through here.
    durable: Option<Position>,
    ring: Ring,
    users: HashMap<UserId, Vec<Seat>>,
}

impl Partition {
    /// Complete above `checkpoint`.
    pub(crate) fn new(
        index: u32,
        instance: Instance,
        checkpoint: Option<Position>,
        limits: Limits,
        timings: Timings,
    ) -> Self {
        let ring = Ring::new(checkpoint.unwrap_or_default(), limits.ring_events, limits.ring_bytes);
        let state = State { tenure: Tenure::new(instance), durable: checkpoint, ring, users: HashMap::new() };
        Self { index, limits, timings, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below leaves the state whole, so one that panicked is no reason to stop the others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The term, while this instance may serve.
    pub(crate) fn serving(&self) -> Option<Position> {
        self.lock().tenure.serving(Instant::now(), self.timings.claim_patience)
    }

    /// Ends every attachment when this instance may not serve. Answers whether it may.
    pub(crate) fn check(&self) -> bool {
        let mut state = self.lock();
        let serving = state.tenure.serving(Instant::now(), self.timings.claim_patience).is_some();
        if !serving {
            state.end_all();
        }
        serving
    }

    /// Ends every attachment.
    pub(crate) fn end_all(&self) {
        self.lock().end_all();
    }

    /// Users with an attached device among these.
    pub(crate) fn attached(&self, users: impl Iterator<Item = UserId>) -> bool {
        let state = self.lock();
        !state.users.is_empty() && users.into_iter().any(|user| state.users.contains_key(&user))
    }

    /// Rows, heads and receipts of `outputs` are written; nothing else up to `through` will be. Repeats change nothing.
    /// Answers whether an owner of before has been replaced.
    pub(crate) fn publish(&self, outputs: &[Output], through: Position) -> bool {
        let mut state = self.lock();
        let mut touched = Vec::new();
        let mut lost = false;
        for output in outputs {
            match output {
                Output::Event(entry) => {
                    if state.ring.push(Arc::clone(entry)) {
                        state.offer(entry, &self.limits, &mut touched);
                    }
                }
                Output::Replayed(position) => {
                    state.ring.reset(*position);
                    state.all_behind();
                }
                Output::Claim(position, instance) => {
                    state.flush(&mut touched);
                    if state.tenure.observe(instance, *position, Instant::now()) == Change::Lost {
                        state.end_all();
                        lost = true;
                    }
                }
                Output::Receipts(position, user, watermarks) => state.tell(*position, *user, watermarks),
            }
        }
        state.flush(&mut touched);
        state.durable = state.durable.max(Some(through));
        lost
    }

    /// Takes a device in, replaces an older attachment of it. `None` when this instance may not serve.
    pub(crate) fn open(&self, user: UserId, seat: Seat) -> Option<Position> {
        let mut state = self.lock();
        let term = state.tenure.serving(Instant::now(), self.timings.claim_patience)?;
        let seats = state.users.entry(user).or_default();
        if let Some(older) = seats.iter().position(|other| other.device == seat.device) {
            seats.swap_remove(older).ending.end(LinkEndReason::Replaced);
        }
        seats.push(seat);
        Some(term)
    }

    /// A device is gone.
    pub(crate) fn close(&self, id: SeatId) {
        let mut state = self.lock();
        let Some(seats) = state.users.get_mut(&id.user) else { return };
        seats.retain(|seat| seat.serial != id.serial);
        if seats.is_empty() {
            state.users.remove(&id.user);
        }
    }

    /// A device acknowledged.
    pub(crate) fn acknowledge(&self, id: SeatId, at: Position) -> Result<Acknowledged, NotSent> {
        let mut state = self.lock();
        let Some(seat) = state.seat(id) else { return Ok(Acknowledged::Nothing) };
        let acknowledged = seat.place.acknowledge(at)?;
        match &acknowledged {
            Acknowledged::Through { wake: true, .. } => seat.wake.notify_one(),
            Acknowledged::Resume(at) => {
                seat.resuming = Some(*at);
                seat.wake.notify_one();
            }
            Acknowledged::Through { .. } | Acknowledged::Nothing => {}
        }
        Ok(acknowledged)
    }

    /// The device is in use.
    pub(crate) fn active(&self, id: SeatId, now: Timestamp) {
        if let Some(seat) = self.lock().seat(id) {
            seat.active_at = Some(now);
        }
    }

    /// How many devices of a user are attached, and when one was last in use.
    pub(crate) fn presence(&self, user: UserId) -> (u32, Option<Timestamp>) {
        let state = self.lock();
        let seats = state.users.get(&user).map_or(&[][..], Vec::as_slice);
        let devices = u32::try_from(seats.len()).unwrap_or(u32::MAX);
        (devices, seats.iter().filter_map(|seat| seat.active_at).max())
    }

    /// Everybody attached.
    pub(crate) fn users(&self) -> Vec<UserId> {
        self.lock().users.keys().copied().collect()
    }

    /// How many there are of what is worth watching.
    pub(crate) fn census(&self) -> Census {
        let state = self.lock();
        let (ring_events, ring_bytes) = state.ring.size();
        let mut census = Census { ring_events, ring_bytes, ..Census::default() };
        for seat in state.users.values().flatten() {
            census.unacknowledged += seat.place.unacknowledged();
            match seat.place.phase() {
                Phase::Behind => census.behind += 1,
                Phase::Live => census.live += 1,
                Phase::Full => census.full += 1,
                Phase::Expired { .. } => census.expired += 1,
            }
        }
        census
    }

    /// What to do next for a device.
    pub(crate) fn next(&self, id: SeatId) -> Next {
        let mut state = self.lock();
        let durable = state.durable;
        let State { ring, users, .. } = &mut *state;
        let seat = users.get_mut(&id.user).and_then(|seats| seats.iter_mut().find(|seat| seat.serial == id.serial));
        let Some(seat) = seat else { return Next::Wait };
        if let Some(after) = seat.receipts_after.take() {
            return Next::Receipts(after);
        }
        if let (Some(at), Phase::Expired { .. }) = (seat.resuming, seat.place.phase()) {
            return Next::Resume(at);
        }
        if seat.place.phase() != Phase::Behind {
            return Next::Wait;
        }
        let seen = seat.place.seen();
        if ring.covers(seen) {
            let rows = ring.rows(id.user, seen, self.limits.page_rows);
            return if rows.is_empty() { Next::HandOver } else { Next::Ring(rows) };
        }
        durable.map_or(Next::Wait, |durable| Next::Store(seen, durable))
    }

    /// Verifies and takes rows for sending.
    pub(crate) fn page(&self, id: SeatId, items: &[Item], end: Option<Position>) -> Option<Page> {
        self.lock().seat(id).map(|seat| seat.place.page(items, end))
    }

    /// Makes a device live if nothing is left for it, and says so to it before anything live.
    pub(crate) fn hand_over(&self, id: SeatId, permit: mpsc::Permit<'_, link::ConnectResponse>) -> bool {
        let mut state = self.lock();
        let State { ring, users, .. } = &mut *state;
        let seat = users.get_mut(&id.user).and_then(|seats| seats.iter_mut().find(|seat| seat.serial == id.serial));
        let Some(seat) = seat else { return true };
        let seen = seat.place.seen();
        if seat.receipts_after.is_some() || !ring.covers(seen) || !ring.rows(id.user, seen, 1).is_empty() {
            return false;
        }
        if seat.place.hand_over() {
            permit.send(frames::caught_up(seat.number));
        }
        true
    }

    /// Rows are gone for good.
    pub(crate) fn expire(&self, id: SeatId, resume: Position) {
        if let Some(seat) = self.lock().seat(id) {
            seat.resuming = None;
            seat.place.expire(resume);
        }
    }

    /// The gap is recorded.
    pub(crate) fn resumed(&self, id: SeatId, at: Position) {
        if let Some(seat) = self.lock().seat(id) {
            seat.resuming = None;
            seat.place.resumed(at);
        }
    }

    /// Receipts above this could not be told after all.
    pub(crate) fn receipts_missed(&self, id: SeatId, after: Option<Position>) {
        if let Some(seat) = self.lock().seat(id) {
            seat.miss_receipts(after);
        }
    }
}

impl State {
    fn seat(&mut self, id: SeatId) -> Option<&mut Seat> {
        self.users.get_mut(&id.user)?.iter_mut().find(|seat| seat.serial == id.serial)
    }

    fn end_all(&mut self) {
        for seat in self.users.drain().flat_map(|(_, seats)| seats) {
            seat.ending.end(LinkEndReason::NotOwner);
        }
    }

    fn all_behind(&mut self) {
        for seat in self.users.values_mut().flatten() {
            if seat.place.fall_behind() {
                seat.wake.notify_one();
            }
        }
    }

    fn offer(&mut self, entry: &Entry, limits: &Limits, touched: &mut Vec<UserId>) {
        for (index, recipient) in entry.recipients.iter().enumerate() {
            if self.users.is_empty() {
                return;
            }
            let Some(seats) = self.users.get_mut(&recipient.user) else { continue };
            touched.push(recipient.user);
            for seat in seats {
                let row = entry.row_for_all(index, recipient);
                seat.offer(recipient.user, &row, addressed(&recipient.devices, seat.device), limits);
            }
        }
    }

    fn flush(&mut self, touched: &mut Vec<UserId>) {
        for user in touched.drain(..) {
            for seat in self.users.get_mut(&user).into_iter().flatten() {
                seat.flush();
            }
        }
    }

    fn tell(&mut self, position: Position, user: UserId, watermarks: &[v1::Watermark]) {
        for seat in self.users.get_mut(&user).into_iter().flatten() {
            // A seat whose earlier receipts are still to be read gets these with them.
            let waits = seat.receipts_after.is_some();
            if waits || seat.out.try_send(frames::receipts(seat.number, watermarks.to_vec())).is_err() {
                seat.miss_receipts(Some(Position::from_u64(position.as_u64().saturating_sub(1))));
            }
        }
    }
}

impl Seat {
    /// Puts a live event into the batch, if the device is live and has room, and the link too.
    fn offer(&mut self, user: UserId, row: &Row, addressed: bool, limits: &Limits) {
        if self.place.phase() != Phase::Live {
            return;
        }
        let body = if addressed { row.event.ready() } else { None };
        if addressed && body.is_none() || !self.has_frame(limits) {
            self.place.fall_behind();
            self.wake.notify_one();
            return;
        }
        let mut item = frames::item(row, body.as_ref());
        if let Some(delivered) = &mut item.delivered {
            delivered.accepted_at = row.event.accepted_at();
        }
        match self.place.offer(item) {
            Offer::Send => {
                if let Some(batch) = &mut self.batch {
                    batch.push(frames::event(user, row, body), item.bytes);
                }
            }
            Offer::Hold => {}
            Offer::FellBehind => self.wake.notify_one(),
        }
    }

    /// Room on the link, reserved before anything counts as sent.
    fn has_frame(&mut self, limits: &Limits) -> bool {
        if self.batch.as_ref().is_some_and(|batch| batch.bytes >= limits.frame_bytes) {
            self.flush();
        }
        if self.batch.is_none() {
            self.batch = self.out.clone().try_reserve_owned().ok().map(Batch::new);
        }
        self.batch.is_some()
    }

    fn flush(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.send(self.number);
        }
    }

    fn miss_receipts(&mut self, after: Option<Position>) {
        let earliest = self.receipts_after.map_or(after, |other| other.min(after));
        self.receipts_after = Some(earliest);
        self.place.fall_behind();
        self.wake.notify_one();
    }
}
