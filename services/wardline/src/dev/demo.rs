//! The demonstration: a care team's short exchange over the real API, with real devices, checked on every receiving device.
//!
//! It uses nothing but the addresses it is given, as any other client would. Deliberately absent: anything that looks into
//! the server.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use secrecy::SecretString;
use tonic::Request;
use wardline_client::{
    AccessTokens, Admin, ContentId, ConversationId, ConversationStatus, Device, DeviceId, Endpoints, HistoryEntry,
    MessageState, NewConversation, Options, UserId,
};
use wardline_proto::v1;
use wardline_proto::v1::delivery_service_client::DeliveryServiceClient;

use super::transcript::Transcript;
use crate::issuer;

/// Where the services and the issuer are.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The services.
    pub endpoints: Endpoints,
    /// The development issuer.
    pub issuer: std::net::SocketAddr,
}

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A device or call failed.
    #[error("{who}: {error}")]
    Device {
        /// Whose device, in the demonstration's own words.
        who: &'static str,
        /// What happened.
        error: wardline_client::Error,
    },
    /// Everything answered, but something is not as promised.
    #[error("{0}")]
    Broken(&'static str),
    /// A file could not be made.
    #[error("the devices' folder: {0}")]
    Files(#[from] std::io::Error),
}

/// The words that cross the wire only as ciphertext.
pub(crate) const FIRST_WORDS: &str = "Bed 12: lactate 4.1, starting fluids. Please have norepinephrine ready.";
const REPLY: &str = "Fluids running. Second line is in. BP 84/50.";
const DOSE: &str = "Norepinephrine 8 mg in 250 mL is on its way. Start at 0.05 mcg/kg/min.";
const AFTER_LOSS: &str = "MAP 67 on 0.08. Lactate repeats at 21:30.";
const FROM_TABLET: &str = "Seen, from my tablet. Thank you both.";

/// Takes a token of the development issuer for one person whenever one is needed.
#[derive(Debug)]
struct Login {
    issuer: std::net::SocketAddr,
    subject: String,
    scope: &'static str,
}

#[async_trait]
impl AccessTokens for Login {
    async fn access_token(&self) -> Result<SecretString, wardline_client::Error> {
        issuer::fetch_token(self.issuer, &self.subject, self.scope)
            .await
            .map_err(|_| wardline_client::Error::Invalid("the issuer gave no token"))
    }
}

/// One device of one person.
struct Actor {
    who: &'static str,
    device: Device,
}

impl Actor {
    fn failed(&self) -> impl Fn(wardline_client::Error) -> DemoError + use<> {
        let who = self.who;
        move |error| DemoError::Device { who, error }
    }
}

/// The cast. The physician has two devices.
struct Cast {
    phone: Actor,
    tablet: Actor,
    nurse: Actor,
    pharmacist: Actor,
    users: Users,
}

struct Users {
    nurse: UserId,
    pharmacist: UserId,
}

struct Demo<'a> {
    at: &'a Addresses,
    folder: &'a Path,
    patience: Duration,
    out: Transcript,
}

/// Plays the exchange. Answers when every receiving device has verified every step.
pub async fn play(at: &Addresses, folder: &Path, patience: Duration) -> Result<(), DemoError> {
    let mut demo = Demo { at, folder, patience, out: Transcript::new() };
    demo.out.heading("A care team, end to end encrypted");
    match demo.run().await {
        Ok(verified) => {
            demo.out.verdict(&verified);
            Ok(())
        }
        Err(error) => {
            demo.out.failure(&error.to_string());
            Err(error)
        }
    }
}

