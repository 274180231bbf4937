//! Taking a device in: who it is, where its cursor stands, and what that cursor acknowledges.
//!
//! A cursor above the stored acknowledged position means that an acknowledgement was lost with a link or an owner: the rows
//! between are read and reported as delivered. When their chain does not begin at the stored position, the device was told
//! to pass over a gap, and the range is reported as skipped instead.
//!
//! Deliberately absent: sending events.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use wardline_domain::envelope::Sequence;
use wardline_domain::{Cause, ConversationId, DeviceId, Failure, Position, UserId};
use wardline_proto::convert::ids;
use wardline_proto::internal::v1::{ConnectResponse, LinkEndReason, LinkOpen};
use wardline_store::feeds::FeedRow;

use super::attachment::{Attachment, Item, Window};
use super::partition::{Ending, Partition, Seat, SeatId};
use super::receipts::Reporter;
use super::ring::{Row, addressed};
use super::{Shared, frames};
use crate::cursor;
use crate::event::FeedEvent;

/// Memberships read at once.
const MEMBERSHIPS_A_PAGE: usize = 512;

/// An attachment asked for over a link.
pub(crate) struct Asked {
    pub(crate) open: LinkOpen,
    pub(crate) serial: u64,
    pub(crate) number: u64,
    pub(crate) out: mpsc::Sender<ConnectResponse>,
    pub(crate) ending: Ending,
    pub(crate) wake: Arc<Notify>,
}

/// Taken in.
pub(crate) struct Taken {
    pub(crate) partition: Arc<Partition>,
    pub(crate) id: SeatId,
    pub(crate) term: Position,
}

/// Takes a device in, or says why not.
pub(crate) async fn take_in(shared: &Shared, asked: Asked) -> Result<Taken, LinkEndReason> {
    let user = ids::user_bytes(&asked.open.user_id, "open.user_id").map_err(|_| LinkEndReason::CursorInvalid)?;
    let device =
        ids::device_bytes(&asked.open.device_id, "open.device_id").map_err(|_| LinkEndReason::CursorInvalid)?;
    shared.revocations.check(user, device).map_err(|_| LinkEndReason::Revoked)?;
    let partition = owned(shared, user, &asked.open).ok_or(LinkEndReason::NotOwner)?;
    let from = Reporter { partition: partition.index, user, device };
    let place = place(shared, from, &asked.open).await?;
    let seat = Seat {
        device,
        serial: asked.serial,
        number: asked.number,
        out: asked.out,
        place,
        wake: asked.wake,
        ending: asked.ending,
        receipts_after: Some(receipts_from(user, &asked.open)),
        resuming: None,
        active_at: None,
        batch: None,
    };
    let term = partition.open(user, seat).ok_or(LinkEndReason::NotOwner)?;
    Ok(Taken { partition, id: SeatId { user, device, serial: asked.serial }, term })
}

fn owned(shared: &Shared, user: UserId, open: &LinkOpen) -> Option<Arc<Partition>> {
    if shared.feeds_partition(user) != open.partition || shared.receipts.is_full() {
        return None;
    }
    let partition = shared.partition(open.partition)?;
    let term = partition.serving()?;
    (term >= Position::from_u64(open.min_term)).then_some(partition)
}

fn receipts_from(user: UserId, open: &LinkOpen) -> Option<Position> {
    let from = if open.resumed { &open.acknowledged } else { &open.cursor };
    cursor::decode(user, from).unwrap_or_default()
}

async fn place(shared: &Shared, from: Reporter, open: &LinkOpen) -> Result<Attachment, LinkEndReason> {
    let cursor = cursor::decode(from.user, &open.cursor).map_err(|_| LinkEndReason::CursorInvalid)?;
    let acknowledged = if open.resumed {
        cursor::decode(from.user, &open.acknowledged).map_err(|_| LinkEndReason::CursorInvalid)?
    } else {
        cursor
    };
    let head = one(shared.stores.feeds.heads(&[from.user]).await.map_err(later)?);
    if cursor > head || acknowledged > cursor {
        return Err(LinkEndReason::CursorInvalid);
    }
    settle(shared, from, acknowledged).await.map_err(later)?;
    let in_flight = if cursor > acknowledged {
        in_flight(shared, from, acknowledged, cursor.unwrap_or_default()).await.map_err(later)?
    } else {
        Vec::new()
    };
    Ok(Attachment::new(cursor, acknowledged, head, in_flight, window(shared, open)))
}

