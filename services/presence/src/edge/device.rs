//! One device's stream: frames up to its owner, frames down to it, and what may end it. An owner that goes away shows as a
//! pause.
//!
//! The stream waits on three things, none of which holds up the others: room for a frame down, room for a frame up, and
//! whatever ends it.
//!
//! Deliberately absent: order of events, windows, receipts. Those are the owner's.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use wardline_domain::{ConversationId, Position};
use wardline_proto::convert::{ids, time};
use wardline_proto::internal::v1::LinkOpen;
use wardline_proto::internal::v1::connect_request::Frame as LinkUp;
use wardline_proto::internal::v1::connect_response::Frame as LinkDown;
use wardline_proto::reason::Reason;
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_proto::v1::{self, AttachRead, AttachRequest, AttachResponse, AttachStart};
use wardline_runtime::Refusal;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::session::LEEWAY;
use wardline_runtime::status::RETRY_AFTER;

use super::Edge;
use super::links::Lane;
use super::route::{Lost, lost};
use super::session;
use super::streams::{Cut, Entered, enter};
use super::upward::Upward;
use crate::cursor;
use crate::measures as names;
use crate::owner::reads;

/// How long a device may take to read that the server drains.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);
/// Frames that wait in the device's HTTP/2 stream.
const FRAMES_DOWN: usize = 8;
/// How long a device may take to send Start.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// Read marks kept to be repeated to the next owner.
const READS_KEPT: usize = reads::WAITING_A_DEVICE;

type Sender = mpsc::Sender<Result<AttachResponse, Status>>;
type Permit<'a> = Result<mpsc::Permit<'a, Result<AttachResponse, Status>>, mpsc::error::SendError<()>>;

/// Begins a device's stream.
pub(crate) fn attach(
    edge: Arc<Edge>,
    caller: DeviceCaller,
    up: Streaming<AttachRequest>,
) -> impl Stream<Item = Result<AttachResponse, Status>> + Send {
    let (down, receiver) = mpsc::channel(FRAMES_DOWN);
    let entered = enter(&edge, caller.user, caller.device);
    let cut = entered.cut.clone();
    tokio::spawn(async move {
        let ended = match edge.revocations.check(caller.user, caller.device) {
            Ok(()) => run(&edge, caller, up, &down, &entered).await,
            Err(reason) => Err(Refusal::new(reason)),
        };
        let reason = ended.as_ref().map_or_else(|refusal| refusal.reason.as_str(), |gone| *gone);
        counter!(names::STREAMS_ENDED, "reason" => reason).increment(1);
        if let Err(refusal) = ended {
            // Fails when the device is gone.
            let _ = down.send(Err(refusal.into())).await;
        }
    });
    cut_short(receiver, cut)
}

/// The frames; when the device is cut off, what waits is not sent any more.
fn cut_short(
    receiver: mpsc::Receiver<Result<AttachResponse, Status>>,
    cut: Cut,
) -> impl Stream<Item = Result<AttachResponse, Status>> + Send {
    futures::stream::unfold(Some(receiver), move |receiver| {
        let cut = cut.clone();
        async move {
            let mut receiver = receiver?;
            tokio::select! {
                biased;
                () = cut.token.cancelled() => Some((Err(Refusal::new(cut.reason()).into()), None)),
                frame = receiver.recv() => frame.map(|frame| (frame, Some(receiver))),
            }
        }
    })
}

/// Answers with how the stream ended, when no error ended it.
async fn run(
    edge: &Arc<Edge>,
    caller: DeviceCaller,
    mut up: Streaming<AttachRequest>,
    down: &Sender,
    entered: &Entered,
) -> Result<&'static str, Refusal> {
    let first = tokio::select! {
        first = up.message() => first,
        () = tokio::time::sleep(START_PATIENCE) => return Err(Refusal::new(Reason::DeadlineExceeded)),
        () = entered.cut.token.cancelled() => return Err(Refusal::new(entered.cut.reason())),
        () = edge.drain.cancelled() => return Err(Refusal::new(Reason::Unavailable).retry_after(RETRY_AFTER)),
    };
    let Ok(Some(AttachRequest { frame: Some(Up::Start(start)) })) = first else {
        return Err(Refusal::field("frame", "must be Start first"));
    };
    let mut device = Device::new(edge, caller, start)?;
    match device.serve(&mut up, down, entered).await {
        End::Gone => Ok("gone"),
        End::Draining => {
            device.say_draining(down).await;
            Ok("draining")
        }
        End::For(refusal) => Err(refusal),
    }
}