impl Demo<'_> {
    async fn run(&mut self) -> Result<String, DemoError> {
        let cast = self.enrol().await?;
        let conversation = self.gather(&cast).await?;
        let first = self.exchange(&cast, conversation).await?;
        self.receipts(&cast, conversation, first).await?;
        let lost = self.lose_phone(&cast, conversation).await?;
        let verified = self.verify(&cast, conversation, lost).await?;
        for actor in [cast.phone, cast.tablet, cast.nurse, cast.pharmacist] {
            actor.device.close().await;
        }
        Ok(verified)
    }

    /// Users by the directory, devices by their own keys, the physician's second device vouched for by the first.
    async fn enrol(&mut self) -> Result<Cast, DemoError> {
        let began = Instant::now();
        std::fs::create_dir_all(self.folder)?;
        let users = self.create_users().await?;
        let phone = self.device("Dr. Osei (phone)", "physician", "physician-phone.db")?;
        let nurse = self.device("Nurse Park", "nurse", "nurse.db")?;
        let pharmacist = self.device("Pharmacist Ruiz", "pharmacist", "pharmacist.db")?;
        for actor in [&phone, &nurse, &pharmacist] {
            actor.device.enroll().await.map_err(actor.failed())?;
        }
        self.out.step("Dr. Osei, Nurse Park and Pharmacist Ruiz enrol their phones", began.elapsed());

        let began = Instant::now();
        let tablet = self.device("Dr. Osei (tablet)", "physician", "physician.db")?;
        let request = tablet.device.enrollment_request().await.map_err(tablet.failed())?;
        let vouch = phone.device.vouch_for(&request).await.map_err(phone.failed())?;
        tablet.device.enroll_with(&request, &vouch).await.map_err(tablet.failed())?;
        self.out.step("Dr. Osei adds a tablet; the phone vouches for it", began.elapsed());

        let began = Instant::now();
        for actor in [&phone, &tablet, &nurse, &pharmacist] {
            actor.device.publish_key_packages(20).await.map_err(actor.failed())?;
            actor.device.attach();
        }
        self.out.step("All four publish key packages and attach to their feeds", began.elapsed());
        Ok(Cast { phone, tablet, nurse, pharmacist, users })
    }

    async fn create_users(&self) -> Result<Users, DemoError> {
        let failed = |error| DemoError::Device { who: "the directory's administrator", error };
        let login = self.login("directory-admin", "directory.write");
        let admin = Admin::new(&self.at.endpoints, login).map_err(failed)?;
        let [physician, nurse, pharmacist] = std::array::from_fn(|_| new_user());
        for (user, name) in [(physician, "physician"), (nurse, "nurse"), (pharmacist, "pharmacist")] {
            admin.create_user(user, &self.subject(name)).await.map_err(failed)?;
        }
        Ok(Users { nurse, pharmacist })
    }

    /// People are new in every run: the folder's name is the run's.
    fn subject(&self, name: &str) -> String {
        subject(self.folder, name)
    }

    fn login(&self, subject: impl Into<String>, scope: &'static str) -> Arc<dyn AccessTokens> {
        Arc::new(Login { issuer: self.at.issuer, subject: subject.into(), scope })
    }

    fn device(&self, who: &'static str, subject: &str, file: &str) -> Result<Actor, DemoError> {
        let login = self.login(self.subject(subject), "");
        let device = Device::create(self.folder.join(file), &self.at.endpoints, login, Options::default())
            .map_err(|error| DemoError::Device { who, error })?;
        Ok(Actor { who, device })
    }

    async fn gather(&mut self, cast: &Cast) -> Result<ConversationId, DemoError> {
        let began = Instant::now();
        let team = NewConversation::group("Bed 12 · sepsis watch", [cast.users.nurse, cast.users.pharmacist]);
        let conversation = cast.phone.device.create_conversation(team).await.map_err(cast.phone.failed())?;
        for actor in [&cast.phone, &cast.tablet, &cast.nurse, &cast.pharmacist] {
            actor.device.wait_active(conversation, self.patience).await.map_err(actor.failed())?;
        }
        self.out.step("Dr. Osei opens \u{201c}Bed 12 · sepsis watch\u{201d}; four devices join", began.elapsed());
        self.out.detail("one MLS group (RFC 9420); the server saw the commit, not a name, not a title");
        Ok(conversation)
    }

    /// Sends from one device, waits until all others show the text, and says how long each part took.
    async fn send(
        &mut self,
        conversation: ConversationId,
        from: &Actor,
        to: &[&Actor],
        text: &str,
        step: &str,
    ) -> Result<(ContentId, HistoryEntry), DemoError> {
        let began = Instant::now();
        let content = from.device.send_text(conversation, text).map_err(from.failed())?;
        from.device.wait_sequenced(conversation, content, self.patience).await.map_err(from.failed())?;
        let sequenced = began.elapsed();
        let mut shown = None;
        for actor in to {
            let entry = actor.device.wait_for_text(conversation, text, self.patience).await.map_err(actor.failed())?;
            if entry.content().map(|(id, _)| id) != Some(content) {
                return Err(DemoError::Broken("a device shows the text under another content id"));
            }
            shown = Some(entry);
        }
        let entry = shown.ok_or(DemoError::Broken("nobody to receive"))?;
        self.out.step(step, began.elapsed());
        self.out.said(from.who, text);
        let milliseconds = super::transcript::milliseconds(sequenced);
        self.out.detail(&format!(
            "sequence {}, durable and ordered after {}, then on {} more devices",
            entry.sequence,
            milliseconds.trim(),
            to.len()
        ));
        Ok((content, entry))
    }

    async fn exchange(&mut self, cast: &Cast, conversation: ConversationId) -> Result<ContentId, DemoError> {
        let Cast { phone, tablet, nurse, pharmacist, .. } = cast;
        let (first, _) = self
            .send(conversation, phone, &[tablet, nurse, pharmacist], FIRST_WORDS, "Dr. Osei writes from the phone")
            .await?;
        self.send(conversation, nurse, &[phone, tablet, pharmacist], REPLY, "Nurse Park replies").await?;
        self.send(conversation, pharmacist, &[phone, tablet, nurse], DOSE, "Pharmacist Ruiz replies").await?;
        Ok(first)
    }

    async fn receipts(&mut self, cast: &Cast, conversation: ConversationId, first: ContentId) -> Result<(), DemoError> {
        let phone = &cast.phone;
        let began = Instant::now();
        self.await_state(phone, conversation, first, |state| {
            matches!(state, MessageState::Delivered(_) | MessageState::Read(_))
        })
        .await?;
        self.out.step("Dr. Osei's phone shows the first message delivered to everybody", began.elapsed());

        let began = Instant::now();
        for actor in [&cast.nurse, &cast.pharmacist] {
            let latest = actor.device.history(conversation).map_err(actor.failed())?;
            let latest = latest.last().ok_or(DemoError::Broken("an empty history"))?.sequence;
            actor.device.mark_read(conversation, latest).map_err(actor.failed())?;
        }
        self.await_state(phone, conversation, first, |state| matches!(state, MessageState::Read(_))).await?;
        self.out.step("Nurse Park and Pharmacist Ruiz read it; the phone shows \u{201c}read\u{201d}", began.elapsed());
        Ok(())
    }

    async fn await_state(
        &self,
        actor: &Actor,
        conversation: ConversationId,
        content: ContentId,
        reached: impl Fn(MessageState) -> bool,
    ) -> Result<(), DemoError> {
        actor
            .device
            .wait_for("a receipt", self.patience, |view| {
                Ok(view.message_state(conversation, content)?.filter(|state| reached(*state)))
            })
            .await
            .map_err(actor.failed())?;
        Ok(())
    }

    /// The phone is lost: revoked from the tablet, it hears nothing more, and the group goes on without it.
    async fn lose_phone(&mut self, cast: &Cast, conversation: ConversationId) -> Result<DeviceId, DemoError> {
        let Cast { phone, tablet, nurse, pharmacist, .. } = cast;
        let lost = phone.device.id();
        let began = Instant::now();
        tablet.device.revoke_device(lost).await.map_err(tablet.failed())?;
        let ended = tokio::time::timeout(self.patience, self.phone_is_cut(phone)).await;
        ended.map_err(|_| DemoError::Broken("the revoked phone is still attached"))?;
        self.out.step("The phone is lost: revoked from the tablet, its stream has ended", began.elapsed());

        self.send(
            conversation,
            nurse,
            &[tablet, pharmacist],
            AFTER_LOSS,
            "Nurse Park writes on; the phone's leaf goes",
        )
        .await?;
        self.send(conversation, tablet, &[nurse, pharmacist], FROM_TABLET, "Dr. Osei answers from the tablet").await?;
        let remaining = nurse.device.members(conversation).map_err(nurse.failed())?;
        if remaining.iter().any(|member| member.device == lost) {
            return Err(DemoError::Broken("the revoked phone still has a leaf in the group"));
        }
        Ok(lost)
    }

    /// The server refuses whatever the phone asks.
    async fn phone_is_cut(&self, phone: &Actor) {
        let mut incoming = phone.device.incoming();
        while !phone.device.has_stopped() && phone.device.session_token().await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_millis(50), incoming.recv()).await;
        }
    }

    /// Every remaining device has the same messages under the same chain, the lost one has none of what came after, and the
    /// server's copy is ciphertext.
    async fn verify(&mut self, cast: &Cast, conversation: ConversationId, lost: DeviceId) -> Result<String, DemoError> {
        let began = Instant::now();
        let reference = cast.nurse.device.history(conversation).map_err(cast.nurse.failed())?;
        let last = reference.last().ok_or(DemoError::Broken("an empty history"))?.sequence;
        for actor in [&cast.tablet, &cast.pharmacist] {
            let own = actor
                .device
                .wait_for("the last message", self.patience, |view| {
                    let history = view.history(conversation)?;
                    Ok(history.last().is_some_and(|entry| entry.sequence >= last).then_some(history))
                })
                .await
                .map_err(actor.failed())?;
            same_messages(&reference, &own)?;
            let view = actor.device.conversations().map_err(actor.failed())?;
            if !view.iter().any(|view| view.id == conversation && view.status == ConversationStatus::Active) {
                return Err(DemoError::Broken("a device is not active in the conversation"));
            }
        }
        let phone = cast.phone.device.history(conversation).unwrap_or_default();
        if phone.iter().any(|entry| entry.text() == Some(AFTER_LOSS) || entry.text() == Some(FROM_TABLET)) {
            return Err(DemoError::Broken("the lost phone reads what came after its revocation"));
        }
        debug_assert_ne!(cast.tablet.device.id(), lost);
        self.out.step("All devices agree: one order, one hash chain; the phone has nothing new", began.elapsed());
        let stored = self.server_copy(&cast.tablet, conversation).await?;
        let texts = reference.iter().filter(|entry| entry.text().is_some()).count();
        if stored.len() != usize::try_from(last).unwrap_or(usize::MAX) {
            return Err(DemoError::Broken("the server's history has another length"));
        }
        Ok(format!("{texts} messages and {} commits, verified by every receiving device", stored.len() - texts))
    }

    /// What the server holds, asked as any client would.
    async fn server_copy(
        &mut self,
        actor: &Actor,
        conversation: ConversationId,
    ) -> Result<Vec<v1::Message>, DemoError> {
        let began = Instant::now();
        let failed = actor.failed();
        let token = actor.device.session_token().await.map_err(&failed)?;
        let channel = tonic::transport::Endpoint::from_shared(self.at.endpoints.presence.clone())
            .map_err(|_| DemoError::Broken("the presence address is not a URL"))?
            .connect_lazy();
        let mut request = Request::new(v1::ListMessagesRequest {
            conversation_id: conversation.to_string(),
            after_sequence: 0,
            page_size: 100,
        });
        let bearer = format!("Bearer {token}").parse().map_err(|_| DemoError::Broken("the token is not ASCII"))?;
        request.metadata_mut().insert("authorization", bearer);
        let answer = DeliveryServiceClient::new(channel).list_messages(request).await;
        let messages = answer.map_err(|status| failed(status.into()))?.into_inner().messages;
        self.out.step("What the server holds of it:", began.elapsed());
        for message in &messages {
            self.out.detail(&stored_line(message));
        }
        let spoken = [FIRST_WORDS, REPLY, DOSE, AFTER_LOSS, FROM_TABLET];
        let readable =
            messages.iter().any(|message| spoken.iter().any(|text| contains(body(message), text.as_bytes())));
        if readable {
            return Err(DemoError::Broken("the server's copy is readable"));
        }
        Ok(messages)
    }
}

