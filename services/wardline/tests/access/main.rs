//! Who may call what: every RPC of the public API, by every kind of caller, over sockets.
//!
//! The RPCs are those of the protocol's descriptors; one without a row fails, and so does a row without an RPC.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod malformed;
mod rows;
mod world;

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_types::StatusExt as _;
use wardline_proto::reason::{DOMAIN, Reason};
use wardline_proto::v1;
use wardline_proto::v1::publish_response::Frame;
use wardline_proto::v1::publish_result::Result as Fate;
use wardline_testbed::cluster::Cluster;
use wardline_testbed::people::PATIENCE;
use wardline_testbed::raw;

use rows::{Row, rows};
use world::{LISTENERS, Names, Who, World, reason_of};

/// The full paths of the public API's methods.
fn methods() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(wardline_proto::PUBLIC_DESCRIPTORS).unwrap();
    let services = files.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
    services
        .flat_map(|(file, service)| {
            let names = service.method.iter().map(|method| method.name().to_owned());
            names.map(move |name| format!("/{}.{}/{name}", file.package(), service.name()))
        })
        .collect()
}

/// What a caller hears: the answer's bytes, or the refusal.
type Heard = Result<Bytes, Status>;

/// Every refusal is from the table, whole.
fn check(path: &str, status: &Status) -> Reason {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{path}: no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, DOMAIN, "{path}");
    let reason = Reason::parse(&info.reason).unwrap_or_else(|| panic!("{path}: {} is not in the table", info.reason));
    assert_eq!((status.code(), status.message()), (reason.code(), reason.message()), "{path}");
    let retries = status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some());
    let passes = matches!(status.code(), Code::ResourceExhausted | Code::Unavailable);
    assert!(retries || !passes, "{path}: {} without RetryInfo", info.reason);
    reason
}

