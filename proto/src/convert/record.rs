//! Records of the `conversations` topic.

use bytes::Bytes;
use prost::Message as _;
use wardline_domain::envelope::{Epoch, Generation, Sealed};
use wardline_domain::record::{
    AddedKey, BlobRef, Body, Control, ConversationKind, Create, GroupStateRef, MembershipRule, Policy, Record,
    Submission,
};
use wardline_domain::{ConversationId, Digest, Position, Timestamp};

use super::{Violation, envelope, ids};
use crate::internal::v1 as wire;

/// Parses a record's payload. Ciphertext shares the payload's buffer.
pub fn decode(position: Position, payload: Bytes) -> Result<Record, Violation> {
    let digest = Digest::of(&payload);
    let wire = wire::ConversationRecord::decode(payload)
        .map_err(|_| Violation::new("record", "must be a ConversationRecord"))?;
    let body = match wire.body.ok_or(Violation::new("body", "is required"))? {
        wire::conversation_record::Body::Create(create) => Body::Create(create_from(&create)?),
        wire::conversation_record::Body::Submission(submission) => {
            Body::Submission(Box::new(submission_from(submission)?))
        }
        wire::conversation_record::Body::Control(control) => Body::Control(control_from(control)?),
        wire::conversation_record::Body::LogEnd(_) => Body::LogEnd,
    };
    Ok(Record {
        position,
        digest,
        conversation: ids::conversation_bytes(&wire.conversation_id, "conversation_id")?,
        accepted_at: Timestamp::from_micros(wire.accepted_at_us),
        body,
    })
}

/// Serializes a record.
pub fn encode(conversation: ConversationId, accepted_at: Timestamp, body: &Body) -> Bytes {
    let body = match body {
        Body::Create(create) => wire::conversation_record::Body::Create(create_to(create)),
        Body::Submission(submission) => wire::conversation_record::Body::Submission(submission_to(submission)),
        Body::Control(control) => wire::conversation_record::Body::Control(control_to(control)),
        Body::LogEnd => wire::conversation_record::Body::LogEnd(wire::LogEndRecord {}),
    };
    wire::ConversationRecord {
        conversation_id: ids::bytes16(conversation.as_bytes()),
        accepted_at_us: accepted_at.as_micros(),
        body: Some(body),
    }
    .encode_to_vec()
    .into()
}

fn create_from(create: &wire::CreateRecord) -> Result<Create, Violation> {
    Ok(Create {
        tenant: ids::tenant_bytes(&create.tenant_id, "create.tenant_id")?,
        kind: kind_from(create.kind)?,
        suite: suite_from(create.suite)?,
        policy: policy_from(create.policy.as_ref())?,
        user: ids::user_bytes(&create.user_id, "create.user_id")?,
        device: ids::device_bytes(&create.device_id, "create.device_id")?,
        key_hash: ids::digest(&create.key_hash, "create.key_hash")?,
        group_state: group_state_from(create.group_state.as_ref())?
            .ok_or(Violation::new("create.group_state", "is required"))?,
    })
}

fn create_to(create: &Create) -> wire::CreateRecord {
    wire::CreateRecord {
        tenant_id: ids::bytes16(create.tenant.as_bytes()),
        kind: create.kind as u32,
        suite: u32::from(create.suite),
        policy: Some(wire::PolicyRecord {
            version: create.policy.version,
            membership: create.policy.membership as u32,
            retention_days: create.policy.retention_days,
        }),
        user_id: ids::bytes16(create.user.as_bytes()),
        device_id: ids::bytes16(create.device.as_bytes()),
        key_hash: ids::bytes32(&create.key_hash),
        group_state: Some(group_state_to(&create.group_state)),
    }
}

fn submission_from(submission: wire::SubmissionRecord) -> Result<Submission, Violation> {
    let envelope = envelope::decode(&submission.envelope)?;
    Ok(Submission {
        envelope,
        tenant: ids::tenant_bytes(&submission.tenant_id, "submission.tenant_id")?,
        key_hash: ids::digest(&submission.key_hash, "submission.key_hash")?,
        members_version: submission.members_version,
        policy_version: submission.policy_version,
        welcome: submission.welcome.as_ref().map(blob_from).transpose()?,
        group_state: group_state_from(submission.group_state.as_ref())?,
        added_keys: submission.added_keys.iter().map(added_key_from).collect::<Result<_, _>>()?,
        sealed: Sealed { envelope: submission.envelope, mls_message: submission.mls_message },
    })
}

fn submission_to(submission: &Submission) -> wire::SubmissionRecord {
    wire::SubmissionRecord {
        envelope: submission.sealed.envelope.clone(),
        mls_message: submission.sealed.mls_message.clone(),
        tenant_id: ids::bytes16(submission.tenant.as_bytes()),
        key_hash: ids::bytes32(&submission.key_hash),
        members_version: submission.members_version,
        policy_version: submission.policy_version,
        welcome: submission.welcome.as_ref().map(blob_to),
        group_state: submission.group_state.as_ref().map(group_state_to),
        added_keys: submission.added_keys.iter().map(added_key_to).collect(),
    }
}

