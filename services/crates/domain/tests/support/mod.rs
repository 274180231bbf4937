//! What the tests of this crate build records from: small ids, forged MLS messages, a clock that is a parameter.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_debug_implementations)] // each test uses a part of it

pub mod forge;

use bytes::Bytes;
use wardline_domain::conversation::{Conversation, Outcome, Prior, apply};
use wardline_domain::envelope::{Envelope, Epoch, Generation, MessageKind, Sealed, Urgency};
use wardline_domain::mls::Credential;
use wardline_domain::record::{
    AddedKey, BlobRef, Body, Control, ConversationKind, Create, GroupStateRef, MembershipRule, Policy, Record,
    Submission,
};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Position, TenantId, Timestamp, UserId};

/// 2026-01-01T00:00:00Z in milliseconds.
pub const START_MILLIS: u64 = 1_767_225_600_000;
pub const CONVERSATION: ConversationId = ConversationId::from_bytes([0xc0; 16]);

pub fn tenant() -> TenantId {
    TenantId::from_bytes([0x7e; 16])
}

/// The user of a device: the device's high nibble.
pub fn user_of(device: u16) -> UserId {
    user(device >> 4)
}

pub fn user(number: u16) -> UserId {
    let mut bytes = [0xa0; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    UserId::from_bytes(bytes)
}

pub fn device(number: u16) -> DeviceId {
    let mut bytes = [0xd0; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    DeviceId::from_bytes(bytes)
}

pub fn key(device: u16) -> Vec<u8> {
    Digest::of(&device.to_be_bytes()).as_bytes().to_vec()
}

pub fn key_hash(device: u16) -> Digest {
    Digest::of(&key(device))
}

pub fn credential(number: u16) -> Credential {
    Credential { tenant: tenant(), principal: user_of(number), device: device(number) }
}

/// The `number`th UUIDv7 of a millisecond.
pub fn message(millis: u64, number: u16) -> MessageId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    bytes[6] = 0x70;
    bytes[8] = 0x80;
    bytes[14..].copy_from_slice(&number.to_be_bytes());
    MessageId::from_bytes(bytes)
}

pub fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(millis * 1000)
}

pub fn blob(name: &str) -> BlobRef {
    BlobRef { digest: Digest::of(name.as_bytes()), length: name.len() as u32 }
}

pub fn group_state(epoch: u64) -> GroupStateRef {
    GroupStateRef {
        generation: Generation(0),
        epoch: Epoch(epoch),
        group_info: blob(&format!("info {epoch}")),
        ratchet_tree: blob(&format!("tree {epoch}")),
        sealed_group_data: blob(&format!("data {epoch}")),
    }
}

pub fn create(creator: u16) -> Create {
    Create {
        tenant: tenant(),
        kind: ConversationKind::Group,
        suite: 1,
        policy: Policy { version: 1, membership: MembershipRule::Members, retention_days: 0 },
        user: user_of(creator),
        device: device(creator),
        key_hash: key_hash(creator),
        group_state: group_state(0),
    }
}

/// What a device submits, as numbers; [`Draft::build`] seals it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub device: u16,
    pub message: MessageId,
    pub generation: u32,
    pub epoch: u64,
    pub kind: MessageKind,
    /// The committer's leaf.
    pub leaf: u32,
    pub removes: Vec<u32>,
    pub adds: Vec<u16>,
    pub path: bool,
    /// Makes other bytes.
    pub tag: u8,
    pub expires_at: Option<Timestamp>,
}

impl Draft {
    pub fn content(device: u16, message: MessageId, epoch: u64) -> Self {
        Self {
            device,
            message,
            generation: 0,
            epoch,
            kind: MessageKind::Application,
            leaf: 0,
            removes: Vec::new(),
            adds: Vec::new(),
            path: true,
            tag: 0,
            expires_at: None,
        }
    }

    pub fn commit(device: u16, leaf: u32, message: MessageId, epoch: u64) -> Self {
        Self { kind: MessageKind::Commit, leaf, ..Self::content(device, message, epoch) }
    }

    pub fn external(device: u16, message: MessageId, epoch: u64) -> Self {
        Self { kind: MessageKind::ExternalCommit, ..Self::content(device, message, epoch) }
    }

    pub fn removing(mut self, leaves: &[u32]) -> Self {
        self.removes.extend(leaves);
        self
    }

    pub fn adding(mut self, devices: &[u16]) -> Self {
        self.adds.extend(devices);
        self
    }

    pub fn envelope(&self) -> Envelope {
        Envelope {
            conversation: CONVERSATION,
            sender: user_of(self.device),
            device: device(self.device),
            message: self.message,
            generation: Generation(self.generation),
            epoch: Epoch(self.epoch),
            kind: self.kind,
            urgency: Urgency::Routine,
            respond_by: None,
            expires_at: self.expires_at,
        }
    }

