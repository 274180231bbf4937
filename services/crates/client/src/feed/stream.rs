//! One Attach stream, from Start to its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use wardline_domain::ConversationId;
use wardline_domain::envelope::MessageKind;
use wardline_proto::v1;
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_proto::v1::attach_response::Frame as Down;

use super::apply::{Applied, Body, Prepared, Stopped};
use super::message::Sequenced;
use super::{resync, titles};
use crate::device::Inner;
use crate::device_log::{follow, leaf};
use crate::error::Error;
use crate::failpoint::Point;
use crate::store;
use crate::view::Incoming;

/// How many frames may wait to go up.
const UP_BUFFER: usize = 64;

/// Goes up the stream; its end ends the stream.
type Sender = mpsc::Sender<v1::AttachRequest>;

/// Follows one stream. `Ok` says how long the server asks to wait before the next one.
pub(super) async fn once(inner: &Arc<Inner>, attempt: &mut u32) -> Result<Option<Duration>, Error> {
    let place = inner.read(|core| store::feed::load(core.connection()))?;
    let (up, frames) = mpsc::channel(UP_BUFFER);
    let start =
        v1::AttachStart { cursor: place.cursor.into(), window_events: inner.options.window_events, window_bytes: 0 };
    send(&up, Up::Start(start)).await?;
    let mut down = inner.rpc.attach(ReceiverStream::new(frames)).await?;
    let mut reads = HashMap::new();
    if place.resync {
        resync::run(inner).await?;
    }
    loop {
        tokio::select! {
            frame = down.message() => {
                let frame = frame?.and_then(|frame| frame.frame).ok_or(Error::Unknown(Code::Unavailable))?;
                *attempt = 0;
                if let Down::Draining(draining) = frame {
                    let wait = draining.retry_after.and_then(|wait| Duration::try_from(wait).ok());
                    return Ok(wait);
                }
                take_frame(inner, &up, frame).await?;
                send_reads(inner, &up, &mut reads).await?;
            }
            () = inner.upward.notified() => send_reads(inner, &up, &mut reads).await?,
        }
    }
}

async fn send(up: &Sender, frame: Up) -> Result<(), Error> {
    up.send(v1::AttachRequest { frame: Some(frame) }).await.map_err(|_| Error::Unknown(Code::Unavailable))
}

async fn take_frame(inner: &Arc<Inner>, up: &Sender, frame: Down) -> Result<(), Error> {
    match frame {
        Down::Events(events) => take_events(inner, up, events.events).await,
        Down::Receipts(receipts) => inner.step(|step| step.merge_watermarks(&receipts.watermarks)),
        Down::CaughtUp(_) => {
            inner.tell(Incoming::CaughtUp);
            titles::learn(inner)
        }
        Down::Progress(progress) => {
            let cursor = progress.cursor.to_vec();
            inner.step(|step| {
                let place = store::feed::load(&step.tx)?;
                store::feed::save(&step.tx, &store::feed::Place { cursor: cursor.clone(), ..place })
            })?;
            acknowledge(inner, up, cursor).await
        }
        Down::CursorExpired(expired) => expire(inner, up, expired.resume_cursor.to_vec()).await,
        Down::SessionExpiring(_) => {
            let session_token = inner.rpc.new_token().await?;
            send(up, Up::Renew(v1::AttachRenew { session_token })).await
        }
        Down::Started(_) | Down::Draining(_) => Ok(()),
    }
}

/// Events are gone. That they are is saved together with the new cursor, before it is acknowledged: a crash in between
/// still resyncs.
async fn expire(inner: &Arc<Inner>, up: &Sender, cursor: Vec<u8>) -> Result<(), Error> {
    inner.step(|step| {
        let place = store::feed::load(&step.tx)?;
        let moved = store::feed::Place { cursor: cursor.clone(), event: cursor.clone(), resync: true, ..place };
        store::feed::save(&step.tx, &moved)
    })?;
    acknowledge(inner, up, cursor).await?;
    resync::run(inner).await
}

async fn take_events(inner: &Arc<Inner>, up: &Sender, events: Vec<v1::Event>) -> Result<(), Error> {
    let mut prepared = Vec::with_capacity(events.len());
    for event in events {
        prepared.push(prepare(inner, event).await?);
    }
    let mut rest = prepared.as_slice();
    while !rest.is_empty() {
        let Applied { events, stopped, cursor } = inner.step(|step| step.apply(rest))?;
        rest = rest.get(events..).unwrap_or_default();
        if events > 0 {
            acknowledge(inner, up, cursor).await?;
        }
        match stopped {
            None => {}
            Some(Stopped::Missing(conversation)) => resync::catch_up(inner, conversation, None).await?,
            Some(Stopped::FeedGap) => return Err(Error::Unknown(Code::DataLoss)),
        }
    }
    titles::learn(inner)?;
    replenish(inner)
}

