//! Whatever bytes come: an answer or a refusal from the table, never INTERNAL or UNKNOWN, and the server lives on.
//!
//! Seeded, so that what fails once fails again.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tonic::Code;
use wardline_proto::reason::Reason;
use wardline_runtime::caller::Scopes;

use super::rows::{Row, rows};
use super::world::World;
use super::{check, hears};
use wardline_testbed::people::PATIENCE;
use wardline_testbed::raw;

/// Requests of each sort for each RPC.
const ROUNDS: usize = 25;
/// Above what any service takes.
const TOO_LARGE_BYTES: usize = 17 << 20;

/// Makes messages with the right fields and wrong values.
struct Maker {
    messages: HashMap<String, DescriptorProto>,
    inputs: HashMap<String, String>,
    /// Ids that exist, and some that do not.
    ids: Vec<String>,
    rng: StdRng,
}

impl Maker {
    fn new(ids: Vec<String>) -> Self {
        let files = FileDescriptorSet::decode(wardline_proto::ALL_DESCRIPTORS).unwrap();
        let (mut messages, mut inputs) = (HashMap::new(), HashMap::new());
        for file in files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    inputs.insert(path, method.input_type().to_owned());
                }
            }
            let package = file.package().to_owned();
            for message in file.message_type {
                messages.insert(format!(".{package}.{}", message.name()), message);
            }
        }
        Self { messages, inputs, ids, rng: StdRng::seed_from_u64(0x7761_7264) }
    }

    fn request(&mut self, path: &str) -> Vec<u8> {
        let input = self.inputs[path].clone();
        self.message(&input, 0)
    }

    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(message) = self.messages.get(name).cloned() else { return bytes };
        for field in &message.field {
            let count = match field.label() {
                Label::Repeated => *[0, 1, 3, 200].choose(&mut self.rng).unwrap(),
                _ => usize::from(self.rng.random_bool(0.85)),
            };
            for _ in 0..if depth > 2 { 0 } else { count } {
                self.field(field, depth, &mut bytes);
            }
        }
        bytes
    }

    fn field(&mut self, field: &FieldDescriptorProto, depth: usize, to: &mut Vec<u8>) {
        let number = u32::try_from(field.number()).unwrap();
        let delimited = match field.r#type() {
            Type::String => self.text(),
            Type::Bytes => self.bytes(),
            Type::Message => self.message(field.type_name(), depth + 1),
            _ => {
                let values = [0, 1, 2, 7, i32::MAX as u64, u64::from(u32::MAX), -1_i64 as u64, i64::MIN as u64];
                encode_key(number, WireType::Varint, to);
                return encode_varint(*values.choose(&mut self.rng).unwrap(), to);
            }
        };
        encode_key(number, WireType::LengthDelimited, to);
        encode_varint(delimited.len() as u64, to);
        to.extend_from_slice(&delimited);
    }

    fn text(&mut self) -> Vec<u8> {
        let id = self.ids.choose(&mut self.rng).unwrap().clone();
        match self.rng.random_range(0..12) {
            0 => Vec::new(),
            1 => id.replace('-', "").into_bytes(),
            2 => id.to_uppercase().into_bytes(),
            3 => format!("{id}0").into_bytes(),
            4 => "\u{0}\u{7f}\u{202e}ü".into(),
            5 => vec![b'x'; 64 << 10],
            6 => self.bytes(),
            7 => "m:18446744073709551615".into(),
            _ => id.into_bytes(),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = *[0, 1, 15, 16, 17, 31, 32, 33, 64, 1025].choose(&mut self.rng).unwrap();
        let mut bytes = vec![0; length];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// The request with one byte changed, or cut off somewhere.
    fn damaged(&mut self, mut request: Vec<u8>) -> Vec<u8> {
        if !request.is_empty() {
            let at = self.rng.random_range(0..request.len());
            if self.rng.random_bool(0.2) { request.truncate(at) } else { request[at] = self.rng.random() }
        }
        request
    }
}

async fn survives(world: &World, row: &Row, token: &str, request: Vec<u8>) {
    let (channel, length) = (&world.channels[row.at], request.len());
    let asked = async {
        let mut down = raw::call(channel, row.path, Some(token), vec![request.into()], false).await?;
        // Streams end, since this end of them has ended.
        while down.message().await?.is_some() {}
        Ok(())
    };
    let answer: Result<(), tonic::Status> =
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{} is stuck", row.path));
    let Err(status) = answer else { return };
    let reason = check(row.path, &status);
    let bad = matches!(status.code(), Code::Internal | Code::Unknown | Code::Unimplemented | Code::DataLoss);
    assert!(!bad, "{}: {reason:?} to {length} bytes", row.path);
}

#[tokio::test]
async fn whatever_bytes_come_are_answered_or_refused() {
    let world = World::start().await;
    let names = &world.names;
    let nobody = uuid::Uuid::new_v4().to_string();
    let ids = vec![names.colleague.clone(), names.spare.clone(), names.group.clone(), names.message.clone(), nobody];
    let mut maker = Maker::new(ids);
    let scopes = [
        Scopes::default(),
        Scopes { operator: true, ..Scopes::default() },
        Scopes { tenant_admin: true, directory_write: true, operator: false },
    ];
    for row in rows() {
        // A session of its own for each call: some calls end theirs.
        let token = |maker: &mut Maker| world.token_with(&world.member, *scopes.choose(&mut maker.rng).unwrap());
        survives(&world, &row, &token(&mut maker), Vec::new()).await;
        for _ in 0..ROUNDS {
            let request = maker.request(row.path);
            survives(&world, &row, &token(&mut maker), request).await;
            let request = maker.bytes();
            survives(&world, &row, &token(&mut maker), request).await;
            let request = maker.damaged((row.request)(&world, names, &world.member));
            survives(&world, &row, &world.token(&world.member), request).await;
        }
    }
    let all = rows();
    let row = all.iter().find(|row| row.path.ends_with("/GetUser")).unwrap();
    let (token, request) = (world.token(&world.stranger), (row.request)(&world, names, &world.stranger));
    hears(row.path, "no member", &super::ask(&world, row, Some(&token), &request).await, None);
    world.cluster.stop().await;
}

#[tokio::test]
async fn a_request_that_is_no_message_or_too_large_is_the_caller_s_fault() {
    let world = World::start().await;
    let token = world.token(&world.member);
    for row in rows().iter().filter(|row| !["/Attach", "/Publish"].iter().any(|path| row.path.ends_with(path))) {
        // Field 1, a length beyond the end.
        let broken = Bytes::from_static(&[0x0a, 0x7f, 0x01]);
        let token = if row.open { None } else { Some(token.as_str()) };
        let status = raw::unary(&world.channels[row.at], row.path, token, broken).await.unwrap_err();
        assert_eq!(check(row.path, &status), Reason::ArgumentInvalid, "{}", row.path);
    }
    let row = &rows()[0];
    let large = Bytes::from(vec![0; TOO_LARGE_BYTES]);
    let status = raw::unary(&world.channels[row.at], row.path, None, large).await.unwrap_err();
    assert_eq!(check(row.path, &status), Reason::TooLarge);
    world.cluster.stop().await;
}
