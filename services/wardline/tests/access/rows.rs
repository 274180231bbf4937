//! One row for every RPC: a minimal valid request, and what each kind of caller hears.

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::{ConversationId, Digest};
use wardline_proto::reason::Reason;
use wardline_proto::reason::Reason::{
    AccessTokenInvalid, ArgumentInvalid, KeyPackageInvalid, NotAMember, NotFound, ScopeRequired, SenderMismatch,
};
use wardline_proto::v1;

use super::world::{Names, Who, World};

/// What a caller hears: `None` is OK.
pub type Hears = Option<Reason>;
const OK: Hears = None;

/// An RPC.
pub struct Row {
    pub path: &'static str,
    /// The listener that answers it.
    pub at: &'static str,
    /// Whether it needs no session.
    pub open: bool,
    pub request: fn(&World, &Names, &Who) -> Vec<u8>,
    /// A member of the conversation, whose user and device the request names.
    pub member: Hears,
    /// A device of the same tenant that is no member.
    pub stranger: Hears,
    /// A device of another tenant.
    pub foreigner: Hears,
}

macro_rules! rows {
    ($($at:literal $path:literal $request:ident $member:expr, $stranger:expr, $foreigner:expr;)*) => {
        [$(Row {
            path: concat!("/wardline.v1.", $path),
            at: $at,
            open: matches!($path, "SessionService/GetServerInfo" | "SessionService/CreateSession"),
            request: $request,
            member: $member,
            stranger: $stranger,
            foreigner: $foreigner,
        }),*]
    };
}

/// The whole public API.
#[rustfmt::skip]
pub fn rows() -> Vec<Row> {
    let no = Some;
    //    listener    RPC                                      request         member                  stranger                foreigner
    rows! {
        "directory" "SessionService/GetServerInfo"             nothing         OK,                     OK,                     OK;
        "directory" "SessionService/CreateSession"             create_session  no(AccessTokenInvalid), no(AccessTokenInvalid), no(AccessTokenInvalid);
        "directory" "SessionService/DeleteSession"             nothing         OK,                     OK,                     OK;
        "directory" "DirectoryService/CreateTenant"            create_tenant   no(ScopeRequired),      no(ScopeRequired),      no(ScopeRequired);
        "directory" "DirectoryService/GetTenant"               tenant          OK,                     OK,                     no(NotFound);
        "directory" "DirectoryService/CreateUser"              create_user     no(ScopeRequired),      no(ScopeRequired),      no(ScopeRequired);
        "directory" "DirectoryService/GetUser"                 user            OK,                     OK,                     no(NotFound);
        "directory" "DirectoryService/DeactivateUser"          colleague       no(ScopeRequired),      no(ScopeRequired),      no(ScopeRequired);
        "directory" "DirectoryService/EnrollDevice"            enroll          OK,                     no(ArgumentInvalid),    no(ArgumentInvalid);
        "directory" "DirectoryService/GetDevice"               device          OK,                     OK,                     no(NotFound);
        "directory" "DirectoryService/ListDevices"             user            OK,                     OK,                     no(NotFound);
        "directory" "DirectoryService/RevokeDevice"            spare           OK,                     no(ScopeRequired),      no(ScopeRequired);
        "directory" "DirectoryService/ListDeviceLog"           user            OK,                     OK,                     no(NotFound);
        "directory" "DirectoryService/PublishKeyPackages"      publish_keys    no(KeyPackageInvalid),  no(KeyPackageInvalid),  no(KeyPackageInvalid);
        "directory" "DirectoryService/ClaimKeyPackages"        claim           OK,                     OK,                     OK;
        "directory" "DirectoryService/GetKeyPackageStatus"     suite           OK,                     OK,                     OK;
        "ingest"    "ConversationService/CreateConversation"   create          OK,                     no(ArgumentInvalid),    no(ArgumentInvalid);
        "ingest"    "ConversationService/GetConversation"      group           OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/ListMembers"          group           OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/LeaveConversation"    leave           OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/GetGroupState"        group           OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/Commit"               commit          OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/Send"                 send            OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/Publish"              send            OK,                     no(NotAMember),         no(NotAMember);
        "ingest"    "ConversationService/GetOutcome"           outcome         OK,                     no(NotAMember),         no(NotAMember);
        "presence"  "DeliveryService/Attach"                   attach          OK,                     OK,                     OK;
        "presence"  "DeliveryService/ListMessages"             group           OK,                     no(NotAMember),         no(NotAMember);
        "presence"  "DeliveryService/ListConversations"        nothing         OK,                     OK,                     OK;
        "presence"  "DeliveryService/GetMessageBody"           message_body    OK,                     no(NotAMember),         no(NotAMember);
        "presence"  "DeliveryService/GetPresence"              presence        OK,                     OK,                     OK;
        "receipt"   "ReceiptService/GetReceipts"               group           OK,                     no(NotAMember),         no(NotAMember);
    }
    .into()
}