/// Why the stream ends.
enum End {
    Gone,
    Draining,
    For(Refusal),
}

/// The way to the owner.
enum Way<'a> {
    Seeking(BoxFuture<'a, Result<Lane, Reason>>),
    Open(Lane),
}

/// What happened to the stream.
enum Happened {
    Down(Option<LinkDown>),
    Up(Result<Option<AttachRequest>, Status>),
    Routed(Result<Lane, Reason>),
    /// A frame went where it should.
    Sent,
    /// The link is gone.
    LinkLost,
    /// The device is gone.
    DeviceLost,
    Time,
}

/// The device was told that events are gone.
struct Resume {
    at: Position,
    /// What it acknowledged since.
    acknowledged: Option<Bytes>,
}

/// What is known of the device.
struct Device<'a> {
    edge: &'a Arc<Edge>,
    caller: DeviceCaller,
    window: (u32, u32),
    started: bool,
    /// The last cursor sent, or what the device started with.
    sent: Bytes,
    acknowledged: Bytes,
    /// `acknowledged` as the owner was told at opening.
    acknowledged_at_open: Bytes,
    resume: Option<Resume>,
    reads: BTreeMap<ConversationId, AttachRead>,
    warned: bool,
    /// Whether all that there was has been sent.
    live: bool,
    frames_down: VecDeque<AttachResponse>,
    frames_up: Upward,
}

impl<'a> Device<'a> {
    fn new(edge: &'a Arc<Edge>, caller: DeviceCaller, start: AttachStart) -> Result<Self, Refusal> {
        cursor::decode(caller.user, &start.cursor).map_err(|_| Refusal::new(Reason::CursorInvalid))?;
        let limits = &edge.owner.options.limits;
        let clamp = |asked: u32, most: u32| if asked == 0 { most } else { asked.min(most) };
        Ok(Self {
            edge,
            caller,
            window: (clamp(start.window_events, limits.window_events), clamp(start.window_bytes, limits.window_bytes)),
            started: false,
            acknowledged: start.cursor.clone(),
            acknowledged_at_open: start.cursor.clone(),
            sent: start.cursor,
            resume: None,
            reads: BTreeMap::new(),
            warned: false,
            live: false,
            frames_down: VecDeque::new(),
            frames_up: Upward::default(),
        })
    }

    async fn serve(&mut self, up: &mut Streaming<AttachRequest>, down: &Sender, entered: &Entered) -> End {
        let mut way = self.seek();
        let edge = self.edge;
        let watch = |session| session::ended(&edge.authenticator, session, session::ASKED_EVERY);
        let mut watched = self.caller.session;
        let mut ended = pin!(watch(watched));
        loop {
            // Renewed, the stream lives by another session.
            if watched != self.caller.session {
                watched = self.caller.session;
                ended.set(watch(watched));
            }
            let happened = tokio::select! {
                biased;
                () = entered.cut.token.cancelled() => return End::For(Refusal::new(entered.cut.reason())),
                () = edge.drain.cancelled() => return End::Draining,
                () = down.closed() => return End::Gone,
                () = &mut ended => return End::For(Refusal::new(Reason::SessionExpired)),
                happened = self.next(&mut way, up, down) => happened,
            };
            let step = match happened {
                Happened::Down(Some(frame)) => self.take_down(frame, &mut way),
                Happened::Up(Ok(Some(frame))) => self.take_up(frame).await,
                Happened::Up(Ok(None) | Err(_)) | Happened::DeviceLost => return End::Gone,
                Happened::Routed(Ok(lane)) => {
                    way = Way::Open(lane);
                    self.opened();
                    Ok(())
                }
                Happened::Routed(Err(reason)) => Err(Refusal::new(reason).retry_after(RETRY_AFTER)),
                Happened::Down(None) | Happened::LinkLost => {
                    way = self.seek();
                    Ok(())
                }
                Happened::Sent => Ok(()),
                Happened::Time => self.tell_time(),
            };
            if let Err(refusal) = step {
                return End::For(refusal);
            }
        }
    }

