//! One attachment's task at the owner: catches its device up from the ring or the store, then sleeps until the device falls
//! behind again. Live events do not pass here.
//!
//! Deliberately absent: decisions. They are [`super::attachment`]'s.

use std::sync::Arc;

use metrics::counter;
use tokio::sync::{Notify, mpsc};
use wardline_domain::{Failure, Position};
use wardline_proto::internal::v1::ConnectResponse;
use wardline_proto::v1;
use wardline_store::feeds::ReceiptOfRow;

use super::Shared;
use super::attachment::{Item, Then};
use super::frames;
use super::open;
use super::partition::{Ending, Next, Partition, SeatId};
use super::receipts::Reporter;
use super::ring::Row;
use crate::backoff::Backoff;
use crate::convert;
use crate::measures as names;

/// How often a broken chain is read again before events count as gone.
const REREADS: u32 = 3;
/// Watermarks in one frame.
const WATERMARKS_A_FRAME: usize = 256;

/// One attachment's task.
pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    pub(crate) partition: Arc<Partition>,
    pub(crate) id: SeatId,
    pub(crate) number: u64,
    pub(crate) out: mpsc::Sender<ConnectResponse>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) ending: Ending,
}

/// The link is gone.
struct Gone;

/// Why catching up stopped early.
enum Stopped {
    Gone,
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Gone> for Stopped {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Server {
    /// Serves until the attachment is ended.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(&self.shared.options.timings);
        loop {
            let step = async {
                match self.catch_up(&mut backoff).await {
                    Ok(()) => self.wake.notified().await,
                    Err(Stopped::Gone) => self.ending.token.cancel(),
                    Err(Stopped::Failed(failure)) => {
                        tracing::warn!(%failure, "a device waits to catch up");
                        backoff.pause().await;
                    }
                }
            };
            tokio::select! {
                biased;
                () = self.ending.token.cancelled() => return,
                () = step => {}
            }
        }
    }

    async fn catch_up(&self, backoff: &mut Backoff) -> Result<(), Stopped> {
        let mut breaks = 0;
        loop {
            let broken = match self.partition.next(self.id) {
                Next::Wait => return Ok(()),
                Next::Receipts(after) => {
                    self.tell_receipts(after).await?;
                    false
                }
                Next::Resume(at) => {
                    self.pass_over(at).await?;
                    false
                }
                Next::Ring(rows) => self.send(&rows, None).await?,
                Next::Store(after, through) => self.read(after, through).await?,
                Next::HandOver => {
                    let permit = self.out.reserve().await.map_err(|_| Gone)?;
                    if self.partition.hand_over(self.id, permit) {
                        return Ok(());
                    }
                    false
                }
            };
            if !broken {
                breaks = 0;
                backoff.reset();
                continue;
            }
            breaks += 1;
            if breaks < REREADS {
                backoff.pause().await;
            } else {
                return self.expire().await;
            }
        }
    }

    async fn read(&self, after: Option<Position>, through: Position) -> Result<bool, Stopped> {
        let limit = self.shared.options.limits.page_rows;
        let stored = self.shared.stores.feeds.rows(self.id.user, after, through, limit).await?;
        let end = (stored.len() < limit).then_some(through);
        let rows = stored.into_iter().map(open::row_of).collect::<Result<Vec<_>, _>>()?;
        self.send(&rows, end).await
    }

    /// Sends what may be sent of these rows. Answers whether the chain is broken.
    async fn send(&self, rows: &[Row], end: Option<Position>) -> Result<bool, Stopped> {
        let bodies = self.shared.bodies.of(self.id.user, self.id.device, rows).await?;
        let items: Vec<Item> = rows.iter().zip(&bodies).map(|(row, body)| frames::item(row, body.as_ref())).collect();
        let Some(page) = self.partition.page(self.id, &items, end) else { return Err(Stopped::Gone) };
        let mut events = Vec::new();
        let mut bytes = 0;
        let taken = page.from..page.to;
        for (index, (row, body)) in rows.iter().zip(bodies).enumerate().filter(|(index, _)| taken.contains(index)) {
            bytes += items.get(index).map_or(0, |item| item.bytes);
            events.push(frames::event(self.id.user, row, body));
            if bytes >= self.shared.options.limits.frame_bytes {
                self.put(frames::events(self.number, std::mem::take(&mut events))).await?;
                bytes = 0;
            }
        }
        if !events.is_empty() {
            self.put(frames::events(self.number, events)).await?;
        }
        Ok(page.then == Then::Broken)
    }

    /// Tells the device that events are gone. What it has acknowledged is made durable first, so that a device that comes
    /// back with the resume cursor is known to have passed over the gap ([`super::open`]).
    async fn expire(&self) -> Result<(), Stopped> {
        self.shared.receipts.flushed().await;
        let heads = self.shared.stores.feeds.heads(&[self.id.user]).await?;
        let resume = heads.into_iter().next().flatten().unwrap_or_default();
        self.partition.expire(self.id, resume);
        counter!(names::EXPIRED).increment(1);
        tracing::info!("a device's cursor is older than what is kept");
        Ok(self.put(frames::expired(self.number, self.id.user, resume)).await?)
    }

    async fn pass_over(&self, at: Position) -> Result<(), Stopped> {
        let from = Reporter { partition: self.partition.index, user: self.id.user, device: self.id.device };
        open::pass_over(&self.shared, from, at).await?;
        self.shared.receipts.flushed().await;
        self.partition.resumed(self.id, at);
        Ok(())
    }

    async fn tell_receipts(&self, after: Option<Position>) -> Result<(), Stopped> {
        let limit = self.shared.options.limits.receipts_at_attach;
        let rows = match self.shared.stores.feeds.receipts_of(self.id.user, after, limit).await {
            Ok(rows) => rows,
            Err(failure) => {
                self.partition.receipts_missed(self.id, after);
                return Err(failure.into());
            }
        };
        for rows in rows.chunks(WATERMARKS_A_FRAME) {
            let watermarks: Vec<v1::Watermark> = rows.iter().map(watermark).collect();
            self.put(frames::receipts(self.number, watermarks)).await?;
        }
        Ok(())
    }

    async fn put(&self, frame: ConnectResponse) -> Result<(), Gone> {
        self.out.send(frame).await.map_err(|_| Gone)
    }
}

fn watermark(row: &ReceiptOfRow) -> v1::Watermark {
    convert::watermark(&row.watermark)
}
