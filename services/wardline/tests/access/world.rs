//! Two tenants, a conversation, and one caller of each kind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;
use wardline_client::{Device, NewConversation};
use wardline_domain::{ConversationId, DeviceId, Digest, TenantId, UserId};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::caller::Scopes;
use wardline_runtime::session::SessionKeys;
use wardline_runtime::{Caller, Clock};
use wardline_testbed::cluster::{Cluster, TENANTS};
use wardline_testbed::people::PATIENCE;
use wardline_testbed::raw;

/// The listeners that devices reach.
pub const LISTENERS: [&str; 4] = ["directory", "ingest", "presence", "receipt"];

/// A device and what its session says.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    pub tenant: TenantId,
    pub user: UserId,
    pub device: DeviceId,
    key: Digest,
}

/// The ids that requests name, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub tenant: String,
    pub user: String,
    pub device: String,
    pub colleague: String,
    /// A device of the member's that may be revoked.
    pub spare: String,
    pub group: String,
    /// A conversation of the member alone, still at epoch 0.
    pub solo: String,
    /// A conversation that the member may leave.
    pub left: String,
    pub message: String,
}

impl Names {
    /// Names of nothing, of the same shape.
    pub fn ghosts() -> Self {
        let [tenant, user, device, colleague, spare, group, solo, left] =
            std::array::from_fn(|_| uuid::Uuid::new_v4().to_string());
        let message = uuid::Uuid::now_v7().to_string();
        Self { tenant, user, device, colleague, spare, group, solo, left, message }
    }

    fn all(&self) -> [&str; 9] {
        [
            &self.tenant,
            &self.user,
            &self.device,
            &self.colleague,
            &self.spare,
            &self.group,
            &self.solo,
            &self.left,
            &self.message,
        ]
    }

    /// `bytes` with these names in the place of `others`.
    pub fn instead_of(&self, others: &Self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (own, other) in self.all().into_iter().zip(others.all()) {
            let at: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(other.as_bytes())).collect();
            at.into_iter().for_each(|at| bytes[at..at + own.len()].copy_from_slice(own.as_bytes()));
        }
        bytes
    }
}

/// What the world keeps of the member's doings, for requests that repeat them.
pub struct Kept {
    /// The member's device as enrolled, and the entry of the log that says so.
    pub entry: v1::DeviceLogEntry,
    /// The state of the conversation `solo`.
    pub solo: v1::GroupState,
    /// The commit that made the group what it is.
    pub commit: v1::Sealed,
    /// Where the group is now.
    pub group: v1::Conversation,
}

pub struct World {
    pub cluster: Cluster,
    pub sessions: Arc<SessionKeys>,
    pub channels: BTreeMap<&'static str, Channel>,
    pub names: Names,
    pub kept: Kept,
    pub member: Who,
    pub stranger: Who,
    pub foreigner: Who,
    pub revoked: Who,
    pub deactivated: Who,
}

impl World {
    pub async fn start() -> Self {
        Self::start_on(Cluster::start(1).await.unwrap()).await
    }