    /// Waits for the next thing. Cancel-safe: nothing is taken that is not handed out at once.
    async fn next(&mut self, way: &mut Way<'a>, up: &mut Streaming<AttachRequest>, down: &Sender) -> Happened {
        let time = tokio::time::sleep(self.until_told());
        let has_down = !self.frames_down.is_empty();
        let has_up = !self.frames_up.is_empty();
        match way {
            Way::Seeking(route) => tokio::select! {
                routed = route => Happened::Routed(routed),
                permit = down.reserve(), if has_down => self.send_down(permit),
                frame = up.message() => Happened::Up(frame),
                () = time => Happened::Time,
            },
            Way::Open(Lane { up: lane, down: frames }) => tokio::select! {
                permit = down.reserve(), if has_down => self.send_down(permit),
                frame = frames.recv(), if !has_down => Happened::Down(frame),
                permit = lane.reserve(), if has_up => {
                    let Ok(permit) = permit else { return Happened::LinkLost };
                    if let Some(frame) = self.frames_up.pop() {
                        permit.send(lane.frame(LinkUp::Up(frame)));
                    }
                    Happened::Sent
                }
                frame = up.message(), if !has_up => Happened::Up(frame),
                () = time => Happened::Time,
            },
        }
    }

    fn send_down(&mut self, permit: Permit<'_>) -> Happened {
        let Ok(permit) = permit else { return Happened::DeviceLost };
        if let Some(frame) = self.frames_down.pop_front() {
            self.measure(frame.frame.as_ref());
            permit.send(Ok(frame));
        }
        Happened::Sent
    }

    fn measure(&mut self, frame: Option<&Down>) {
        match frame {
            Some(Down::Events(frame)) => {
                let now = self.edge.owner.clock.now();
                self.edge.owner.messages.handed_over(&frame.events, self.live, now);
            }
            Some(Down::CaughtUp(_)) => self.live = true,
            _ => {}
        }
    }

