//! What the tests of whole clusters share: people with their devices, conversations between them, the wait until all devices
//! have everything and agree, and calls by hand for what a device would not do.

#![allow(dead_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use wardline::node::NodeOptions;
use wardline_client::{
    ContentId, ConversationId, Device, DeviceId, Endpoints, Error, Failpoints, HistoryEntry, NewConversation, Options,
    UserId,
};
use wardline_proto::v1;
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_proto::v1::conversation_service_client::ConversationServiceClient;
use wardline_proto::v1::delivery_service_client::DeliveryServiceClient;
use wardline_proto::v1::receipt_service_client::ReceiptServiceClient;
use wardline_registry::Rate;
use wardline_testbed::cluster::Cluster;
use wardline_testbed::forwarder::Forwarder;
use wardline_testbed::ledger::{Held, Ledger};
use wardline_testbed::people::{PATIENCE, People, Person};

/// A device and whose it is.
pub(crate) struct Member {
    pub(crate) person: Person,
    pub(crate) device: Device,
    pub(crate) file: PathBuf,
}

/// Few key packages: making them is what takes longest.
pub(crate) fn options() -> Options {
    Options { key_packages: 6, ..People::options() }
}

impl Member {
    pub(crate) fn user(&self) -> UserId {
        self.person.user
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.device.id()
    }

    pub(crate) fn say(&self, conversation: ConversationId, text: &str) -> ContentId {
        self.device.send_text(conversation, text).expect("what is said is saved")
    }

    pub(crate) async fn reads(&self, conversation: ConversationId, text: &str) -> HistoryEntry {
        self.device.wait_for_text(conversation, text, PATIENCE).await.expect("the text comes")
    }

    pub(crate) async fn is_active(&self, conversation: ConversationId) {
        self.device.wait_active(conversation, PATIENCE).await.expect("the device joins");
    }

    /// The leaves that the device's own group has.
    pub(crate) fn leaves(&self, conversation: ConversationId) -> BTreeSet<DeviceId> {
        self.device.members(conversation).unwrap().into_iter().map(|member| member.device).collect()
    }

    /// Waits until the device's own group has exactly these leaves.
    pub(crate) async fn sees_leaves(&self, conversation: ConversationId, of: &[&Self]) {
        let expected: BTreeSet<DeviceId> = of.iter().map(|member| member.id()).collect();
        let found = self.device.wait_for("the leaves", PATIENCE, |view| {
            let there: BTreeSet<DeviceId> = view.members(conversation)?.iter().map(|member| member.device).collect();
            Ok((there == expected).then_some(()))
        });
        found.await.expect("the group has the leaves that it should have");
    }

    /// Closes the device and opens its file again, attached. The file is locked until the last handle has gone.
    pub(crate) async fn reopened(self, people: &People) -> Self {
        let again = self.reopened_with(people, Failpoints::none()).await;
        again.device.attach();
        again
    }

    /// As [`Member::reopened`], with failpoints, not attached.
    pub(crate) async fn reopened_with(self, people: &People, failpoints: Failpoints) -> Self {
        let Self { person, device, file } = self;
        device.close().await;
        let device = people.reopen(&person, &file, failpoints).expect("a device's file opens");
        Self { person, device, file }
    }
}

/// A cluster that lets people be added to as many conversations as a test makes of them.
pub(crate) async fn unmetered() -> Cluster {
    let limits = |options: &mut NodeOptions| {
        options.directory_limits.claims_of_user_by_one = Rate { burst: 1_000_000, per_second: 1_000_000 };
    };
    Cluster::start_with(1, limits).await.expect("a cluster starts")
}

/// A new person with one device, attached.
pub(crate) async fn member(people: &People, name: &str) -> Member {
    let person = people.person(name).await.expect("a user is made");
    let (device, file) = people.device_with(&person, None, options()).await.expect("a device is enrolled");
    device.attach();
    Member { person, device, file }
}

/// New people with one device each, attached.
pub(crate) async fn members<const N: usize>(people: &People, names: [&str; N]) -> [Member; N] {
    let all = futures::future::join_all(names.map(|name| member(people, name))).await;
    all.try_into().ok().expect("one for each name")
}

/// A cluster of one instance, and new people there with one device each, attached.
pub(crate) async fn ward<const N: usize>(names: [&str; N]) -> (Cluster, People, [Member; N]) {
    let cluster = Cluster::start(1).await.expect("a cluster starts");
    let people = cluster.people(0, 0);
    let members = members(&people, names).await;
    (cluster, people, members)
}

/// One more device of somebody, attached.
pub(crate) async fn another(people: &People, of: &Member) -> Member {
    another_with(people, of, options()).await
}

