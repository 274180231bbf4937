//! Rows to test with: everything follows from small numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use wardline_domain::conversation::{Head, Newest, OutcomeKey, RejectReason, Rejection};
use wardline_domain::envelope::{Epoch, Generation, MessageKind, Sealed, Sequence};
use wardline_domain::record::{BlobRef, ConversationKind, GroupStateRef, MembershipRule, Policy};
use wardline_domain::roster::{Leaf, Role, Roster, RosterDelta};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Position, TenantId, Timestamp, UserId};

use crate::conversations::{HeadRow, MembersRow, MembershipRow, MessageRow, OutcomeResult, OutcomeRow, SNAPSHOT_EVERY};
use crate::directory::{
    DeviceLogChange, DeviceLogRow, DeviceRow, KeyPackageRow, MlsKeyRow, TenantRow, UserKind, UserRow,
};
use crate::feeds::{FeedRow, ReceiptOfRow};
use crate::watermarks::WatermarkRow;

/// Small seeded pseudo-random numbers (SplitMix64): enough to vary tests, nothing else.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }
}

fn id(kind: u8, n: u64) -> [u8; 16] {
    let mut id = [kind; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    id
}

/// The n-th conversation. Ids rise with n.
pub fn conversation(n: u64) -> ConversationId {
    ConversationId::from_bytes(id(0xc0, n))
}

/// The n-th user. Ids rise with n.
pub fn user(n: u64) -> UserId {
    UserId::from_bytes(id(0xa0, n))
}

/// The n-th device. Ids rise with n.
pub fn device(n: u64) -> DeviceId {
    DeviceId::from_bytes(id(0xd0, n))
}

/// The n-th tenant.
pub fn tenant(n: u64) -> TenantId {
    TenantId::from_bytes(id(0xe0, n))
}

/// The n-th digest.
pub fn digest(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

/// A position by its number.
pub fn position(n: u64) -> Position {
    Position::from_u64((1 << 40) | n)
}

/// Seconds after an arbitrary day in 2026.
pub fn time(seconds: u64) -> Timestamp {
    Timestamp::from_micros((1_790_000_000 + seconds) * 1_000_000)
}

/// A UUIDv7 of that second, the n-th.
pub fn message_id(seconds: u64, n: u64) -> MessageId {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&time(seconds).as_millis().to_be_bytes()[2..]);
    id[6] = 0x70;
    id[8..].copy_from_slice(&n.to_be_bytes());
    id[8] = 0x80;
    MessageId::from_bytes(id)
}

fn blob_ref(n: u64) -> BlobRef {
    BlobRef { digest: digest(n), length: 7 }
}

/// A conversation's head after the record at position n.
pub fn head(of: u64, n: u64) -> HeadRow {
    let newest = (0..n % 5)
        .map(|sender| (device(sender), Newest { message: message_id(n, sender), at: position(n - n % 5 + sender) }));
    let head = Head {
        last: position(n),
        last_digest: digest(n),
        created: position(1),
        create_digest: digest(of),
        tenant: tenant(1),
        kind: ConversationKind::Group,
        suite: 1,
        sequence: Sequence(n),
        chain: digest(n + 1),
        generation: Generation(0),
        epoch: Epoch(n / 3),
        epoch_winner: (n >= 3).then(|| message_id(n, 3)),
        members_version: n / 2,
        policy: Policy { version: 1, membership: MembershipRule::Admins, retention_days: 30 },
        group_state: GroupStateRef {
            generation: Generation(0),
            epoch: Epoch(n / 3),
            group_info: blob_ref(n),
            ratchet_tree: blob_ref(n + 1),
            sealed_group_data: blob_ref(n + 2),
        },
        quarantined: None,
        newest: newest.collect::<BTreeMap<_, _>>(),
        floor: (n > 5).then(|| message_id(0, n)),
    };
    HeadRow { conversation: conversation(of), head }
}

/// A conversation's n-th message, of `bytes` bytes.
pub fn message(of: u64, n: u64, bytes: usize) -> MessageRow {
    let envelope = vec![n as u8; bytes / 4];
    let mls_message = vec![!(n as u8); bytes - bytes / 4];
    MessageRow {
        conversation: conversation(of),
        sequence: Sequence(n),
        chain: digest(n),
        sender: user(n % 3),
        device: device(n % 4),
        kind: [MessageKind::Application, MessageKind::Commit, MessageKind::ExternalCommit][(n % 3) as usize],
        accepted_at: time(n),
        position: position(n + 10),
        sealed: Sealed { envelope: Bytes::from(envelope), mls_message: Bytes::from(mls_message) },
    }
}

/// The outcome of a conversation's n-th submission, accepted at `seconds`: in turn a sequence and a rejection.
pub fn outcome(of: u64, n: u64, seconds: u64) -> OutcomeRow {
    let rejection = Rejection {
        reason: RejectReason::EpochConflict,
        payload: digest(n),
        generation: Generation(2),
        epoch: Epoch(n),
        winner: n.is_multiple_of(4).then(|| message_id(seconds, n + 1)),
    };
    let sequenced = n % 2 == 1;
    OutcomeRow {
        key: OutcomeKey { conversation: conversation(of), device: device(n % 3), message: message_id(seconds, n) },
        position: position(n),
        accepted_at: time(seconds),
        payload: digest(n),
        result: if sequenced { OutcomeResult::Sequenced(Sequence(n)) } else { OutcomeResult::Rejected(rejection) },
    }
}

/// A membership as the record at position n left it.
pub fn membership(of: u64, conversation_n: u64, n: u64) -> MembershipRow {
    MembershipRow {
        user: user(of),
        conversation: conversation(conversation_n),
        member: n % 2 == 1,
        position: position(n),
    }
}

fn leaf(version: u64, n: u64) -> Leaf {
    Leaf {
        tenant: tenant(1),
        user: user(n / 2),
        device: device(n),
        key_hash: digest(n),
        role: if n == 0 { Role::Admin } else { Role::Member },
        joined: Epoch(version),
        removal_pending: n % 7 == 3,
    }
}

/// A conversation's roster versions 1 to `versions`: each adds two leaves, and every third removes one.
pub fn roster_rows(of: u64, versions: u64) -> Vec<MembersRow> {
    let mut roster = Roster::default();
    let mut rows = Vec::new();
    for version in 1..=versions {
        let mut leaves: BTreeMap<u32, Option<Leaf>> = [2 * version, 2 * version + 1]
            .into_iter()
            .map(|n| (u32::try_from(n).expect("laws use few versions"), Some(leaf(version, n))))
            .collect();
        if version % 3 == 0 {
            leaves.insert(u32::try_from(version).expect("laws use few versions"), None);
        }
        let delta = RosterDelta { to: version, leaves };
        roster.apply(&delta).expect("the delta leads to the next version");
        let snapshot = version.is_multiple_of(SNAPSHOT_EVERY).then(|| Arc::new(roster.clone()));
        rows.push(MembersRow { conversation: conversation(of), version, accepted_at: time(version), delta, snapshot });
    }
    rows
}

/// A user's feed row at position n, after `previous`, told at second n.
pub fn feed(of: u64, n: u64, previous: Option<u64>) -> FeedRow {
    FeedRow {
        user: user(of),
        position: position(n),
        previous: previous.map(position),
        at: time(n),
        devices: (0..n % 3).map(device).collect(),
        event: Bytes::from(vec![n as u8; 20]),
    }
}

/// A device's progress.
pub fn watermark(of: u64, reader: u64, delivered: u64, read: u64, skipped: &[(u64, u64)]) -> WatermarkRow {
    WatermarkRow {
        conversation: conversation(of),
        user: user(reader),
        device: device(reader),
        delivered,
        read,
        skipped: skipped.to_vec(),
        when: time(delivered + read),
    }
}

/// What a user was told at position n of a reader's progress.
pub fn receipt_of(of: u64, reader: u64, n: u64) -> ReceiptOfRow {
    ReceiptOfRow { user: user(of), watermark: watermark(1, reader, n, n / 2, &[(n, n)]), updated: position(n) }
}

/// The n-th tenant's first row, created by request `request`.
pub fn tenant_row(n: u64, request: u8) -> TenantRow {
    TenantRow {
        tenant: tenant(n),
        issuers: vec!["https://issuer.example".to_owned(), "https://second.example/ü".to_owned()],
        suites: vec![1, 2],
        retention_days: 30,
        clear_urgency: true,
        version: 1,
        request: [request; 16],
    }
}

/// The n-th user's first row in a tenant, created by request `request`.
pub fn user_row(n: u64, of: u64, external_id: &str, request: u8) -> UserRow {
    UserRow {
        user: user(n),
        tenant: tenant(of),
        kind: [UserKind::Person, UserKind::Service, UserKind::Role, UserKind::Guest][(n % 4) as usize],
        external_id: external_id.to_owned(),
        sealed_profile: Bytes::from(vec![n as u8; 9]),
        deactivated: false,
        version: 1,
        request: [request; 16],
    }
}

/// A user's n-th device, with the key-th session key and the n-th MLS keys.
pub fn device_row(of: u64, n: u64, key: u64) -> DeviceRow {
    let public_key = Bytes::copy_from_slice(digest(n).as_bytes());
    let mls_key = |suite| MlsKeyRow { principal: user(of), suite, public_key: public_key.clone() };
    DeviceRow {
        device: device(n),
        user: user(of),
        tenant: tenant(1),
        auth_key: format!("{{\"x\":\"{key}\"}}"),
        thumbprint: digest(key),
        mls_keys: vec![mls_key(1), mls_key(2)],
        push_target: Bytes::from_static(b"push"),
        revoked: false,
    }
}

/// An entry of a device log that enrols `device` behind the entry with the hash `previous`.
pub fn log_entry(version: u64, device: DeviceRow, previous: Digest) -> DeviceLogRow {
    let hash = Digest::of_parts(&[previous.as_bytes(), &version.to_be_bytes(), device.device.as_bytes()]);
    DeviceLogRow {
        version,
        change: if device.revoked { DeviceLogChange::Revoked } else { DeviceLogChange::Enrolled },
        device,
        signer: (version > 1).then(|| self::device(1)),
        signature: Bytes::from(vec![version as u8; 64]),
        previous_hash: previous,
        hash,
        at: time(version),
    }
}

/// A device's n-th package, which ends after `days`. Its suite is 1.
pub fn package(of: u64, device_n: u64, n: u64, days: u64) -> KeyPackageRow {
    KeyPackageRow {
        user: user(of),
        suite: 1,
        device: device(device_n),
        reference: Digest::of_parts(&[&device_n.to_be_bytes(), &n.to_be_bytes()]),
        last_resort: false,
        not_after: day(days),
        key_hash: digest(device_n),
        bytes: Bytes::from(vec![n as u8; 300]),
    }
}

/// The same as a last-resort one.
pub fn last_resort(of: u64, device_n: u64, n: u64, days: u64) -> KeyPackageRow {
    KeyPackageRow { last_resort: true, ..package(of, device_n, n, days) }
}

/// Days after the day that [`time`] counts from.
pub fn day(days: u64) -> Timestamp {
    time(days * 24 * 3600)
}