fn added_key_from(key: &wire::AddedKeyRecord) -> Result<AddedKey, Violation> {
    Ok(AddedKey {
        tenant: ids::tenant_bytes(&key.tenant_id, "added_keys.tenant_id")?,
        user: ids::user_bytes(&key.user_id, "added_keys.user_id")?,
        device: ids::device_bytes(&key.device_id, "added_keys.device_id")?,
        key_hash: ids::digest(&key.key_hash, "added_keys.key_hash")?,
    })
}

fn added_key_to(key: &AddedKey) -> wire::AddedKeyRecord {
    wire::AddedKeyRecord {
        tenant_id: ids::bytes16(key.tenant.as_bytes()),
        user_id: ids::bytes16(key.user.as_bytes()),
        device_id: ids::bytes16(key.device.as_bytes()),
        key_hash: ids::bytes32(&key.key_hash),
    }
}

fn control_from(control: wire::ControlRecord) -> Result<Control, Violation> {
    use wire::control_record::Control as Wire;
    Ok(match control.control.ok_or(Violation::new("control", "is required"))? {
        Wire::DeviceRevoked(revoked) => Control::DeviceRevoked {
            user: ids::user_bytes(&revoked.user_id, "device_revoked.user_id")?,
            device: ids::device_bytes(&revoked.device_id, "device_revoked.device_id")?,
        },
        Wire::UserLeft(left) => Control::UserLeft { user: ids::user_bytes(&left.user_id, "user_left.user_id")? },
        Wire::Quarantine(quarantine) => Control::Quarantine { reason: quarantine.reason },
    })
}

fn control_to(control: &Control) -> wire::ControlRecord {
    use wire::control_record::Control as Wire;
    let control = match control {
        Control::DeviceRevoked { user, device } => Wire::DeviceRevoked(wire::DeviceRevokedRecord {
            user_id: ids::bytes16(user.as_bytes()),
            device_id: ids::bytes16(device.as_bytes()),
        }),
        Control::UserLeft { user } => Wire::UserLeft(wire::UserLeftRecord { user_id: ids::bytes16(user.as_bytes()) }),
        Control::Quarantine { reason } => Wire::Quarantine(wire::QuarantineRecord { reason: reason.clone() }),
    };
    wire::ControlRecord { control: Some(control) }
}

fn group_state_from(state: Option<&wire::GroupStateRecord>) -> Result<Option<GroupStateRef>, Violation> {
    let Some(state) = state else { return Ok(None) };
    let blob = |blob: Option<&wire::BlobRecord>| {
        blob.ok_or(Violation::new("group_state", "must name all its blobs")).and_then(blob_from)
    };
    Ok(Some(GroupStateRef {
        generation: Generation(state.generation),
        epoch: Epoch(state.epoch),
        group_info: blob(state.group_info.as_ref())?,
        ratchet_tree: blob(state.ratchet_tree.as_ref())?,
        sealed_group_data: blob(state.sealed_group_data.as_ref())?,
    }))
}

fn group_state_to(state: &GroupStateRef) -> wire::GroupStateRecord {
    wire::GroupStateRecord {
        generation: state.generation.0,
        epoch: state.epoch.0,
        group_info: Some(blob_to(&state.group_info)),
        ratchet_tree: Some(blob_to(&state.ratchet_tree)),
        sealed_group_data: Some(blob_to(&state.sealed_group_data)),
    }
}

/// Parses a blob's name.
pub fn blob_from(blob: &wire::BlobRecord) -> Result<BlobRef, Violation> {
    Ok(BlobRef { digest: ids::digest(&blob.digest, "blob.digest")?, length: blob.length })
}

/// A blob's name for a record.
pub fn blob_to(blob: &BlobRef) -> wire::BlobRecord {
    wire::BlobRecord { digest: ids::bytes32(&blob.digest), length: blob.length }
}

fn suite_from(suite: u32) -> Result<u16, Violation> {
    u16::try_from(suite).map_err(|_| Violation::new("suite", "must be an MLS cipher suite"))
}

/// A conversation's kind by its number on the wire.
pub fn kind_from(number: u32) -> Result<ConversationKind, Violation> {
    Ok(match number {
        1 => ConversationKind::Group,
        2 => ConversationKind::Direct,
        3 => ConversationKind::SelfNotes,
        4 => ConversationKind::Inbox,
        _ => return Err(Violation::new("kind", "must be a known ConversationKind")),
    })
}

/// A membership rule by its number on the wire; unspecified means members.
pub fn membership_from(number: u32) -> Result<MembershipRule, Violation> {
    Ok(match number {
        0 | 1 => MembershipRule::Members,
        2 => MembershipRule::Admins,
        _ => return Err(Violation::new("policy.membership", "must be a known MembershipRule")),
    })
}

fn policy_from(policy: Option<&wire::PolicyRecord>) -> Result<Policy, Violation> {
    let policy = policy.ok_or(Violation::new("policy", "is required"))?;
    Ok(Policy {
        version: policy.version,
        membership: membership_from(policy.membership)?,
        retention_days: policy.retention_days,
    })
}