/// The subject by which the issuer knows a person of a run.
pub(crate) fn subject(folder: &Path, name: &str) -> String {
    let run = folder.file_name().map(|run| run.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{name}.{run}")
}

fn new_user() -> UserId {
    UserId::from_bytes(*uuid::Uuid::new_v4().as_bytes())
}

fn same_messages(reference: &[HistoryEntry], own: &[HistoryEntry]) -> Result<(), DemoError> {
    // A device's history begins where it joined.
    let from = own.first().map_or(u64::MAX, |entry| entry.sequence);
    let expected = reference.iter().filter(|entry| entry.sequence >= from);
    let mut pairs = expected.zip(own);
    let same = pairs.all(|(a, b)| (a.sequence, a.payload, a.chain) == (b.sequence, b.payload, b.chain));
    let texts = |entries: &[HistoryEntry]| entries.iter().filter(|entry| entry.text().is_some()).count();
    if same && texts(reference) == texts(own) { Ok(()) } else { Err(DemoError::Broken("two devices differ")) }
}

fn body(message: &v1::Message) -> &[u8] {
    match &message.body {
        Some(v1::message::Body::MlsMessage(bytes)) => bytes,
        _ => &[],
    }
}

fn stored_line(message: &v1::Message) -> String {
    let bytes = body(message);
    // MLS wire formats (RFC 9420 section 17.2): 1 is PublicMessage, 2 PrivateMessage.
    let kind = if bytes.get(3) == Some(&2) { "ciphertext" } else { "commit" };
    let hex: String = bytes.iter().rev().take(12).map(|byte| format!("{byte:02x}")).collect();
    let chain: String = message.chain_hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("#{:<3} {kind:<10} {:>6} bytes  …{hex}  chain {chain}…", message.sequence, bytes.len())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