    /// Looks for the owner. What was meant for the one before is repeated when there is a new one.
    fn seek(&mut self) -> Way<'a> {
        self.live = false;
        self.frames_up.close();
        self.acknowledged_at_open = self.acknowledged.clone();
        let open = LinkOpen {
            user_id: ids::bytes16(self.caller.user.as_bytes()),
            device_id: ids::bytes16(self.caller.device.as_bytes()),
            partition: self.edge.feeds_partition(self.caller.user),
            min_term: 0,
            cursor: self.sent.clone(),
            window_events: self.window.0,
            window_bytes: self.window.1,
            resumed: self.started,
            acknowledged: self.acknowledged.clone(),
        };
        let until = (!self.started).then(|| Instant::now() + self.edge.owner.options.timings.locate_patience);
        let edge = self.edge;
        Way::Seeking(Box::pin(async move { edge.route(open, until).await }))
    }

    fn opened(&mut self) {
        self.frames_up.open();
        if !self.started {
            self.started = true;
            let (window_events, window_bytes) = self.window;
            self.tell(Down::Started(v1::AttachStarted { window_events, window_bytes }));
        }
        if self.acknowledged != self.acknowledged_at_open {
            let cursor = self.acknowledged.clone();
            self.pass_up(Up::Acknowledge(v1::AttachAcknowledge { cursor }));
        }
        for read in self.reads.values().cloned().collect::<Vec<_>>() {
            self.pass_up(Up::Read(read));
        }
    }

    fn tell(&mut self, frame: Down) {
        self.frames_down.push_back(AttachResponse { frame: Some(frame) });
    }

    fn pass_up(&mut self, frame: Up) {
        self.frames_up.push(frame);
    }

    fn take_down(&mut self, frame: LinkDown, way: &mut Way<'a>) -> Result<(), Refusal> {
        match frame {
            LinkDown::Down(frame) => {
                self.note(frame.frame.as_ref());
                self.frames_down.push_back(frame);
            }
            LinkDown::Ended(ended) => match lost(&ended) {
                Lost::Owner => *way = self.seek(),
                Lost::For(reason) => return Err(Refusal::new(reason)),
            },
            LinkDown::Opened(_) => {}
        }
        Ok(())
    }

    /// Keeps track of the last cursor sent.
    fn note(&mut self, frame: Option<&Down>) {
        match frame {
            Some(Down::Events(events)) => {
                self.leave_resume();
                if let Some(last) = events.events.last() {
                    self.sent = last.cursor.clone();
                }
            }
            Some(Down::Progress(progress)) => {
                self.leave_resume();
                self.sent = progress.cursor.clone();
            }
            Some(Down::CaughtUp(_)) => self.leave_resume(),
            Some(Down::CursorExpired(expired)) => {
                let at = cursor::decode(self.caller.user, &expired.resume_cursor).unwrap_or_default();
                self.resume = Some(Resume { at: at.unwrap_or_default(), acknowledged: None });
            }
            _ => {}
        }
    }

    /// The owner went on behind the gap: it has recorded what the device passed over.
    fn leave_resume(&mut self) {
        if let Some(Resume { acknowledged: Some(at), .. }) = self.resume.take() {
            self.sent = at.clone();
            self.acknowledged = at;
        }
    }

    async fn take_up(&mut self, frame: AttachRequest) -> Result<(), Refusal> {
        match frame.frame {
            Some(Up::Acknowledge(acknowledge)) => self.acknowledge(acknowledge),
            Some(Up::Read(read)) => self.read(read),
            Some(Up::Renew(renew)) => self.renew(&renew.session_token).await,
            Some(Up::Activity(activity)) => {
                self.pass_up(Up::Activity(activity));
                Ok(())
            }
            Some(Up::Start(_)) => Err(Refusal::field("frame", "must be Start only once")),
            None => Err(Refusal::field("frame", "is required")),
        }
    }

    /// Kept here until the owner has it: it is repeated to the next one.
    fn acknowledge(&mut self, acknowledge: v1::AttachAcknowledge) -> Result<(), Refusal> {
        let invalid = |_| Refusal::new(Reason::CursorInvalid);
        let at = cursor::decode(self.caller.user, &acknowledge.cursor).map_err(invalid)?;
        let sent = cursor::decode(self.caller.user, &self.sent).map_err(invalid)?;
        let acknowledged = cursor::decode(self.caller.user, &self.acknowledged).map_err(invalid)?;
        if at <= acknowledged {
            return Ok(());
        }
        match &mut self.resume {
            Some(resume) if at > sent && at <= Some(resume.at) => {
                resume.acknowledged = Some(acknowledge.cursor.clone());
            }
            _ if at > sent => return Err(Refusal::new(Reason::CursorInvalid)),
            _ => self.acknowledged = acknowledge.cursor.clone(),
        }
        self.pass_up(Up::Acknowledge(acknowledge));
        Ok(())
    }

    fn read(&mut self, read: AttachRead) -> Result<(), Refusal> {
        let conversation = ids::conversation(&read.conversation_id, "read.conversation_id")?;
        if self.reads.len() >= READS_KEPT && !self.reads.contains_key(&conversation) {
            self.reads.pop_first();
        }
        self.reads.insert(conversation, read.clone());
        self.pass_up(Up::Read(read));
        Ok(())
    }

    async fn renew(&mut self, token: &str) -> Result<(), Refusal> {
        let renewed = match self.edge.authenticator.authenticate(token).await {
            Ok(caller) => caller.device(),
            Err(reason) => Err(Refusal::new(reason)),
        };
        let same = renewed.and_then(|caller| {
            let same = (caller.tenant, caller.user, caller.device)
                == (self.caller.tenant, self.caller.user, self.caller.device);
            if same { Ok(caller) } else { Err(Refusal::new(Reason::TokenInvalid)) }
        });
        match same {
            Ok(caller) => {
                self.caller = caller;
                self.warned = false;
                Ok(())
            }
            Err(refusal) => {
                self.edge.audit.record("attach.renew", None, Some(self.caller.device.as_bytes()), Err(refusal.reason));
                Err(refusal)
            }
        }
    }

    /// How long until the session is to be spoken of: its coming end, or its end, which is when a call would be refused.
    fn until_told(&self) -> Duration {
        let now = self.edge.owner.clock.now();
        let notice = self.edge.owner.options.timings.session_notice;
        let expires_at = self.caller.expires_at;
        let at = if self.warned { expires_at.plus(LEEWAY) } else { expires_at.minus(notice) };
        at.since(now)
    }

    fn tell_time(&mut self) -> Result<(), Refusal> {
        if !self.until_told().is_zero() {
            return Ok(());
        }
        if self.warned {
            return Err(Refusal::new(Reason::SessionExpired));
        }
        self.warned = true;
        let expire_time = Some(time::to_wire(self.caller.expires_at));
        self.tell(Down::SessionExpiring(v1::AttachSessionExpiring { expire_time }));
        Ok(())
    }

    async fn say_draining(&self, down: &Sender) {
        let retry_after = prost_types::Duration::try_from(self.edge.owner.options.timings.drain_retry_after).ok();
        let draining = v1::AttachDraining { retry_after, cursor: self.sent.clone() };
        let frame = AttachResponse { frame: Some(Down::Draining(draining)) };
        let waiting = self.frames_down.iter().cloned().chain([frame]);
        let telling = async {
            for frame in waiting {
                if down.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
        };
        // A device that does not read finds out when the connection ends.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, telling).await;
    }
}