/// Calls an RPC and takes its first answer that decides.
async fn ask(world: &World, row: &Row, token: Option<&str>, request: &[u8]) -> Heard {
    let (channel, request) = (&world.channels[row.at], Bytes::copy_from_slice(request));
    let asked = async {
        match row.path {
            "/wardline.v1.DeliveryService/Attach" => {
                let mut down = raw::call(channel, row.path, token, vec![request], true).await?;
                Ok(down.message().await?.unwrap_or_default())
            }
            "/wardline.v1.ConversationService/Publish" => {
                let mut down = raw::call(channel, row.path, token, vec![request], false).await?;
                let started = v1::PublishResponse::decode(down.message().await?.unwrap_or_default()).unwrap();
                assert!(matches!(started.frame, Some(Frame::Started(_))));
                published(down.message().await?.unwrap_or_default())
            }
            path => raw::unary(channel, path, token, request).await,
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{} did not answer", row.path))
}

/// A result of a Publish stream as Send would have answered.
fn published(frame: Bytes) -> Heard {
    let Some(Frame::Result(result)) = v1::PublishResponse::decode(frame.clone()).unwrap().frame else {
        panic!("not a result")
    };
    let Some(Fate::Failure(failure)) = result.result else { return Ok(frame) };
    let mut details = tonic_types::ErrorDetails::new();
    details.set_error_info(failure.reason, DOMAIN, failure.metadata);
    if let Some(delay) = failure.retry_delay {
        details.set_retry_info(Some(delay.try_into().unwrap()));
    }
    Err(Status::with_error_details(failure.code.into(), failure.message, details))
}

fn hears(path: &str, caller: &str, heard: &Heard, expected: Option<Reason>) {
    let reason = heard.as_ref().err().map(|status| check(path, status));
    assert_eq!(reason, expected, "{path} as {caller}: {heard:?}");
}

#[tokio::test]
async fn every_rpc_answers_every_kind_of_caller_as_its_row_says() {
    let world = World::start().await;
    let rows = rows();
    let paths: BTreeSet<String> = rows.iter().map(|row| row.path.to_owned()).collect();
    assert_eq!(paths.len(), rows.len(), "a method has two rows");
    assert_eq!(paths, methods(), "the rows are not the methods of the API");
    for row in &rows {
        for (caller, who, token, reason) in callers(&world) {
            let request = (row.request)(&world, &world.names, who);
            let expected = if row.open { row.stranger } else { Some(reason) };
            hears(row.path, caller, &ask(&world, row, token.as_deref(), &request).await, expected);
        }
        for (caller, who, expected) in [
            ("a device of another tenant", &world.foreigner, row.foreigner),
            ("no member", &world.stranger, row.stranger),
            ("a member", &world.member, row.member),
        ] {
            let request = (row.request)(&world, &world.names, who);
            hears(row.path, caller, &ask(&world, row, Some(&world.token(who)), &request).await, expected);
        }
    }
    world.cluster.stop().await;
}

/// Whoever is refused before it is looked at what they ask.
fn callers(world: &World) -> [(&'static str, &Who, Option<String>, Reason); 5] {
    let member = &world.member;
    let mut forged = world.token(member);
    forged.replace_range(100..101, if &forged[100..101] == "A" { "B" } else { "A" });
    [
        ("nobody", member, None, Reason::TokenMissing),
        ("a forger", member, Some(forged), Reason::TokenInvalid),
        ("a session that has ended", member, Some(world.expired_token(member)), Reason::SessionExpired),
        ("a revoked device", &world.revoked, Some(world.token(&world.revoked)), Reason::DeviceRevoked),
        ("a deactivated user", &world.deactivated, Some(world.token(&world.deactivated)), Reason::UserDeactivated),
    ]
}

#[tokio::test]
async fn another_tenant_cannot_tell_what_exists() {
    let world = World::start().await;
    let (real, ghosts) = (&world.names, Names::ghosts());
    for row in rows() {
        let who = &world.foreigner;
        let [there, nowhere] = {
            let requests = [(row.request)(&world, real, who), (row.request)(&world, &ghosts, who)];
            assert_eq!(requests[0].len(), requests[1].len(), "{}: the requests are not alike", row.path);
            let [first, second] = requests;
            let first = ask(&world, &row, Some(&world.token(who)), &first).await;
            [first, ask(&world, &row, Some(&world.token(who)), &second).await]
        };
        match (there, nowhere) {
            (Ok(there), Ok(nowhere)) => {
                assert_eq!(ghosts.instead_of(real, &there), nowhere, "{}: the answers differ", row.path);
            }
            (Err(there), Err(nowhere)) => {
                let whole = |status: &Status| (status.code(), status.message().to_owned(), status.details().to_vec());
                assert_eq!(whole(&there), whole(&nowhere), "{}: the refusals differ", row.path);
            }
            (there, nowhere) => panic!("{}: {there:?} but {nowhere:?}", row.path),
        }
    }
    world.cluster.stop().await;
}

#[tokio::test]
async fn nobody_sends_in_the_name_of_another() {
    let world = World::start().await;
    let paths = ["Send", "Publish", "Commit"];
    for row in rows().iter().filter(|row| paths.iter().any(|path| row.path.ends_with(path))) {
        let request = (row.request)(&world, &world.names, &world.member);
        for who in [&world.stranger, &world.foreigner] {
            let heard = ask(&world, row, Some(&world.token(who)), &request).await;
            hears(row.path, "another", &heard, Some(rows::FORGED_SENDER));
        }
    }
    world.cluster.stop().await;
}

/// The services that a listener's reflection names.
async fn reflected(channel: tonic::transport::Channel) -> Result<BTreeSet<String>, Status> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await?.into_inner();
    let Some(ServerReflectionResponse { message_response: Some(MessageResponse::ListServicesResponse(list)), .. }) =
        answers.message().await?
    else {
        panic!("not a list of services")
    };
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn each_listener_describes_the_public_api_and_answers_its_own_part() {
    let world = World::start().await;
    let services: BTreeSet<String> =
        methods().iter().map(|path| path[1..].split('/').next().unwrap().to_owned()).collect();
    for at in LISTENERS {
        let (ours, others): (BTreeSet<_>, BTreeSet<_>) = reflected(world.channels[at].clone())
            .await
            .unwrap()
            .into_iter()
            .partition(|service| service.starts_with("wardline."));
        assert_eq!(ours, services, "{at}");
        assert!(others.iter().all(|service| service.starts_with("grpc.")), "{at}: {others:?}");
        let token = world.token(&world.member);
        for row in rows().iter().filter(|row| row.at != at) {
            let answer = raw::unary(&world.channels[at], row.path, Some(&token), Bytes::new()).await;
            assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{} at {at}", row.path);
        }
    }
    world.cluster.stop().await;
}

#[tokio::test]
async fn the_link_answers_no_device_and_no_public_listener_answers_for_the_link() {
    const LOCATE: &str = "/wardline.internal.v1.PresenceLinkService/Locate";
    let world = World::start().await;
    let token = world.token(&world.member);
    let link = tonic::transport::Endpoint::from_shared(world.cluster.link(0)).unwrap().connect_lazy();
    for (token, reason) in [(None, Reason::TokenMissing), (Some(token.as_str()), Reason::TokenInvalid)] {
        hears(LOCATE, "a device", &raw::unary(&link, LOCATE, token, Bytes::new()).await, Some(reason));
    }
    assert_eq!(reflected(link).await.unwrap_err().code(), Code::Unimplemented);
    for at in LISTENERS {
        let answer = raw::unary(&world.channels[at], LOCATE, Some(&token), Bytes::new()).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{at}");
    }
    world.cluster.stop().await;
}

#[tokio::test]
async fn a_quota_says_when_to_come_back() {
    // Enough for the member to make the conversations.
    let little = wardline_registry::Rate { burst: 60, per_second: 1 };
    let world = World::start_on(Cluster::start_with(1, |options| options.ingest.rate = little).await.unwrap()).await;
    let (all, token) = (rows(), world.token(&world.stranger));
    let row = all.iter().find(|row| row.path.ends_with("/Send")).unwrap();
    let request = (row.request)(&world, &world.names, &world.stranger);
    let mut last = None;
    for _ in 0..1000 {
        let status = ask(&world, row, Some(&token), &request).await.unwrap_err();
        last = Some(check(row.path, &status));
        if last == Some(Reason::QuotaExceeded) {
            break;
        }
        assert_eq!(reason_of(&status), Some(Reason::NotAMember));
    }
    assert_eq!(last, Some(Reason::QuotaExceeded));
    world.cluster.stop().await;
}
