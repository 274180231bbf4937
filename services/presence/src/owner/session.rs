//! The owner's end of a link: attachments by number, frames up from their devices.
//!
//! Deliberately absent: waiting for a device. Frames up are handled at once; frames down wait on the link, never on each
//! other's devices.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use metrics::gauge;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use wardline_domain::envelope::Sequence;
use wardline_proto::convert::ids;
use wardline_proto::internal::v1::connect_request::Frame;
use wardline_proto::internal::v1::presence_link_service_server::PresenceLinkService;
use wardline_proto::internal::v1::{
    ConnectRequest, ConnectResponse, LinkEndReason, LinkOpen, LocateRequest, LocateResponse,
};
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_runtime::Counted;

use super::attachment::Acknowledged;
use super::open::{self, Asked};
use super::partition::{Ending, Partition, SeatId};
use super::receipts::Reporter;
use super::serve::Server;
use super::{Shared, frames, lock};
use crate::cursor;
use crate::measures as names;

/// Attachments on a link before those that ended are looked for.
const TIDY_AT_LEAST: usize = 64;

/// The owner's service.
#[derive(Debug, Clone)]
pub struct LinkService {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl PresenceLinkService for LinkService {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<ConnectResponse, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (out, down) = mpsc::channel(self.shared.options.limits.link_frames);
        self.shared.linked(&out);
        let session = Session {
            shared: Arc::clone(&self.shared),
            out,
            attachments: HashMap::new(),
            tidy_at: TIDY_AT_LEAST,
            link: self.stop.child_token(),
            _counted: Counted::one(gauge!(names::LINKS, "side" => "owner")),
        };
        // Ends the session when the edge lets go of the stream's other half.
        let guard = session.link.clone().drop_guard();
        tokio::spawn(session.run(request.into_inner()));
        let down = ReceiverStream::new(down).map(move |frame| {
            let _held: &DropGuard = &guard;
            Ok(frame)
        });
        Ok(Response::new(Box::pin(down)))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let partition = request.into_inner().partition;
        let answer = match self.shared.term(partition) {
            Some(term) => Some((term, self.shared.options.link_address.clone())),
            None => {
                let known = self.shared.registry.owner(partition).await.ok().flatten();
                known.map(|owner| (owner.term, owner.address))
            }
        };
        let (term, address) = answer.unwrap_or_default();
        Ok(Response::new(LocateResponse { term: term.as_u64(), address }))
    }
}

struct Session {
    shared: Arc<Shared>,
    out: mpsc::Sender<ConnectResponse>,
    attachments: HashMap<u64, Attached>,
    tidy_at: usize,
    link: CancellationToken,
    _counted: Counted,
}

/// Where an attachment sits, once it does.
type Sitting = Arc<Mutex<Option<(Arc<Partition>, SeatId)>>>;

/// An attachment on this link.
struct Attached {
    ending: Ending,
    seat: Sitting,
}