/// One more device of somebody, with options, attached.
pub(crate) async fn another_with(people: &People, of: &Member, options: Options) -> Member {
    let made = people.device_with(&of.person, Some(&of.device), options).await;
    let (device, file) = made.expect("a further device is enrolled");
    device.attach();
    Member { person: of.person.clone(), device, file }
}

/// A conversation of all of them, made by the first; answers when all have joined.
pub(crate) async fn conversation(of: &[&Member]) -> ConversationId {
    let users: BTreeSet<UserId> = of.iter().map(|member| member.user()).filter(|user| *user != of[0].user()).collect();
    let new = NewConversation::group("Ward 7", users.into_iter().collect::<Vec<_>>());
    let conversation = of[0].device.create_conversation(new).await.expect("a conversation is made");
    for member in of {
        member.is_active(conversation).await;
    }
    conversation
}

/// Waits until every device has all that was sent and as much as the others, and holds them against each other.
pub(crate) async fn agreed(conversation: ConversationId, devices: &[&Member], sent: &[ContentId]) -> Ledger {
    agreed_with(conversation, devices, sent, false).await
}

/// As [`agreed`]; also waits until receipts have converged.
pub(crate) async fn agreed_with_receipts(
    conversation: ConversationId,
    devices: &[&Member],
    sent: &[ContentId],
) -> Ledger {
    agreed_with(conversation, devices, sent, true).await
}

async fn agreed_with(conversation: ConversationId, devices: &[&Member], sent: &[ContentId], receipts: bool) -> Ledger {
    let sent: BTreeSet<ContentId> = sent.iter().copied().collect();
    for member in devices {
        has_all(&member.device, conversation, &sent).await;
    }
    let copy = || copies(conversation, devices, &sent);
    let last = copy().devices.values().filter_map(|held| held.history.last()).map(|entry| entry.sequence).max();
    for member in devices {
        let there = member.device.wait_for("the last sequence", PATIENCE, |view| {
            Ok((view.history(conversation)?.last().map(|entry| entry.sequence) >= last).then_some(()))
        });
        there.await.expect("every device gets as far as every other");
    }
    if receipts {
        eventually("the receipts to converge", async || copy().receipt_findings().is_empty().then_some(())).await;
    }
    let ledger = copy();
    let findings: Vec<String> = ledger.findings().iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "not as promised: {findings:?}");
    ledger
}

async fn has_all(device: &Device, conversation: ConversationId, sent: &BTreeSet<ContentId>) {
    let mut missing = sent.len();
    let all = device.wait_for("all that was sent", PATIENCE, |view| {
        let history = view.history(conversation)?;
        let there: BTreeSet<ContentId> = history.iter().filter_map(|entry| entry.content()).map(|(id, _)| id).collect();
        missing = sent.difference(&there).count();
        Ok((missing == 0).then_some(()))
    });
    let all = all.await;
    all.unwrap_or_else(|error| panic!("{missing} of {} messages did not come: {error}", sent.len()));
}

fn copies(conversation: ConversationId, devices: &[&Member], sent: &BTreeSet<ContentId>) -> Ledger {
    let held = |member: &&Member| Held {
        history: member.device.history(conversation).unwrap(),
        read: member.device.view(|view| Ok(view.conversation(conversation)?.map_or(0, |view| view.read))).unwrap(),
        receipts: member.device.receipts(conversation).unwrap(),
    };
    let devices = devices.iter().map(|member| ((member.user(), member.id()), held(member))).collect();
    Ledger { sent: sent.clone(), devices }
}

/// How often a device has a text.
pub(crate) fn times(device: &Device, conversation: ConversationId, text: &str) -> usize {
    device.history(conversation).unwrap().iter().filter(|entry| entry.text() == Some(text)).count()
}