    /// Bytes that stand for the envelope: the state machine hashes them and reads the parsed one.
    pub fn envelope_bytes(&self) -> Bytes {
        let mut bytes = vec![self.tag, self.kind as u8];
        bytes.extend(self.device.to_be_bytes());
        bytes.extend(self.message.as_bytes());
        bytes.extend(self.generation.to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.into()
    }

    pub fn forged(&self) -> forge::Commit {
        let external = self.kind == MessageKind::ExternalCommit;
        let mut proposals = Vec::new();
        if external {
            proposals.push(forge::Proposal::ExternalInit);
        }
        proposals.extend(self.removes.iter().map(|leaf| forge::Proposal::Remove(*leaf)));
        let package = |number: &u16| forge::key_package(1, &credential(*number), &key(*number), false);
        proposals.extend(self.adds.iter().map(|number| forge::Proposal::Add(package(number))));
        forge::Commit {
            conversation: CONVERSATION,
            generation: self.generation,
            epoch: self.epoch,
            sender: if external { None } else { Some(self.leaf) },
            authenticated_data: Digest::of(&self.envelope_bytes()).as_bytes().to_vec(),
            proposals,
            path: self
                .path
                .then(|| forge::leaf_node(&credential(self.device), &key(self.device), forge::Source::Commit)),
        }
    }

    pub fn build(&self) -> Submission {
        let is_commit = self.kind != MessageKind::Application;
        let mls_message =
            if is_commit { self.forged().encode() } else { Bytes::from(vec![self.tag, 0xff, self.epoch as u8]) };
        let added = |number: &u16| AddedKey {
            tenant: tenant(),
            user: user_of(*number),
            device: device(*number),
            key_hash: key_hash(*number),
        };
        Submission {
            sealed: Sealed { envelope: self.envelope_bytes(), mls_message },
            envelope: self.envelope(),
            tenant: tenant(),
            key_hash: key_hash(self.device),
            members_version: 0,
            policy_version: 1,
            welcome: (!self.adds.is_empty()).then(|| blob("welcome")),
            group_state: is_commit.then(|| group_state(self.epoch.wrapping_add(1))),
            added_keys: self.adds.iter().map(added).collect(),
        }
    }
}

/// A record at an offset.
pub fn record(offset: u64, millis: u64, body: Body) -> Record {
    Record {
        position: Position::from_u64(offset),
        digest: Digest::of(&offset.to_be_bytes()),
        conversation: CONVERSATION,
        accepted_at: at(millis),
        body,
    }
}

/// One conversation fed record by record, a millisecond apart.
pub struct World {
    pub conversation: Conversation,
    pub offset: u64,
    pub millis: u64,
}

impl World {
    /// Created by device 0x10 of user 1.
    pub fn new() -> Self {
        Self::with(&create(0x10))
    }

    pub fn with(create: &Create) -> Self {
        let mut world = Self { conversation: Conversation::absent(CONVERSATION), offset: 0, millis: START_MILLIS };
        let outcome = world.feed(Prior::None, Body::Create(create.clone()));
        assert!(matches!(outcome, Outcome::Created { .. }));
        world
    }

    pub fn feed(&mut self, prior: Prior, body: Body) -> Outcome {
        self.offset += 1;
        self.millis += 1;
        let record = record(self.offset, self.millis, body);
        apply(&mut self.conversation, prior, &record)
    }

    /// An id that nobody has used.
    pub fn fresh(&self) -> MessageId {
        message(self.millis + 1, 0)
    }

    pub fn submit(&mut self, draft: &Draft) -> Outcome {
        self.feed(Prior::None, Body::Submission(Box::new(draft.build())))
    }

    pub fn control(&mut self, control: Control) -> Outcome {
        self.feed(Prior::None, Body::Control(control))
    }

    pub fn epoch(&self) -> u64 {
        self.conversation.head.as_ref().unwrap().epoch.0
    }

    pub fn commit(&self, device: u16) -> Draft {
        let leaf = self.leaf(device).unwrap_or(u32::MAX);
        Draft::commit(device, leaf, self.fresh(), self.epoch())
    }

    pub fn content(&self, device: u16) -> Draft {
        Draft::content(device, self.fresh(), self.epoch())
    }

    pub fn external(&self, device: u16) -> Draft {
        let draft = Draft::external(device, self.fresh(), self.epoch());
        match self.leaf(device) {
            Some(leaf) => draft.removing(&[leaf]),
            None => draft,
        }
    }

    pub fn leaf(&self, number: u16) -> Option<u32> {
        self.conversation.roster.leaf_of(user_of(number), device(number)).map(|(index, _)| index)
    }

    /// Adds devices by a commit of device 0x10.
    pub fn add(&mut self, devices: &[u16]) {
        let draft = self.commit(0x10).adding(devices);
        let outcome = self.submit(&draft);
        assert!(matches!(outcome, Outcome::Sequenced(_)), "{outcome:?}");
    }
}
