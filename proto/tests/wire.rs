//! What is on the wire stays on the wire: every message, field, enum value and method as the checked-in listing has it, and
//! the bytes of the messages that are hashed or kept for long.
//!
//! A field may be added; then `UPDATE=1` writes the listing anew, and the difference is what a reviewer reads. A line that
//! changes or goes away breaks clients that are out there.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};
use wardline_proto::internal::v1 as internal;
use wardline_proto::v1;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire.snapshot");

/// Every package's messages, enums and services, by name.
fn listing() -> String {
    let files = FileDescriptorSet::decode(wardline_proto::ALL_DESCRIPTORS).unwrap();
    let mut entries = Vec::new();
    for file in files.file.iter().filter(|file| file.package().starts_with("wardline.")) {
        file.message_type.iter().for_each(|message| list_message(file.package(), message, &mut entries));
        file.enum_type.iter().for_each(|values| entries.push(list_enum(file.package(), values)));
        file.service.iter().for_each(|service| entries.push(list_service(file.package(), service)));
    }
    entries.sort();
    entries.join("\n")
}

fn list_message(within: &str, message: &DescriptorProto, entries: &mut Vec<String>) {
    let name = format!("{within}.{}", message.name());
    let mut entry = format!("message {name}\n");
    let mut fields: Vec<_> = message.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    for field in fields {
        writeln!(entry, "  {}", list_field(message, field)).unwrap();
    }
    for range in &message.reserved_range {
        writeln!(entry, "  reserved {} to {}", range.start(), range.end() - 1).unwrap();
    }
    for name in &message.reserved_name {
        writeln!(entry, "  reserved {name}").unwrap();
    }
    entries.push(entry);
    message.nested_type.iter().for_each(|nested| list_message(&name, nested, entries));
    message.enum_type.iter().for_each(|values| entries.push(list_enum(&name, values)));
}

fn list_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().trim_start_matches('.').to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let one_of = field.oneof_index.filter(|_| !field.proto3_optional());
    let one_of = one_of.map(|index| format!(" in {}", message.oneof_decl[index as usize].name())).unwrap_or_default();
    format!("{} {} {label}{kind}{one_of}", field.number(), field.name())
}

fn list_enum(within: &str, values: &EnumDescriptorProto) -> String {
    let mut entry = format!("enum {within}.{}\n", values.name());
    for value in &values.value {
        writeln!(entry, "  {} {}", value.number(), value.name()).unwrap();
    }
    entry
}

fn list_service(within: &str, service: &ServiceDescriptorProto) -> String {
    let mut entry = format!("service {within}.{}\n", service.name());
    for method in &service.method {
        let stream = |streams| if streams { "stream " } else { "" };
        let (up, down) = (stream(method.client_streaming()), stream(method.server_streaming()));
        let (input, output) =
            (method.input_type().trim_start_matches('.'), method.output_type().trim_start_matches('.'));
        writeln!(entry, "  {}({up}{input}) returns ({down}{output})", method.name()).unwrap();
    }
    entry
}

#[test]
fn the_wire_is_as_it_was() {
    let listing = listing();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(SNAPSHOT, &listing).unwrap();
    }
    let snapshot = std::fs::read_to_string(SNAPSHOT).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (then, now) = (lines(&snapshot), lines(&listing));
    let first = then.iter().zip(&now).position(|(then, now)| then != now).unwrap_or(then.len().min(now.len()));
    let at = |lines: &[String]| lines.get(first).cloned().unwrap_or_default();
    assert!(then == now, "line {}: was `{}`, is `{}`", first + 1, at(&then), at(&now));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn text_id(byte: u8) -> String {
    let digits = hex(&[byte; 16]);
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

fn id(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 16])
}

/// Bytes that are kept, hashed or compared may not change their meaning, and the meaning may not change its bytes.
fn golden<M: prost::Message + Default + PartialEq + std::fmt::Debug>(message: &M, bytes: &str) {
    assert_eq!(hex(&message.encode_to_vec()), bytes.replace([' ', '\n'], ""));
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).unwrap(), *message);
}

#[test]
fn an_envelope_is_these_bytes() {
    let envelope = v1::Envelope {
        conversation_id: text_id(0x11),
        sender_user_id: text_id(0x22),
        sender_device_id: text_id(0x33),
        message_id: text_id(0x77),
        generation: 2,
        epoch: 300,
        kind: v1::MessageKind::Application.into(),
        urgency: v1::Urgency::Stat.into(),
        respond_by: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
        expire_time: None,
    };
    let dashed = |digit: &str| {
        let run = |count: usize| format!("3{digit}").repeat(count);
        format!("{}2d{}2d{}2d{}2d{}", run(8), run(4), run(4), run(4), run(12))
    };
    let ids = format!("0a24{} 1224{} 1a24{} 2224{}", dashed("1"), dashed("2"), dashed("3"), dashed("7"));
    golden(&envelope, &format!("{ids} 2802 30ac02 3801 4003 4a04 0801 1002"));
}

#[test]
fn a_sealed_message_is_these_bytes() {
    let sealed = v1::Sealed { envelope: Bytes::from_static(b"\x01\x02"), mls_message: Bytes::from_static(b"\x03") };
    golden(&sealed, "0a02 0102 1201 03");
}

#[test]
fn a_conversation_record_is_these_bytes() {
    let submission = internal::SubmissionRecord {
        envelope: Bytes::from_static(b"\xee"),
        mls_message: Bytes::from_static(b"\xff"),
        tenant_id: id(0x44),
        key_hash: Bytes::from(vec![0x55; 32]),
        members_version: 7,
        policy_version: 1,
        welcome: Some(internal::BlobRecord { digest: Bytes::from(vec![0x66; 32]), length: 9 }),
        group_state: None,
        added_keys: Vec::new(),
    };
    let record = internal::ConversationRecord {
        conversation_id: id(0x11),
        accepted_at_us: 1_000_000,
        body: Some(internal::conversation_record::Body::Submission(submission)),
    };
    let (tenant, key, blob) = ("44".repeat(16), "55".repeat(32), "66".repeat(32));
    let welcome = format!("3a24 0a20{blob} 1009");
    let submission = format!("0a01ee 1201ff 1a10{tenant} 2220{key} 2807 3001 {welcome}");
    golden(&record, &format!("0a10{} 10c0843d 2264 {submission}", "11".repeat(16)));
}

#[test]
fn a_feed_record_is_these_bytes() {
    let message = internal::FeedMessage {
        conversation_id: id(0x11),
        sequence: 5,
        chain_hash: Bytes::from(vec![0x99; 32]),
        accepted_at_us: 3,
        sender_user_id: id(0x22),
        sender_device_id: id(0x33),
        envelope: Bytes::new(),
        mls_message: Bytes::new(),
        by_reference: true,
    };
    let event = internal::FeedEventRecord {
        source: 1,
        source_position: 4,
        part: 0,
        recipients: vec![internal::RecipientRecord { user_id: id(0x22), device_ids: vec![id(0x33)] }],
        event: Some(internal::feed_event_record::Event::Message(message)),
    };
    let record = internal::FeedRecord { body: Some(internal::feed_record::Body::Event(event)) };
    let [conversation, user, device] = ["11", "22", "33"].map(|byte| format!("10{}", byte.repeat(16)));
    let recipient = format!("2224 0a{user} 12{device}");
    let message = format!("0a{conversation} 1005 1a20{} 2003 2a{user} 32{device} 4801", "99".repeat(32));
    golden(&record, &format!("0a8a01 0801 1004 {recipient} 2a5e {message}"));
}