/// A store that does not answer is answered for like an owner that is away: the edge comes again.
fn later(failure: Failure) -> LinkEndReason {
    tracing::warn!(%failure, "an attachment is put off");
    LinkEndReason::NotOwner
}

fn one<T>(answers: Vec<Option<T>>) -> Option<T> {
    answers.into_iter().next().flatten()
}

fn window(shared: &Shared, open: &LinkOpen) -> Window {
    let limits = &shared.options.limits;
    let clamp = |asked: u32, most: u32| if asked == 0 { most } else { asked.min(most) };
    Window {
        events: clamp(open.window_events, limits.window_events) as usize,
        bytes: clamp(open.window_bytes, limits.window_bytes) as usize,
    }
}

/// Reports what `acknowledged` says beyond what is stored.
async fn settle(shared: &Shared, from: Reporter, acknowledged: Option<Position>) -> Result<(), Failure> {
    let Some(through) = acknowledged else { return Ok(()) };
    let cursors = shared.stores.feeds.device_cursors(from.user).await?;
    let stored = cursors.iter().find(|row| row.device == from.device).map(|row| row.acknowledged);
    let mut after = stored;
    let mut first = true;
    while after < Some(through) {
        let rows = page(shared, from.user, after, through).await?;
        let follows = rows.first().is_some_and(|row| stored.is_none() || row.previous == stored);
        if first && stored.is_some() && !follows {
            return pass_over(shared, from, through).await;
        }
        first = false;
        let delivered: Vec<_> = items(&rows, from.device).filter_map(|item| item.delivered).collect();
        after = if rows.len() < shared.options.limits.page_rows {
            Some(through)
        } else {
            rows.last().map(|row| row.position)
        };
        shared.receipts.delivered(from, after.unwrap_or(through), &delivered);
    }
    Ok(())
}

/// Reports that the device passes over everything up to where its user's conversations stand now.
pub(crate) async fn pass_over(shared: &Shared, from: Reporter, at: Position) -> Result<(), Failure> {
    let mut after = None;
    let mut skipped: Vec<(ConversationId, Sequence)> = Vec::new();
    loop {
        let rows = shared.stores.conversations.memberships(from.user, after, MEMBERSHIPS_A_PAGE).await?;
        after = rows.last().map(|row| row.conversation);
        let of: Vec<_> = rows.iter().filter(|row| row.member).map(|row| row.conversation).collect();
        let heads = shared.stores.conversations.heads(&of).await?;
        skipped.extend(of.into_iter().zip(heads).filter_map(|(of, head)| Some((of, head?.sequence))));
        if rows.len() < MEMBERSHIPS_A_PAGE {
            break;
        }
    }
    shared.receipts.skipped(from, at, &skipped);
    Ok(())
}

/// What another owner sent and the device has not acknowledged.
async fn in_flight(
    shared: &Shared,
    from: Reporter,
    after: Option<Position>,
    through: Position,
) -> Result<Vec<Item>, Failure> {
    let mut sent: Vec<Item> = items(&page(shared, from.user, after, through).await?, from.device).collect();
    if sent.last().is_none_or(|last| last.position < through) {
        // Its row is gone or beyond a page: it still may be acknowledged.
        sent.push(Item { position: through, previous: None, bytes: 0, delivered: None });
    }
    Ok(sent)
}

async fn page(shared: &Shared, user: UserId, after: Option<Position>, through: Position) -> Result<Vec<Row>, Failure> {
    let rows = shared.stores.feeds.rows(user, after, through, shared.options.limits.page_rows).await?;
    rows.into_iter().map(row_of).collect()
}

fn items(rows: &[Row], device: DeviceId) -> impl Iterator<Item = Item> + '_ {
    rows.iter().map(move |row| {
        let delivered = row.event.delivered().filter(|_| addressed(&row.devices, device));
        Item { delivered, ..frames::item(row, None) }
    })
}

/// A stored row, read.
///
/// # Errors
/// `NotApplied` with cause `Corrupt` when its event is not one of ours.
pub(crate) fn row_of(row: FeedRow) -> Result<Row, Failure> {
    let event = FeedEvent::decode(&row.event)
        .map_err(|_| Failure::NotApplied(Cause::corrupt("a feed row's event does not decode")))?;
    Ok(Row {
        position: row.position,
        previous: row.previous,
        devices: row.devices,
        event: Arc::new(event),
        trace: None,
    })
}