impl Session {
    async fn run(mut self, mut up: Streaming<ConnectRequest>) {
        loop {
            let frame = tokio::select! {
                biased;
                () = self.link.cancelled() => break,
                frame = up.message() => frame,
            };
            match frame {
                Ok(Some(ConnectRequest { attachment, frame: Some(frame) })) => self.handle(attachment, frame),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        for attached in self.attachments.into_values() {
            attached.ending.token.cancel();
        }
        self.link.cancel();
    }

    fn handle(&mut self, number: u64, frame: Frame) {
        match frame {
            Frame::Open(open) => self.open(number, open),
            Frame::Close(_) => {
                if let Some(attached) = self.attachments.remove(&number) {
                    attached.ending.token.cancel();
                }
            }
            Frame::Up(up) => {
                let Some(attached) = self.attachments.get(&number) else { return };
                let Some((partition, id)) = lock(&attached.seat).clone() else { return };
                if let Some(up) = up.frame
                    && let Err(reason) = take_up(&self.shared, &partition, id, up)
                {
                    attached.ending.end(reason);
                }
            }
        }
    }

    fn open(&mut self, number: u64, open: LinkOpen) {
        // Those that the owner ended are let go of now and then: a walk over all of them costs too much for every frame.
        if self.attachments.len() >= self.tidy_at {
            self.attachments.retain(|_, attached| !attached.ending.token.is_cancelled());
            self.tidy_at = 2 * self.attachments.len() + TIDY_AT_LEAST;
        }
        let attached = Attached { ending: Ending::default(), seat: Arc::default() };
        let task = Attachment {
            shared: Arc::clone(&self.shared),
            out: self.out.clone(),
            number,
            ending: attached.ending.clone(),
            seat: Arc::clone(&attached.seat),
        };
        if let Some(before) = self.attachments.insert(number, attached) {
            before.ending.token.cancel();
        }
        tokio::spawn(task.run(open));
    }
}

/// One attachment from its opening to its end.
struct Attachment {
    shared: Arc<Shared>,
    out: mpsc::Sender<ConnectResponse>,
    number: u64,
    ending: Ending,
    seat: Sitting,
}

impl Attachment {
    async fn run(self, open: LinkOpen) {
        let wake = Arc::new(Notify::new());
        let asked = Asked {
            open,
            serial: self.shared.serial(),
            number: self.number,
            out: self.out.clone(),
            ending: self.ending.clone(),
            wake: Arc::clone(&wake),
        };
        let taken = tokio::select! {
            biased;
            () = self.ending.token.cancelled() => return,
            taken = open::take_in(&self.shared, asked) => taken,
        };
        match taken {
            Ok(taken) => self.serve(taken, wake).await,
            Err(reason) => self.ending.end(reason),
        }
        if let Some(reason) = self.ending.reason() {
            // Fails when the link is gone: then nobody is left to tell.
            let _ = self.out.send(frames::ended(self.number, reason)).await;
        }
    }

    async fn serve(&self, taken: open::Taken, wake: Arc<Notify>) {
        let open::Taken { partition, id, term } = taken;
        *lock(&self.seat) = Some((Arc::clone(&partition), id));
        self.shared.changed(id.user);
        // Nothing is pushed before the task below has caught the device up, so this comes first.
        if self.out.send(frames::opened(self.number, term)).await.is_ok() {
            let server = Server {
                shared: Arc::clone(&self.shared),
                partition: Arc::clone(&partition),
                id,
                number: self.number,
                out: self.out.clone(),
                wake,
                ending: self.ending.clone(),
            };
            server.run().await;
        }
        partition.close(id);
        self.shared.changed(id.user);
    }
}

fn take_up(shared: &Shared, partition: &Partition, id: SeatId, up: Up) -> Result<(), LinkEndReason> {
    let from = Reporter { partition: partition.index, user: id.user, device: id.device };
    match up {
        Up::Acknowledge(acknowledge) => {
            // Refused before anything changes: the edge comes again with the same acknowledgement.
            if shared.receipts.is_full() {
                return Err(LinkEndReason::NotOwner);
            }
            let at = cursor::decode(id.user, &acknowledge.cursor).map_err(|_| LinkEndReason::CursorInvalid)?;
            let Some(at) = at else { return Ok(()) };
            let acknowledged = partition.acknowledge(id, at).map_err(|_| LinkEndReason::CursorInvalid)?;
            if let Acknowledged::Through { mut delivered, .. } = acknowledged {
                shared.acknowledged(&mut delivered);
                shared.receipts.delivered(from, at, &delivered);
            }
        }
        Up::Read(read) => {
            let Ok(conversation) = ids::conversation(&read.conversation_id, "read.conversation_id") else {
                return Ok(());
            };
            let most = shared.options.limits.pending_entries;
            if !shared.reads.add(from, conversation, Sequence(read.sequence), most) {
                tracing::warn!("a read mark was let go of: too many wait");
            }
        }
        Up::Activity(_) => {
            partition.active(id, shared.clock.now());
            shared.changed(id.user);
        }
        Up::Start(_) | Up::Renew(_) => {}
    }
    Ok(())
}
