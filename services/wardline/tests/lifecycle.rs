//! A deployment's life: drained with devices attached and found again, one owner of a data directory, and served over TLS.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio_stream::StreamExt as _;
use tonic::Request;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use wardline::issuer::{self, Issuer};
use wardline_client::{Admin, Endpoints, NewConversation, Tls};
use wardline_domain::TenantId;
use wardline_proto::v1;
use wardline_proto::v1::attach_request::Frame as Up;
use wardline_proto::v1::attach_response::Frame as Down;
use wardline_proto::v1::delivery_service_client::DeliveryServiceClient;
use wardline_runtime::Clock;
use wardline_testbed::people::{PATIENCE, People, Tokens};
use wardline_testbed::process::{self, Process};
use wardline_testbed::server::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_wardline");

/// An Attach stream by hand.
async fn attach(url: String, token: &str) -> tonic::Streaming<v1::AttachResponse> {
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let start = v1::AttachRequest { frame: Some(Up::Start(v1::AttachStart::default())) };
    let mut request = Request::new(tokio_stream::iter([start]).chain(tokio_stream::pending()));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    DeliveryServiceClient::new(channel).attach(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_drain_tells_devices_and_ends_well_and_they_find_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(Path::new(BINARY), &dir.path().join("data"), None).await.unwrap();
    let people = server.people(dir.path()).unwrap();
    let (one, two) = (people.person("one").await.unwrap(), people.person("two").await.unwrap());
    let first = people.device(&one, None).await.unwrap();
    let second = people.device(&two, None).await.unwrap();
    let conversation = first.create_conversation(NewConversation::group("drain", [two.user])).await.unwrap();
    second.wait_active(conversation, PATIENCE).await.unwrap();
    let (watching, _) = people.device_with(&two, Some(&second), People::options()).await.unwrap();
    let mut feed = attach(server.endpoints().presence, &watching.session_token().await.unwrap()).await;
    assert!(matches!(feed.message().await.unwrap().unwrap().frame, Some(Down::Started(_))));

    first.send_text(conversation, "before the drain").unwrap();
    second.wait_for_text(conversation, "before the drain", PATIENCE).await.unwrap();
    process::signal(server.pid().unwrap(), "TERM").await.unwrap();
    let told = async {
        loop {
            match feed.message().await.expect("the drain is told before the stream breaks") {
                Some(frame) if matches!(frame.frame, Some(Down::Draining(_))) => return,
                frame => assert!(frame.is_some(), "the stream ended without a word"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, server.ended()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{status}");

    // What is written meanwhile waits on the device.
    first.send_text(conversation, "while it is away").unwrap();
    server.restart().await.unwrap();
    second.wait_for_text(conversation, "while it is away", PATIENCE).await.unwrap();
    second.send_text(conversation, "and back").unwrap();
    first.wait_for_text(conversation, "and back", PATIENCE).await.unwrap();
    let talk = std::fs::read_to_string(server.diagnostics()).unwrap();
    assert!(!talk.contains("panicked"), "something panicked");
}

#[tokio::test]
async fn a_second_process_over_the_same_data_is_refused_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let arguments = ["dev", "--no-demo", "--port-base", "0", "--data-dir", data.to_str().unwrap()];
    let mut first = Process::start(Path::new(BINARY), arguments, &[]).unwrap();
    first.address("presence").await.unwrap();
    let second = Process::start(Path::new(BINARY), arguments, &[]).unwrap().ended().await.unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", second.stderr);
    let said = second.stderr.lines().last().unwrap_or_default();
    assert!(said.contains("is in use by another process") && said.contains(data.to_str().unwrap()), "{said}");
    first.signal("TERM").await.unwrap();
    assert_eq!(first.ended().await.unwrap().status.code(), Some(0));
}

const TENANT: &str = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3";
const HOSPITAL: &str = "https://hospital.issuer.invalid";
const PLATFORM: &str = "https://platform.issuer.invalid";
/// The name in the certificate.
const NAME: &str = "wardline.test.invalid";

/// A folder with all that `serve` reads.
struct Site {
    dir: tempfile::TempDir,
    authority: String,
    hospital: Issuer,
    platform: Issuer,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let make = |url| Issuer::load_or_make(&dir.path().join("issuers"), url, Clock::system()).unwrap();
        let (hospital, platform) = (make(HOSPITAL), make(PLATFORM));
        let authority = certificates(dir.path());
        for (name, issuer) in [("hospital.jwks", &hospital), ("platform.jwks", &platform)] {
            std::fs::write(dir.path().join(name), issuer.jwks()).unwrap();
        }
        for (name, digit) in [("session.keys", "1"), ("authority.key", "2"), ("link.key", "3")] {
            secret(&dir.path().join(name), &digit.repeat(64));
        }
        Self { dir, authority, hospital, platform }
    }

    fn config(&self) -> PathBuf {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let listeners = ["ingest", "presence", "receipt", "directory", "presence_link"];
        let listen: String = listeners.map(|name| format!("{name} = \"127.0.0.1:0\"\n")).concat();
        let issuer = |url, tenant: &str, jwks, scopes| {
            let (jwks, audience) = (at(jwks), issuer::AUDIENCE);
            format!(
                "[[issuers]]\nurl = \"{url}\"\n{tenant}jwks_file = \"{jwks}\"\naudience = \"{audience}\"\nscopes = {scopes}\n"
            )
        };
        let hospital = issuer(HOSPITAL, &format!("tenant = \"{TENANT}\"\n"), "hospital.jwks", r#"["directory.write"]"#);
        let platform = issuer(PLATFORM, "", "platform.jwks", r#"["operator"]"#);
        let text = format!(
            "data_dir = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[listen]\n{listen}[link]\nkey_file = \"{}\"\n[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n\
             [session]\nkeys_file = \"{}\"\n[authority]\nkey_file = \"{}\"\n{hospital}{platform}",
            at("data"),
            at("link.key"),
            at("tls.crt"),
            at("tls.key"),
            at("session.keys"),
            at("authority.key"),
        );
        let file = self.dir.path().join("serve.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    fn tokens(issuer: &Issuer) -> Tokens {
        let issuer = issuer.clone();
        Arc::new(move |subject, scope| issuer.mint(subject, scope, None).unwrap())
    }

    async fn channel(&self, url: &str) -> Channel {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority)).domain_name(NAME);
        Endpoint::from_shared(url.to_owned()).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }
}

/// An authority, and a certificate of it for [`NAME`]. Answers with the authority's.
fn certificates(dir: &Path) -> String {
    let (key, mut authority) = (KeyPair::generate().unwrap(), CertificateParams::default());
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&key).unwrap().pem();
    let (issuer, key) = (rcgen::Issuer::new(authority, key), KeyPair::generate().unwrap());
    let own = CertificateParams::new([NAME.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(dir.join("tls.crt"), own.pem()).unwrap();
    secret(&dir.join("tls.key"), &key.serialize_pem());
    pem
}

fn secret(file: &Path, text: &str) {
    use std::io::Write as _;
    let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).unwrap();
    writeln!(open, "{text}").unwrap();
}

/// The addresses in the line that says that it serves.
fn endpoints(line: &str, authority: &str) -> Endpoints {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let addresses = line["addresses"].as_str().unwrap().to_owned();
    let url = |name: &str| {
        let (_, rest) = addresses.split_once(&format!("\"{name}\": ")).unwrap();
        format!("https://{}", rest.split([',', '}']).next().unwrap())
    };
    let tls = Tls { ca_pem: Some(authority.as_bytes().to_vec()), domain: Some(NAME.to_owned()) };
    Endpoints {
        directory: url("directory"),
        ingest: url("ingest"),
        presence: url("presence"),
        receipt: url("receipt"),
        tls: Some(tls),
    }
}

/// Every listener comes to say that it serves, and what.
async fn is_well(channel: Channel) {
    let asked = HealthCheckRequest { service: String::new() };
    let mut health = HealthClient::new(channel.clone()).watch(asked).await.unwrap().into_inner();
    let serves = async { while health.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} };
    tokio::time::timeout(PATIENCE, serves).await.unwrap();
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::iter([list])).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!("no list") };
    assert!(services.service.iter().any(|service| service.name == "wardline.v1.DeliveryService"));
}

#[tokio::test]
async fn serve_all_answers_over_tls_and_brings_a_message_across() {
    let site = Site::new();
    let config = site.config();
    let arguments = ["serve", "all", "--config", config.to_str().unwrap()];
    let mut server = Process::start(Path::new(BINARY), arguments, &[]).unwrap();
    let serving = server.diagnosed(|line| line.contains("\"addresses\"")).await.unwrap();
    let at = endpoints(&serving, &site.authority);
    for url in [&at.directory, &at.ingest, &at.presence, &at.receipt] {
        is_well(site.channel(url).await).await;
    }

    let operators = People::new(at.clone(), Site::tokens(&site.platform), site.dir.path());
    let operator = Admin::new(&at, operators.login("operator", "operator")).unwrap();
    let tenant: TenantId = TENANT.parse().unwrap();
    operator.create_tenant(tenant, &[HOSPITAL.to_owned()], &[1]).await.unwrap();
    let people = People::new(at, Site::tokens(&site.hospital), site.dir.path());
    let (one, two) = (people.person("one").await.unwrap(), people.person("two").await.unwrap());
    let first = people.device(&one, None).await.unwrap();
    let second = people.device(&two, None).await.unwrap();
    let conversation = first.create_conversation(NewConversation::group("over TLS", [two.user])).await.unwrap();
    first.send_text(conversation, "there").unwrap();
    second.wait_for_text(conversation, "there", PATIENCE).await.unwrap();
    second.send_text(conversation, "and back").unwrap();
    first.wait_for_text(conversation, "and back", PATIENCE).await.unwrap();
    for device in [first, second] {
        device.close().await;
    }

    server.signal("TERM").await.unwrap();
    let ended = server.ended().await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("\"drained\"") && !ended.stderr.contains("panicked"), "{}", ended.stderr);
}
