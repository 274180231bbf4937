//! The Publish stream: many messages in flight, answered in the order sent, up to the first unknown outcome.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, Stream, StreamExt};
use metrics::gauge;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wardline_domain::Timestamp;
use wardline_proto::convert::{envelope as wire_envelope, time};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_proto::v1::publish_response::Frame;
use wardline_proto::v1::publish_result::Result as Fate;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::trace::{self, SpanContext};
use wardline_runtime::{Counted, Refusal};

use super::count;
use crate::measures as names;
use crate::{Ingest, Inner};

/// The action as it is counted.
const ACTION: &str = "publish";
/// The span of one message.
const MESSAGE: &str = "wardline.v1.ConversationService/Publish message";

/// A message's id as sent and what became of it.
type Answer = (String, Result<Timestamp, Refusal>);

impl Ingest {
    pub(crate) fn publish_stream(
        &self,
        caller: DeviceCaller,
        up: Streaming<v1::PublishRequest>,
    ) -> Pin<Box<dyn Stream<Item = Result<v1::PublishResponse, Status>> + Send>> {
        let (down, frames) = mpsc::channel(64);
        let inner = Arc::clone(&self.inner);
        let _counted = Counted::one(gauge!(names::STREAMS));
        let publishing = Publishing { inner, caller, stream: trace::current(), _counted };
        tokio::spawn(publishing.run(up, down));
        Box::pin(ReceiverStream::new(frames))
    }
}

/// A stream that is open.
struct Publishing {
    inner: Arc<Inner>,
    caller: DeviceCaller,
    /// The span of the call that opened it, if that is sampled.
    stream: Option<SpanContext>,
    _counted: Counted,
}

impl Publishing {
    /// Ends when the client ends, at the first message whose outcome is unknown or that is to be sent again, when the session or
    /// device ends, or when the server drains.
    async fn run(self, mut up: Streaming<v1::PublishRequest>, down: mpsc::Sender<Result<v1::PublishResponse, Status>>) {
        let options = &self.inner.options;
        let started = v1::PublishStarted { max_in_flight: options.publish_in_flight, max_bytes: options.publish_bytes };
        if down.send(Ok(frame(Frame::Started(started)))).await.is_err() {
            return;
        }
        let mut window = Window::default();
        let mut waiting: FuturesOrdered<BoxFuture<'static, Answer>> = FuturesOrdered::new();
        let mut reading = true;
        while reading || !waiting.is_empty() {
            let room = window.has_room(options.publish_in_flight, options.publish_bytes);
            tokio::select! {
                Some(answer) = waiting.next() => {
                    window.answered();
                    if !answered(&down, answer).await {
                        return;
                    }
                }
                message = up.message(), if reading && room => match message {
                    Ok(Some(request)) => {
                        if let Err(refusal) = self.still_allowed().await {
                            let _ = down.send(Err(refusal.into())).await;
                            return;
                        }
                        window.sent(&request);
                        let (answer, goes_on) = self.publish_one(request).await;
                        waiting.push_back(answer);
                        reading = goes_on;
                    }
                    Ok(None) | Err(_) => reading = false,
                },
                () = self.inner.drain.cancelled(), if reading => {
                    reading = false;
                    if down.send(Ok(frame(Frame::Draining(v1::PublishDraining {})))).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn still_allowed(&self) -> Result<(), Refusal> {
        let caller = &self.caller;
        let expired = self.inner.deps.clock.now() > caller.expires_at.plus(wardline_runtime::session::LEEWAY);
        if expired || self.inner.deps.authenticator.session_ended(caller.session).await {
            return Err(Refusal::new(Reason::SessionExpired));
        }
        self.inner.deps.revocations.check(caller.user, caller.device).map_err(Refusal::new)
    }

    /// Takes a message's place in the log's queue before the next one is read; its durability is awaited beside the others.
    /// False when nothing more may be read: what is to be sent again would otherwise be overtaken by what follows it.
    async fn publish_one(&self, request: v1::PublishRequest) -> (BoxFuture<'static, Answer>, bool) {
        let id = message_id(&request);
        let trace = trace::streamed(MESSAGE, self.stream.as_ref());
        match trace.around(self.inner.submit_content(&self.caller, request.sealed)).await {
            Ok(submitted) => {
                let inner = Arc::clone(&self.inner);
                let finished = async move {
                    let answer = inner.finish(submitted).await;
                    count(ACTION, answer.as_ref().err());
                    drop(trace);
                    (id, answer)
                };
                (finished.boxed(), true)
            }
            Err(refusal) => {
                count(ACTION, Some(&refusal));
                let goes_on = refusal.retry_after.is_none();
                (std::future::ready((id, Err(refusal))).boxed(), goes_on)
            }
        }
    }
}

/// The id as far as the envelope can be read, for the answer.
fn message_id(request: &v1::PublishRequest) -> String {
    let sealed = request.sealed.as_ref();
    let envelope = sealed.and_then(|sealed| wire_envelope::decode(&sealed.envelope).ok());
    envelope.map(|envelope| envelope.message.to_string()).unwrap_or_default()
}

/// Sends an answer. False when the stream is to end.
async fn answered(down: &mpsc::Sender<Result<v1::PublishResponse, Status>>, (id, answer): Answer) -> bool {
    let unknown =
        answer.as_ref().is_err_and(|refusal| matches!(refusal.reason, Reason::Unavailable | Reason::DeadlineExceeded));
    let result = match answer {
        Ok(accepted_at) => Fate::AcceptTime(time::to_wire(accepted_at)),
        Err(refusal) => Fate::Failure(failure(refusal)),
    };
    let result = v1::PublishResult { message_id: id, result: Some(result) };
    down.send(Ok(frame(Frame::Result(result)))).await.is_ok() && !unknown
}

fn failure(refusal: Refusal) -> v1::PublishFailure {
    v1::PublishFailure {
        code: refusal.reason.code() as i32,
        message: refusal.reason.message().to_owned(),
        reason: refusal.reason.as_str().to_owned(),
        metadata: refusal.metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        // A delay of ours is far below what the wire can say.
        retry_delay: refusal.retry_after.and_then(|delay| delay.try_into().ok()),
    }
}

fn frame(frame: Frame) -> v1::PublishResponse {
    v1::PublishResponse { frame: Some(frame) }
}

/// What is unanswered. Beyond it nothing more is read: the client's stream is held back by HTTP/2 flow control.
#[derive(Debug, Default)]
struct Window {
    sizes: VecDeque<usize>,
    bytes: usize,
}

impl Window {
    fn has_room(&self, messages: u32, bytes: u32) -> bool {
        self.sizes.len() < messages as usize && self.bytes < bytes as usize
    }

    fn sent(&mut self, request: &v1::PublishRequest) {
        let sealed = request.sealed.as_ref();
        let size = sealed.map_or(0, |sealed| sealed.envelope.len() + sealed.mls_message.len());
        self.sizes.push_back(size);
        self.bytes += size;
    }

    fn answered(&mut self) {
        self.bytes -= self.sizes.pop_front().unwrap_or_default();
    }
}