async fn acknowledge(inner: &Arc<Inner>, up: &Sender, cursor: Vec<u8>) -> Result<(), Error> {
    inner.dies_at(Point::BeforeAcknowledge)?;
    send(up, Up::Acknowledge(v1::AttachAcknowledge { cursor: cursor.into() })).await?;
    inner.dies_at(Point::AfterAcknowledge)
}

/// Publishes key packages beside the feed when they run low. What fails is tried again with the next events.
fn replenish(inner: &Arc<Inner>) -> Result<(), Error> {
    let low = inner.read(|core| store::feed::load(core.connection()))?.packages_low;
    if low && !inner.replenishing.swap(true, Ordering::AcqRel) {
        let inner = Arc::clone(inner);
        inner.tasks.clone().spawn(async move {
            let stop = inner.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                published = crate::mls::key_packages::publish(&inner, inner.options.key_packages) => {
                    if let Err(error) = published {
                        tracing::warn!(%error, "key packages could not be published");
                    }
                }
            }
            inner.replenishing.store(false, Ordering::Release);
        });
    }
    Ok(())
}

/// Tells what the person has read and the server has not confirmed; once a stream for each.
async fn send_reads(inner: &Arc<Inner>, up: &Sender, sent: &mut HashMap<ConversationId, u64>) -> Result<(), Error> {
    let reads = inner.read(|core| store::watermarks::unconfirmed_reads(core.connection(), core.identity.device))?;
    for (conversation, sequence) in reads {
        if sent.insert(conversation, sequence) != Some(sequence) {
            let read = v1::AttachRead { conversation_id: conversation.to_string(), sequence };
            send(up, Up::Read(read)).await?;
        }
    }
    if inner.active.swap(false, Ordering::Relaxed) {
        send(up, Up::Activity(v1::AttachActivity {})).await?;
    }
    Ok(())
}

/// Fetches what an event only names.
async fn prepare(inner: &Arc<Inner>, event: v1::Event) -> Result<Prepared, Error> {
    use v1::event::Body as Wire;
    let body = match event.body {
        None => Body::Nothing,
        Some(Wire::Message(message)) => Body::Message(with_body(inner, message).await?),
        Some(Wire::Welcome(welcome)) => {
            let state = welcome_state(inner, &welcome).await?;
            Body::Welcome(welcome, state)
        }
        Some(Wire::Rejected(rejected)) => Body::Rejected(rejected),
        Some(Wire::ConversationChanged(changed)) => Body::ConversationChanged(changed),
        Some(Wire::DeviceChanged(_)) => Body::DeviceChanged,
        Some(Wire::KeyPackagesLow(_)) => Body::KeyPackagesLow,
    };
    Ok(Prepared { cursor: event.cursor.to_vec(), previous: event.previous.to_vec(), body })
}

/// A message, its body fetched when it was sent by reference, and the device logs read of those whom it adds.
pub(super) async fn with_body(inner: &Arc<Inner>, mut message: v1::Message) -> Result<Sequenced, Error> {
    if let Some(v1::message::Body::BlobRef(blob)) = &message.body {
        let body = inner.rpc.message_body(message.conversation_id.clone(), blob.clone()).await?;
        message.body = Some(v1::message::Body::MlsMessage(body));
    }
    let message = Sequenced::parse(&message)?;
    if message.envelope.as_ref().is_some_and(|envelope| envelope.kind != MessageKind::Application) {
        follow::learn(inner, &leaf::of_commit(&message.mls_message)).await?;
    }
    Ok(message)
}

/// The group state a Welcome leads to; `None` when the server does not give it: it is past that epoch, or away. The device logs of
/// the leaves are read.
async fn welcome_state(inner: &Arc<Inner>, welcome: &v1::Welcome) -> Result<Option<v1::GroupState>, Error> {
    let Ok(id) = welcome.conversation_id.parse() else { return Ok(None) };
    let state = inner.rpc.group_state_patiently(id, Some(welcome.epoch)).await.ok();
    let mut leaves = inner.step(|step| step.leaves_of(welcome))?;
    if let Some(Ok(tree)) = state.as_ref().map(crate::mls::join::tree) {
        leaves.extend(leaf::of_tree(&tree));
    }
    follow::learn(inner, &leaves).await?;
    Ok(state)
}
