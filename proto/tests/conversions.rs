//! What is converted comes back as it was, and what does not parse is refused, never a panic.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::option::of;
use proptest::prelude::*;
use wardline_domain::envelope::{Envelope, Epoch, Generation, MessageKind, Sealed, Urgency};
use wardline_domain::record::{
    AddedKey, BlobRef, Body, Control, ConversationKind, Create, GroupStateRef, MembershipRule, Policy, Record,
    Submission,
};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, Position, TenantId, Timestamp, UserId};
use wardline_proto::convert::{envelope, ids, record, reject, time};
use wardline_proto::reason::Reason;

/// The end of the year 9999, in microseconds since the Unix epoch.
const YEAR_10000_MICROS: u64 = 253_402_300_800_000_000;

prop_compose! {
    fn digest()(bytes in any::<[u8; 32]>()) -> Digest { Digest::try_from(&bytes[..]).unwrap() }
}

prop_compose! {
    fn blob()(digest in digest(), length in any::<u32>()) -> BlobRef { BlobRef { digest, length } }
}

prop_compose! {
    fn moment()(micros in prop_oneof![Just(0), Just(YEAR_10000_MICROS - 1), 0..YEAR_10000_MICROS]) -> Timestamp {
        Timestamp::from_micros(micros)
    }
}

prop_compose! {
    fn message_id()(mut bytes in any::<[u8; 16]>()) -> MessageId {
        bytes[6] = 0x70 | bytes[6] & 0x0f;
        bytes[8] = 0x80 | bytes[8] & 0x3f;
        MessageId::from_bytes(bytes)
    }
}

prop_compose! {
    fn an_envelope()(
        (conversation, sender, device) in any::<([u8; 16], [u8; 16], [u8; 16])>(),
        message in message_id(),
        (generation, epoch) in any::<(u32, u64)>(),
        kind in prop::sample::select(vec![MessageKind::Application, MessageKind::Commit, MessageKind::ExternalCommit]),
        urgency in prop::sample::select(vec![Urgency::Routine, Urgency::Urgent, Urgency::Stat]),
        respond_by in of(moment()),
        expires_at in of(moment()),
    ) -> Envelope {
        Envelope {
            conversation: ConversationId::from_bytes(conversation),
            sender: UserId::from_bytes(sender),
            device: DeviceId::from_bytes(device),
            message,
            generation: Generation(generation),
            epoch: Epoch(epoch),
            kind,
            urgency,
            respond_by,
            expires_at,
        }
    }
}

prop_compose! {
    fn group_state()(
        (generation, epoch) in any::<(u32, u64)>(),
        (group_info, ratchet_tree, sealed_group_data) in (blob(), blob(), blob()),
    ) -> GroupStateRef {
        let (generation, epoch) = (Generation(generation), Epoch(epoch));
        GroupStateRef { generation, epoch, group_info, ratchet_tree, sealed_group_data }
    }
}

prop_compose! {
    fn create()(
        (tenant, user, device, suite) in any::<([u8; 16], [u8; 16], [u8; 16], u16)>(),
        kind in prop::sample::select(vec![
            ConversationKind::Group, ConversationKind::Direct, ConversationKind::SelfNotes, ConversationKind::Inbox,
        ]),
        membership in prop::sample::select(vec![MembershipRule::Members, MembershipRule::Admins]),
        (version, retention_days) in any::<(u64, u32)>(),
        key_hash in digest(),
        group_state in group_state(),
    ) -> Create {
        Create {
            tenant: TenantId::from_bytes(tenant),
            kind,
            suite,
            policy: Policy { version, membership, retention_days },
            user: UserId::from_bytes(user),
            device: DeviceId::from_bytes(device),
            key_hash,
            group_state,
        }
    }
}

prop_compose! {
    fn added_key()((tenant, user, device) in any::<([u8; 16], [u8; 16], [u8; 16])>(), key_hash in digest()) -> AddedKey {
        let (user, device) = (UserId::from_bytes(user), DeviceId::from_bytes(device));
        AddedKey { tenant: TenantId::from_bytes(tenant), user, device, key_hash }
    }
}

prop_compose! {
    fn submission()(
        an_envelope in an_envelope(),
        mls_message in prop::collection::vec(any::<u8>(), 0..200),
        (tenant, members_version, policy_version) in any::<([u8; 16], u64, u64)>(),
        key_hash in digest(),
        welcome in of(blob()),
        group_state in of(group_state()),
        added_keys in prop::collection::vec(added_key(), 0..4),
    ) -> Submission {
        Submission {
            sealed: Sealed { envelope: envelope::encode(&an_envelope), mls_message: mls_message.into() },
            envelope: an_envelope,
            tenant: TenantId::from_bytes(tenant),
            key_hash,
            members_version,
            policy_version,
            welcome,
            group_state,
            added_keys,
        }
    }
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        any::<([u8; 16], [u8; 16])>().prop_map(|(user, device)| Control::DeviceRevoked {
            user: UserId::from_bytes(user),
            device: DeviceId::from_bytes(device),
        }),
        any::<[u8; 16]>().prop_map(|user| Control::UserLeft { user: UserId::from_bytes(user) }),
        any::<String>().prop_map(|reason| Control::Quarantine { reason }),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        create().prop_map(Body::Create),
        submission().prop_map(|submission| Body::Submission(Box::new(submission))),
        control().prop_map(Body::Control),
        Just(Body::LogEnd),
    ]
}