    pub async fn start_on(mut cluster: Cluster) -> Self {
        let sessions = cluster.options_mut().keys.session.clone().unwrap();
        let at = cluster.endpoints(0);
        let urls = [at.directory, at.ingest, at.presence, at.receipt];
        let connect = |url| Endpoint::from_shared(url).unwrap().connect_lazy();
        let channels: BTreeMap<_, _> = LISTENERS.into_iter().zip(urls.map(connect)).collect();
        let asks = Asks { cluster: &cluster, sessions: &sessions, channels: &channels };

        let people = cluster.people(0, 0);
        let [colleague, own, stranger, revoked, deactivated] = {
            let mut made = Vec::new();
            for name in ["colleague", "member", "stranger", "revoked", "deactivated"] {
                let person = people.person(name).await.unwrap();
                let device = people.device(&person, None).await.unwrap();
                made.push((person, device));
            }
            made.try_into().unwrap()
        };
        let abroad = cluster.people(1, 0);
        let person = abroad.person("foreigner").await.unwrap();
        let foreigner = (abroad.device(&person, None).await.unwrap(), person.user);

        let (mine, theirs) = (&own.1, &colleague.1);
        let talk = |title: &str, with: Vec<UserId>| mine.create_conversation(NewConversation::group(title, with));
        let group = talk("group", vec![colleague.0.user]).await.unwrap();
        let solo = talk("solo", Vec::new()).await.unwrap();
        let left = talk("left", vec![colleague.0.user]).await.unwrap();
        theirs.wait_active(left, PATIENCE).await.unwrap();
        mine.send_text(group, "a text").unwrap();
        theirs.wait_for_text(group, "a text", PATIENCE).await.unwrap();

        let member = asks.who(0, own.0.user, mine).await;
        let kept = asks.keep(&member, group, solo).await;
        // The spare comes last, so that no conversation has it.
        let (spare, _) = people.device_with(&own.0, Some(mine), Default::default()).await.unwrap();
        let text = |id: UserId| id.to_string();
        let names = Names {
            tenant: TENANTS[0].to_string(),
            user: text(own.0.user),
            device: mine.id().to_string(),
            colleague: text(colleague.0.user),
            spare: spare.id().to_string(),
            group: group.to_string(),
            solo: solo.to_string(),
            left: left.to_string(),
            message: uuid::Uuid::now_v7().to_string(),
        };
        let stranger = asks.who(0, stranger.0.user, &stranger.1).await;
        let foreigner = asks.who(1, foreigner.1, &foreigner.0).await;
        let revoked = asks.revoke(asks.who(0, revoked.0.user, &revoked.1).await).await;
        let deactivated = asks.deactivate(asks.who(0, deactivated.0.user, &deactivated.1).await).await;
        // From here on the tests speak for the devices.
        for device in [own.1, colleague.1, spare] {
            device.close().await;
        }
        Self { sessions, channels, names, kept, member, stranger, foreigner, revoked, deactivated, cluster }
    }

    /// A new session of somebody.
    pub fn token(&self, who: &Who) -> String {
        token(&self.sessions, who, Scopes::default(), Duration::from_secs(600))
    }

    /// As [`World::token`], with scopes.
    pub fn token_with(&self, who: &Who, scopes: Scopes) -> String {
        token(&self.sessions, who, scopes, Duration::from_secs(600))
    }

    /// A session that ended longer ago than clocks may differ.
    pub fn expired_token(&self, who: &Who) -> String {
        let now = Clock::system().now();
        let caller = caller(who, Scopes::default());
        self.sessions.mint(&Caller { expires_at: now.minus(Duration::from_secs(3600)), ..caller })
    }
}

fn caller(who: &Who, scopes: Scopes) -> Caller {
    Caller {
        session: *uuid::Uuid::new_v4().as_bytes(),
        tenant: Some(who.tenant),
        user: Some(who.user),
        device: Some(who.device),
        key: who.key,
        scopes,
        expires_at: Clock::system().now(),
    }
}

fn token(sessions: &SessionKeys, who: &Who, scopes: Scopes, life: Duration) -> String {
    let expires_at = Clock::system().now().plus(life);
    sessions.mint(&Caller { expires_at, ..caller(who, scopes) })
}

/// The reason in a status.
pub fn reason_of(status: &tonic::Status) -> Option<Reason> {
    Reason::parse(&status.get_details_error_info()?.reason)
}

/// What the world is asked while it is made.
struct Asks<'a> {
    cluster: &'a Cluster,
    sessions: &'a SessionKeys,
    channels: &'a BTreeMap<&'static str, Channel>,
}