/// Asks again and again, for what nothing tells of.
pub(crate) async fn eventually<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        let mut again = tokio::time::interval(Duration::from_millis(10));
        loop {
            again.tick().await;
            if let Some(found) = find().await {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// Whether an error's reason is this one.
pub(crate) fn is(error: &Error, reason: wardline_client::Reason) -> bool {
    error.reason() == Some(reason)
}

/// Calls by hand, in the name of a device.
pub(crate) struct ByHand {
    token: String,
    endpoints: Endpoints,
}

impl ByHand {
    pub(crate) async fn of(device: &Device, endpoints: &Endpoints) -> Self {
        let token = device.session_token().await.expect("a session");
        Self { token, endpoints: endpoints.clone() }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        request
    }

    fn channel(url: &str) -> Channel {
        Endpoint::from_shared(url.to_owned()).unwrap().connect_lazy()
    }

    pub(crate) fn ingest(&self) -> ConversationServiceClient<Channel> {
        ConversationServiceClient::new(Self::channel(&self.endpoints.ingest))
    }

    pub(crate) fn presence(&self) -> DeliveryServiceClient<Channel> {
        DeliveryServiceClient::new(Self::channel(&self.endpoints.presence))
    }

    pub(crate) async fn send(&self, sealed: v1::Sealed) -> Result<(), Error> {
        let sent = self.ingest().send(self.request(v1::SendRequest { sealed: Some(sealed) })).await;
        sent.map(|_| ()).map_err(Error::from)
    }

    /// The server's history.
    pub(crate) async fn messages(
        &self,
        conversation: ConversationId,
        after: u64,
        page: i32,
    ) -> v1::ListMessagesResponse {
        let request = v1::ListMessagesRequest {
            conversation_id: conversation.to_string(),
            after_sequence: after,
            page_size: page,
        };
        self.presence().list_messages(self.request(request)).await.expect("history").into_inner()
    }

    pub(crate) async fn outcome(
        &self,
        conversation: ConversationId,
        device: DeviceId,
        message: &str,
    ) -> Option<v1::get_outcome_response::Outcome> {
        let request = v1::GetOutcomeRequest {
            conversation_id: conversation.to_string(),
            device_id: device.to_string(),
            message_id: message.to_owned(),
            wait_ms: 0,
        };
        self.ingest().get_outcome(self.request(request)).await.expect("an answer").into_inner().outcome
    }

    pub(crate) async fn receipts(&self, conversation: ConversationId) -> Vec<v1::Watermark> {
        let mut client = ReceiptServiceClient::new(Self::channel(&self.endpoints.receipt));
        let request = v1::GetReceiptsRequest { conversation_id: conversation.to_string(), sequence: 0 };
        client.get_receipts(self.request(request)).await.expect("receipts").into_inner().watermarks
    }

    /// Opens the feed at its beginning.
    pub(crate) async fn attach(&self) -> Attached {
        let (up, frames) = tokio::sync::mpsc::channel(16);
        let start = v1::AttachStart { cursor: bytes::Bytes::new(), window_events: 0, window_bytes: 0 };
        up.send(v1::AttachRequest { frame: Some(Up::Start(start)) }).await.unwrap();
        let frames = tokio_stream::wrappers::ReceiverStream::new(frames);
        let down = self.presence().attach(self.request(frames)).await.expect("the feed opens").into_inner();
        Attached { _up: up, down }
    }
}

/// A feed, opened by hand.
pub(crate) struct Attached {
    _up: tokio::sync::mpsc::Sender<v1::AttachRequest>,
    down: tonic::Streaming<v1::AttachResponse>,
}

impl Attached {
    /// The next frame, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<v1::attach_response::Frame, Option<Error>> {
        match tokio::time::timeout(PATIENCE, self.down.message()).await.expect("a frame or an end") {
            Ok(Some(frame)) => Ok(frame.frame.expect("a frame that this version knows")),
            Ok(None) => Err(None),
            Err(status) => Err(Some(status.into())),
        }
    }
}

/// Addresses that stay while the instances behind them come and go.
pub(crate) struct Stable([Forwarder; 4]);

impl Stable {
    pub(crate) async fn start() -> Self {
        let [directory, ingest, presence, receipt] = [const { Forwarder::start }; 4];
        Self([directory().await.unwrap(), ingest().await.unwrap(), presence().await.unwrap(), receipt().await.unwrap()])
    }

    /// Addresses that lead to an instance.
    pub(crate) async fn before(endpoints: &Endpoints) -> Self {
        let stable = Self::start().await;
        stable.lead_to(endpoints);
        stable
    }

    pub(crate) fn endpoints(&self) -> Endpoints {
        let [directory, ingest, presence, receipt] =
            [0, 1, 2, 3].map(|index: usize| format!("http://{}", self.0[index].address()));
        Endpoints { directory, ingest, presence, receipt, tls: None }
    }

    pub(crate) fn lead_to(&self, endpoints: &Endpoints) {
        let Endpoints { directory, ingest, presence, receipt, .. } = endpoints;
        for (forwarder, url) in self.0.iter().zip([directory, ingest, presence, receipt]) {
            forwarder.lead_to(Some(url.trim_start_matches("http://").parse().unwrap()));
        }
    }

    /// Cuts the calls to ingest off, and refuses new ones.
    pub(crate) fn cut_ingest(&self) {
        self.0[1].lead_to(None);
    }

    /// Cuts the feeds off, and refuses new ones.
    pub(crate) fn cut_presence(&self) {
        self.0[2].lead_to(None);
    }
}