/// What parses says the same when it is serialized and parsed again.
fn stable(position: Position, payload: Bytes) -> Result<(), TestCaseError> {
    if let Ok(parsed) = record::decode(position, payload) {
        let again = record::encode(parsed.conversation, parsed.accepted_at, &parsed.body);
        let again = record::decode(position, again).unwrap();
        prop_assert_eq!(
            (again.conversation, again.accepted_at, again.body),
            (parsed.conversation, parsed.accepted_at, parsed.body)
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_record_comes_back(
        (conversation, micros, position) in any::<([u8; 16], u64, u64)>(),
        body in body(),
    ) {
        let (conversation, accepted_at) = (ConversationId::from_bytes(conversation), Timestamp::from_micros(micros));
        let position = Position::from_u64(position);
        let payload = record::encode(conversation, accepted_at, &body);
        let digest = Digest::of(&payload);
        let parsed = record::decode(position, payload).unwrap();
        prop_assert_eq!(parsed, Record { position, digest, conversation, accepted_at, body });
    }

    #[test]
    fn every_envelope_comes_back_and_is_within_its_bound(made in an_envelope()) {
        let bytes = envelope::encode(&made);
        prop_assert!(bytes.len() <= envelope::MAX_ENVELOPE_BYTES);
        prop_assert_eq!(envelope::decode(&bytes), Ok(made));
    }

    #[test]
    fn a_moment_comes_back(at in moment()) {
        prop_assert_eq!(time::from_wire(&time::to_wire(at), "at"), Ok(at));
    }

    #[test]
    fn moments_outside_their_bounds_are_refused(seconds in any::<i64>(), nanos in any::<i32>()) {
        let within = (0..253_402_300_800).contains(&seconds) && (0..1_000_000_000).contains(&nanos);
        prop_assert_eq!(time::from_wire(&prost_types::Timestamp { seconds, nanos }, "at").is_ok(), within);
    }

    #[test]
    fn the_largest_moment_of_ours_still_has_a_wire_form(micros in any::<u64>()) {
        let wire = time::to_wire(Timestamp::from_micros(micros));
        prop_assert!(wire.seconds >= 0 && (0..1_000_000_000).contains(&wire.nanos));
    }

    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = envelope::decode(&bytes);
        stable(Position::default(), bytes.into())?;
    }

    #[test]
    fn a_record_with_one_byte_changed_or_cut_off_is_parsed_or_refused(
        body in body(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut bytes = record::encode(ConversationId::from_bytes([1; 16]), Timestamp::default(), &body).to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        stable(Position::default(), bytes.into())?;
    }

    #[test]
    fn an_envelope_with_one_byte_changed_is_parsed_or_refused(
        made in an_envelope(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = envelope::encode(&made).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(parsed) = envelope::decode(&bytes) {
            prop_assert_eq!(envelope::decode(&envelope::encode(&parsed)), Ok(parsed));
        }
    }

    #[test]
    fn no_text_is_an_id_but_the_hyphenated_form(text in any::<String>(), bytes in any::<[u8; 16]>()) {
        let id = UserId::from_bytes(bytes);
        prop_assert_eq!(ids::user(&id.to_string(), "id"), Ok(id));
        prop_assert!(ids::user(&id.to_string().replace('-', ""), "id").is_err());
        let braced = format!("{{{id}}}");
        prop_assert!(ids::user(&braced, "id").is_err());
        if let Ok(id) = ids::user(&text, "id") {
            prop_assert!(id.to_string().eq_ignore_ascii_case(&text));
        }
    }

    #[test]
    fn a_rejection_has_one_name_everywhere(number in -3..40i32) {
        if let Some(reason) = reject::from_number(number) {
            prop_assert_eq!(reject::to_wire(reason) as i32, number);
            let name = reject::to_wire(reason).as_str_name().trim_start_matches("REJECT_REASON_");
            prop_assert_eq!(Reason::parse(name), Some(reject::to_reason(reason)));
        }
    }
}

#[test]
fn an_envelope_above_its_bound_is_refused() {
    assert!(envelope::decode(&vec![0; envelope::MAX_ENVELOPE_BYTES + 1]).is_err());
}
