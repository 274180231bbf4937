//! Records as ingest would append them, with hand-made MLS commits (RFC 9420 section 6).

use bytes::Bytes;
use wardline_domain::conversation::OutcomeKey;
use wardline_domain::envelope::{Envelope, Epoch, Generation, MessageKind, Sealed, Urgency};
use wardline_domain::mls::{Credential, group_id};
use wardline_domain::record::{
    AddedKey, BlobRef, Body, Control, ConversationKind, Create, GroupStateRef, MembershipRule, Policy, Submission,
};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Position, TenantId, Timestamp, UserId};
use wardline_log::LogRecord;
use wardline_proto::convert::{envelope, record};

const START_MILLIS: u64 = 1_800_000_000_000;
const TENANT: TenantId = TenantId::from_bytes([0x11; 16]);

pub fn user(n: u8) -> UserId {
    UserId::from_bytes([n; 16])
}

pub fn device(n: u8) -> DeviceId {
    DeviceId::from_bytes([n ^ 0x80; 16])
}

fn key(n: u8) -> [u8; 32] {
    [n; 32]
}

fn blob(n: u8) -> BlobRef {
    BlobRef { digest: Digest::of(&[n]), length: 1 }
}

fn state(epoch: u64) -> GroupStateRef {
    let blob = blob(epoch as u8);
    let (generation, epoch) = (Generation(0), Epoch(epoch));
    GroupStateRef { generation, epoch, group_info: blob, ratchet_tree: blob, sealed_group_data: blob }
}

pub fn message_id(n: u64) -> MessageId {
    let mut id = [0x70; 16];
    id[..6].copy_from_slice(&(START_MILLIS + n).to_be_bytes()[2..]);
    id[8] = 0x80;
    MessageId::from_bytes(id)
}

/// Records of one partition, in log order.
#[derive(Default)]
pub struct Script {
    pub records: Vec<LogRecord>,
    pub conversations: Vec<ConversationId>,
    pub keys: Vec<OutcomeKey>,
}

/// What a device sends.
pub struct Sends {
    pub by: u8,
    pub id: u64,
    pub epoch: u64,
    pub text: Vec<u8>,
}

impl Script {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros((START_MILLIS + 10 * self.records.len() as u64) * 1000)
    }

    pub fn raw(&mut self, payload: Bytes) -> Position {
        let offset = 3 * self.records.len() as u64 + 1;
        let position = Position::new(1, offset).unwrap();
        let appended_at = self.now();
        self.records.push(LogRecord { position, appended_at, key: Bytes::new(), payload, headers: Vec::new() });
        position
    }

    fn body(&mut self, conversation: ConversationId, body: &Body) -> Position {
        self.raw(record::encode(conversation, self.now(), body))
    }

    pub fn create(&mut self, conversation: ConversationId) {
        self.conversations.push(conversation);
        let create = Create {
            tenant: TENANT,
            kind: ConversationKind::Group,
            suite: 1,
            policy: Policy { version: 1, membership: MembershipRule::Members, retention_days: 0 },
            user: user(0),
            device: device(0),
            key_hash: Digest::of(&key(0)),
            group_state: state(0),
        };
        self.body(conversation, &Body::Create(create));
    }

    pub fn control(&mut self, conversation: ConversationId, control: Control) {
        self.body(conversation, &Body::Control(control));
    }

    fn envelope(&mut self, conversation: ConversationId, sends: &Sends, kind: MessageKind) -> Envelope {
        let (sender, device, message) = (user(sends.by), device(sends.by), message_id(sends.id));
        self.keys.push(OutcomeKey { conversation, device, message });
        Envelope {
            conversation,
            sender,
            device,
            message,
            generation: Generation(0),
            epoch: Epoch(sends.epoch),
            kind,
            urgency: Urgency::Routine,
            respond_by: None,
            expires_at: None,
        }
    }

    pub fn send(&mut self, conversation: ConversationId, sends: Sends) -> Position {
        let parsed = self.envelope(conversation, &sends, MessageKind::Application);
        let sealed = Sealed { envelope: envelope::encode(&parsed), mls_message: sends.text.into() };
        let submission = submission(sends.by, parsed, sealed);
        self.body(conversation, &Body::Submission(Box::new(submission)))
    }

    /// A commit by leaf 0 that removes leaves and adds users' devices.
    pub fn commit(&mut self, conversation: ConversationId, sends: Sends, removes: &[u32], adds: &[u8]) {
        let parsed = self.envelope(conversation, &sends, MessageKind::Commit);
        let bytes = envelope::encode(&parsed);
        let mls_message = commit(conversation, sends.epoch, Digest::of(&bytes), removes, adds);
        let mut submission = submission(sends.by, parsed, Sealed { envelope: bytes, mls_message });
        submission.group_state = Some(state(sends.epoch + 1));
        submission.welcome = (!adds.is_empty()).then(|| blob(99));
        submission.added_keys = adds.iter().map(|n| added(*n)).collect();
        self.body(conversation, &Body::Submission(Box::new(submission)));
    }
}

fn submission(by: u8, envelope: Envelope, sealed: Sealed) -> Submission {
    Submission {
        sealed,
        envelope,
        tenant: TENANT,
        key_hash: Digest::of(&key(by)),
        members_version: 1,
        policy_version: 1,
        welcome: None,
        group_state: None,
        added_keys: Vec::new(),
    }
}

fn added(n: u8) -> AddedKey {
    AddedKey { tenant: TENANT, user: user(n), device: device(n), key_hash: Digest::of(&key(n)) }
}

/// A vector behind its length (RFC 9420 section 2.1.2).
fn vector(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    let mut out = match content.len() {
        0..64 => vec![length as u8],
        64..16_384 => (length as u16 | 0x4000).to_be_bytes().to_vec(),
        _ => (length | 0x8000_0000).to_be_bytes().to_vec(),
    };
    out.extend(content);
    out
}

fn leaf_node(n: u8, source: &[u8]) -> Vec<u8> {
    let credential = Credential { tenant: TENANT, principal: user(n), device: device(n) }.encode();
    let capabilities = [0; 5];
    let parts = [&vector(&[7; 32])[..], &vector(&key(n)), &[0, 1], &vector(&credential), &capabilities, source];
    [&parts.concat()[..], &vector(&[]), &vector(&[5; 64])].concat()
}

fn add(n: u8) -> Vec<u8> {
    let lifetime = [&[1][..], &[0; 16]].concat();
    let package = [&[0, 1, 0, 1][..], &vector(&[8; 32]), &leaf_node(n, &lifetime), &vector(&[]), &vector(&[5; 64])];
    [&[1, 0, 1][..], &package.concat()].concat()
}

fn commit(conversation: ConversationId, epoch: u64, envelope: Digest, removes: &[u32], adds: &[u8]) -> Bytes {
    let removes = removes.iter().map(|leaf| [&[1, 0, 3][..], &leaf.to_be_bytes()].concat());
    let proposals: Vec<u8> = removes.chain(adds.iter().map(|n| add(*n))).flatten().collect();
    let path = [&[1][..], &leaf_node(0, &[&[3][..], &vector(&[9; 32])].concat()), &vector(&[])].concat();
    [
        &[0, 1, 0, 1][..],
        &vector(&group_id(conversation, Generation(0))),
        &epoch.to_be_bytes(),
        &[1, 0, 0, 0, 0],
        &vector(envelope.as_bytes()),
        &[3],
        &vector(&proposals),
        &path,
        &vector(&[5; 64]),
        &vector(&[3; 32]),
        &vector(&[2; 32]),
    ]
    .concat()
    .into()
}