/// Somebody else's message, in the sender's name: what every caller but the sender hears of it.
pub const FORGED_SENDER: Reason = SenderMismatch;

fn nothing(_: &World, _: &Names, _: &Who) -> Vec<u8> {
    Vec::new()
}

fn create_session(_: &World, _: &Names, _: &Who) -> Vec<u8> {
    let (access_token, dpop_proof) = ("a.b.c".to_owned(), "d.e.f".to_owned());
    v1::CreateSessionRequest { access_token, dpop_proof }.encode_to_vec()
}

fn create_tenant(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    let tenant = v1::Tenant {
        id: names.tenant.clone(),
        issuers: vec!["https://issuer.invalid".to_owned()],
        suites: vec![1],
        ..Default::default()
    };
    v1::CreateTenantRequest { request_id: names.spare.clone(), tenant: Some(tenant) }.encode_to_vec()
}

fn tenant(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::GetTenantRequest { tenant_id: names.tenant.clone() }.encode_to_vec()
}

fn create_user(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    let user = v1::User {
        id: names.user.clone(),
        kind: v1::UserKind::Person.into(),
        external_id: "somebody".to_owned(),
        ..Default::default()
    };
    v1::CreateUserRequest { request_id: names.spare.clone(), user: Some(user) }.encode_to_vec()
}

/// GetUser, ListDevices and ListDeviceLog all have the user first.
fn user(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::GetUserRequest { user_id: names.user.clone() }.encode_to_vec()
}

fn colleague(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::DeactivateUserRequest { user_id: names.colleague.clone(), etag: String::new() }.encode_to_vec()
}

fn enroll(world: &World, names: &Names, _: &Who) -> Vec<u8> {
    let entry = world.kept.entry.clone();
    let mut device = entry.device.unwrap();
    device.id.clone_from(&names.device);
    device.user_id.clone_from(&names.user);
    let request = v1::EnrollDeviceRequest {
        device: Some(device),
        version: entry.version,
        previous_hash: entry.previous_hash,
        signer_device_id: names.device.clone(),
        signature: entry.signature,
    };
    request.encode_to_vec()
}

fn device(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::GetDeviceRequest { user_id: names.user.clone(), device_id: names.device.clone() }.encode_to_vec()
}

fn spare(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::RevokeDeviceRequest { user_id: names.user.clone(), device_id: names.spare.clone() }.encode_to_vec()
}

fn publish_keys(_: &World, _: &Names, _: &Who) -> Vec<u8> {
    let key_packages = vec![Bytes::from_static(b"not a key package")];
    v1::PublishKeyPackagesRequest { key_packages, last_resort: Bytes::new() }.encode_to_vec()
}

fn claim(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    let request_id = names.spare.clone();
    v1::ClaimKeyPackagesRequest { request_id, user_ids: vec![names.colleague.clone()], suite: 1 }.encode_to_vec()
}

fn suite(_: &World, _: &Names, _: &Who) -> Vec<u8> {
    v1::GetKeyPackageStatusRequest { suite: 1 }.encode_to_vec()
}