impl Asks<'_> {
    async fn who(&self, tenant: usize, user: UserId, device: &Device) -> Who {
        let row = self.cluster.over().stores.directory.device(user, device.id()).await.unwrap().unwrap();
        Who { tenant: TENANTS[tenant], user, device: device.id(), key: row.thumbprint }
    }

    async fn ask<A: prost::Message + Default>(
        &self,
        at: &str,
        path: &str,
        token: &str,
        request: &impl prost::Message,
    ) -> Result<A, tonic::Status> {
        let bytes = Bytes::from(request.encode_to_vec());
        Ok(A::decode(raw::unary(&self.channels[at], path, Some(token), bytes).await?).unwrap())
    }

    async fn keep(&self, member: &Who, group: ConversationId, solo: ConversationId) -> Kept {
        let token = token(self.sessions, member, Scopes::default(), Duration::from_secs(600));
        let log = v1::ListDeviceLogRequest { user_id: member.user.to_string(), ..Default::default() };
        let path = "/wardline.v1.DirectoryService/ListDeviceLog";
        let log: v1::ListDeviceLogResponse = self.ask("directory", path, &token, &log).await.unwrap();
        let path = "/wardline.v1.ConversationService/GetGroupState";
        let state = v1::GetGroupStateRequest { conversation_id: solo.to_string(), epoch: None };
        let state: v1::GetGroupStateResponse = self.ask("ingest", path, &token, &state).await.unwrap();
        let path = "/wardline.v1.ConversationService/GetConversation";
        let now = v1::GetConversationRequest { conversation_id: group.to_string() };
        let now: v1::GetConversationResponse = self.ask("ingest", path, &token, &now).await.unwrap();
        let path = "/wardline.v1.DeliveryService/ListMessages";
        let messages = v1::ListMessagesRequest { conversation_id: group.to_string(), ..Default::default() };
        let messages: v1::ListMessagesResponse = self.ask("presence", path, &token, &messages).await.unwrap();
        let first = messages.messages.into_iter().next().unwrap();
        let Some(v1::message::Body::MlsMessage(mls_message)) = first.body else { panic!("a commit by reference") };
        Kept {
            entry: log.entries.into_iter().next().unwrap(),
            solo: state.group_state.unwrap(),
            commit: v1::Sealed { envelope: first.envelope, mls_message },
            group: now.conversation.unwrap(),
        }
    }

    async fn revoke(&self, who: Who) -> Who {
        let scopes = Scopes { tenant_admin: true, ..Scopes::default() };
        let admin = token(self.sessions, &who, scopes, Duration::from_secs(600));
        let request = v1::RevokeDeviceRequest { user_id: who.user.to_string(), device_id: who.device.to_string() };
        let path = "/wardline.v1.DirectoryService/RevokeDevice";
        let _: v1::RevokeDeviceResponse = self.ask("directory", path, &admin, &request).await.unwrap();
        self.until_refused(&who, Reason::DeviceRevoked).await;
        who
    }

    async fn deactivate(&self, who: Who) -> Who {
        let scopes = Scopes { directory_write: true, ..Scopes::default() };
        let admin = token(self.sessions, &who, scopes, Duration::from_secs(600));
        let request = v1::DeactivateUserRequest { user_id: who.user.to_string(), etag: String::new() };
        let path = "/wardline.v1.DirectoryService/DeactivateUser";
        let _: v1::DeactivateUserResponse = self.ask("directory", path, &admin, &request).await.unwrap();
        self.until_refused(&who, Reason::UserDeactivated).await;
        who
    }

    /// The answer to a revocation is durable; the record of it reaches every role a moment later.
    async fn until_refused(&self, who: &Who, reason: Reason) {
        let refused = async {
            for at in LISTENERS {
                let token = token(self.sessions, who, Scopes::default(), Duration::from_secs(600));
                let ended = |status: tonic::Status| reason_of(&status) == Some(reason);
                let path = "/wardline.v1.Nothing/Nothing";
                while !raw::unary(&self.channels[at], path, Some(&token), Bytes::new()).await.is_err_and(ended) {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, refused).await.expect("the revocation is known everywhere");
    }
}