fn create(world: &World, names: &Names, _: &Who) -> Vec<u8> {
    let request = v1::CreateConversationRequest {
        conversation_id: names.solo.clone(),
        kind: v1::ConversationKind::Group.into(),
        suite: 1,
        policy: None,
        group_state: Some(world.kept.solo.clone()),
    };
    request.encode_to_vec()
}

/// What reads a conversation has its id first.
fn group(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::GetConversationRequest { conversation_id: names.group.clone() }.encode_to_vec()
}

fn leave(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::LeaveConversationRequest { conversation_id: names.left.clone() }.encode_to_vec()
}

/// The member repeats its commit; anybody else makes one of its own.
fn commit(world: &World, names: &Names, who: &Who) -> Vec<u8> {
    let own = who.device == world.member.device && names.group == world.names.group;
    let sealed = if own { world.kept.commit.clone() } else { forged(world, names, who, v1::MessageKind::Commit) };
    let state = v1::GroupState { epoch: 1, ..world.kept.solo.clone() };
    v1::CommitRequest { sealed: Some(sealed), welcome: Bytes::new(), group_state: Some(state) }.encode_to_vec()
}

fn send(world: &World, names: &Names, who: &Who) -> Vec<u8> {
    let sealed = forged(world, names, who, v1::MessageKind::Application);
    v1::SendRequest { sealed: Some(sealed) }.encode_to_vec()
}

fn outcome(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    let (conversation_id, message_id) = (names.group.clone(), names.message.clone());
    v1::GetOutcomeRequest { conversation_id, message_id, ..Default::default() }.encode_to_vec()
}

fn attach(_: &World, _: &Names, _: &Who) -> Vec<u8> {
    let start = v1::attach_request::Frame::Start(v1::AttachStart::default());
    v1::AttachRequest { frame: Some(start) }.encode_to_vec()
}

fn message_body(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    let (conversation_id, blob_ref) = (names.group.clone(), "m:1".to_owned());
    v1::GetMessageBodyRequest { conversation_id, blob_ref }.encode_to_vec()
}

fn presence(_: &World, names: &Names, _: &Who) -> Vec<u8> {
    v1::GetPresenceRequest { user_ids: vec![names.user.clone(), names.colleague.clone()] }.encode_to_vec()
}

/// A message of `who` that servers cannot tell from a real one: they read the header (RFC 9420 sections 6 and 6.3) only.
pub fn forged(world: &World, names: &Names, who: &Who, kind: v1::MessageKind) -> v1::Sealed {
    let (generation, epoch) = (world.kept.group.generation, world.kept.group.epoch);
    let envelope = v1::Envelope {
        conversation_id: names.group.clone(),
        sender_user_id: who.user.to_string(),
        sender_device_id: who.device.to_string(),
        message_id: names.message.clone(),
        generation,
        epoch,
        kind: kind.into(),
        ..Default::default()
    };
    let envelope = Bytes::from(envelope.encode_to_vec());
    let conversation: ConversationId = names.group.parse().unwrap();
    let commit = kind == v1::MessageKind::Commit;
    let mut mls = vec![0, 1, 0, if commit { 1 } else { 2 }, 20];
    mls.extend_from_slice(conversation.as_bytes());
    mls.extend_from_slice(&generation.to_be_bytes());
    mls.extend_from_slice(&epoch.to_be_bytes());
    // A member's commit: the sender is leaf 0.
    mls.extend_from_slice(if commit { &[1, 0, 0, 0, 0] } else { &[1] });
    mls.push(32);
    mls.extend_from_slice(Digest::of(&envelope).as_bytes());
    // A commit's content type and what follows; or the encrypted sender data and ciphertext.
    mls.extend_from_slice(if commit { &[3, 0, 0, 0] } else { &[4, 1, 2, 3, 4, 8, 1, 2, 3, 4, 5, 6, 7, 8] });
    v1::Sealed { envelope, mls_message: mls.into() }
}
