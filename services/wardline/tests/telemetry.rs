//! What an operator can see: a message's way as one trace in a real collector, and metrics that are what their tables say; and
//! what none of it may show: who.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use memchr::memmem;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message as _;
use support::{ByHand, Member, agreed_with_receipts, another, conversation, eventually, members};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use wardline::measured::TABLES;
use wardline_client::ConversationId;
use wardline_domain::metric::Metric;
use wardline_proto::v1;
use wardline_proto::v1::session_service_client::SessionServiceClient;
use wardline_runtime::exposition::{self, Exposition};
use wardline_runtime::telemetry::{self, Guard, Traces};
use wardline_testbed::cluster::{Cluster, TENANTS};
use wardline_testbed::people::PATIENCE;
use wardline_testbed::process::Process;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/docs/metrics.md");
const SEND: &str = "wardline.v1.ConversationService/Send";

/// An OTLP collector that keeps everything.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves in the runtime that it is called in. Answers with its endpoint, too.
    fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (collector, endpoint)
    }

    fn spans(&self) -> Vec<Span> {
        let kept = self.0.lock().unwrap();
        let resources = kept.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|spans| &spans.scope_spans).flat_map(|spans| spans.spans.clone()).collect()
    }

    /// The spans of one trace.
    fn trace(&self, id: &[u8]) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace_id == id).collect()
    }

    /// Everything that came, as bytes.
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().iter().flat_map(|request| request.encode_to_vec()).collect()
    }
}

/// The process's telemetry, which is one for all tests of this file, on a runtime that outlives each of theirs.
struct Telemetry {
    collector: Collector,
    exposition: Exposition,
    _traces: Guard,
    _runtime: tokio::runtime::Runtime,
}

static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let entered = runtime.enter();
    let exposition = exposition::install(TABLES).unwrap();
    let (collector, endpoint) = Collector::start();
    let traces = telemetry::start_traces(Traces {
        endpoint,
        ca_pem: None,
        sample_ratio: 1.0,
        instance: "the-instance".to_owned(),
        roles: vec!["ingest", "fanout"],
    });
    drop(entered);
    Telemetry { collector, exposition, _traces: traces.unwrap(), _runtime: runtime }
});

/// Whoever looks at everything that the process tells lets no other test talk meanwhile.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn now_nanos() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// A span's name, with the consumer group of one that processes.
fn named(span: &Span) -> String {
    match attribute(span, "messaging.consumer.group.name") {
        Some(group) => format!("{group}: {}", span.name),
        None => span.name.clone(),
    }
}

/// The names from a span up to the root of its trace.
fn up(spans: &[Span], from: &Span) -> Vec<String> {
    let parent = spans.iter().find(|span| span.span_id == from.parent_span_id);
    let above = parent.map(|parent| up(spans, parent)).unwrap_or_default();
    [named(from)].into_iter().chain(above).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_is_one_trace_through_ingest_fanout_presence_and_receipt() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let collector = &TELEMETRY.collector;
    let cluster = Cluster::start(1).await.unwrap();
    let people = cluster.people(0, 0);
    let [ann, bob] = members(&people, ["ann", "bob"]).await;
    let id = conversation(&[&ann, &bob]).await;
    let before = now_nanos();
    let sent = ann.say(id, "one message");
    agreed_with_receipts(id, &[&ann, &bob], &[sent]).await;

    let is_the_call = |span: &Span| span.name == SEND && span.start_time_unix_nano >= before;
    let root = eventually("the call's span", async || collector.spans().into_iter().find(is_the_call)).await;
    assert!(root.parent_span_id.is_empty() && root.kind() == SpanKind::Server);
    let way = [
        "presence: process feeds",
        "receipt: process receipts",
        "deliver",
        "presence: process feeds",
        "fanout: process conversations",
        "publish conversations",
        SEND,
    ];
    let spans = eventually("the sender's presence to hear of the receipt", async || {
        let spans = collector.trace(&root.trace_id);
        let arrived = spans.iter().any(|span| up(&spans, span) == way);
        arrived.then_some(spans)
    });
    let spans = spans.await;
    let kinds =
        |name: &str| -> BTreeSet<i32> { spans.iter().filter(|span| span.name == name).map(|span| span.kind).collect() };
    assert_eq!(kinds("publish conversations"), BTreeSet::from([SpanKind::Producer as i32]));
    assert_eq!(kinds("process conversations"), BTreeSet::from([SpanKind::Consumer as i32]));
    assert_eq!(spans.iter().filter(|span| span.name == "publish conversations").count(), 1);
    for span in &spans {
        assert!(span.start_time_unix_nano >= before && span.end_time_unix_nano >= span.start_time_unix_nano);
        assert_eq!(up(&spans, span).last().unwrap(), SEND, "{} hangs on nothing", named(span));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_is_continued_if_it_is_sampled() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let collector = &TELEMETRY.collector;
    let cluster = Cluster::start(1).await.unwrap();
    let people = cluster.people(0, 0);
    let [ann, bob, cid] = members(&people, ["ann", "bob", "cid"]).await;
    let id = conversation(&[&ann, &bob, &cid]).await;
    let (unsampled, sampled) = ([0xa1; 16], [0xa2; 16]);
    let parent = |trace: &[u8], flags: &str| format!("00-{}-00000000000000c3-{flags}", hex::encode(trace));
    for (who, trace, flags) in [(&bob, unsampled, "00"), (&cid, sampled, "01")] {
        let hand = ByHand::of(&who.device, people.endpoints()).await;
        let request = v1::LeaveConversationRequest { conversation_id: id.to_string() };
        let mut request = hand.request(request);
        request.metadata_mut().insert("traceparent", parent(&trace, flags).parse().unwrap());
        request.metadata_mut().insert("tracestate", "vendor=opaque".parse().unwrap());
        hand.ingest().leave_conversation(request).await.unwrap();
    }
    let way = ["presence: process feeds", "fanout: process conversations", "publish conversations"];
    let spans = eventually("the way of what the caller began", async || {
        let spans = collector.trace(&sampled);
        let arrived = spans.iter().any(|span| up(&spans, span).starts_with(&way.map(str::to_owned)));
        arrived.then_some(spans)
    });
    let spans = spans.await;
    let call = spans.iter().find(|span| span.kind() == SpanKind::Server).unwrap();
    assert_eq!(call.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 0xc3]);
    assert!(spans.iter().filter(|span| span.name != "deliver").all(|span| span.trace_state == "vendor=opaque"));
    assert_eq!(collector.trace(&unsampled), [], "what is not sampled has no spans");
    cluster.stop().await;
}

/// An id, in every form that would tell.
fn forms(name: &str, id: &[u8; 16]) -> Vec<(String, Vec<u8>)> {
    let uuid = uuid::Uuid::from_bytes(*id);
    let mut texts = vec![
        uuid.hyphenated().to_string(),
        uuid.simple().to_string(),
        // As `{:?}` prints bytes.
        format!("{id:?}").trim_matches(['[', ']']).to_owned(),
    ];
    texts.extend(texts.clone().iter().map(|text| text.to_uppercase()));
    texts.extend([STANDARD.encode(id), STANDARD_NO_PAD.encode(id), URL_SAFE.encode(id), URL_SAFE_NO_PAD.encode(id)]);
    let texts = texts.into_iter().map(|text| (format!("{name} as {text}"), text.into_bytes()));
    texts.chain([(format!("{name}, raw"), id.to_vec())]).collect()
}

/// Whatever names somebody, or is a secret.
async fn telling(members: &[&Member], conversation: ConversationId) -> Vec<(String, Vec<u8>)> {
    let mut telling = forms("the conversation", conversation.as_bytes());
    telling.extend(forms("the tenant", TENANTS[0].as_bytes()));
    for member in members {
        let subject = &member.person.subject;
        telling.extend(forms("a user", member.user().as_bytes()));
        telling.extend(forms("a device", member.id().as_bytes()));
        telling.push(("a subject".to_owned(), subject.clone().into_bytes()));
        for encoded in [STANDARD_NO_PAD.encode(subject), URL_SAFE_NO_PAD.encode(subject), hex::encode(subject)] {
            telling.push((format!("a subject as {encoded}"), encoded.into_bytes()));
        }
        telling.push(("a session".to_owned(), member.device.session_token().await.unwrap().into_bytes()));
        for entry in member.device.history(conversation).unwrap() {
            telling.extend(forms("a message", entry.message.as_bytes()));
            telling.extend(entry.text().map(|text| ("a text".to_owned(), text.as_bytes().to_vec())));
        }
    }
    telling
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_metrics_name_nobody_and_metrics_are_what_their_tables_say() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Telemetry { collector, exposition, .. } = &*TELEMETRY;
    let cluster = Cluster::start(2).await.unwrap();
    let people = cluster.people(0, 0);
    let [ann, bob, outsider] = members(&people, ["ann", "bob", "outsider"]).await;
    let tablet = another(&people, &ann).await;
    let id = conversation(&[&ann, &tablet, &bob]).await;
    let sent = [ann.say(id, "a text of ann's"), bob.say(id, "a text of bob's")];
    agreed_with_receipts(id, &[&ann, &tablet, &bob], &sent).await;
    outsider.device.fetch_receipts(id).await.unwrap_err();
    let told = telling(&[&ann, &tablet, &bob, &outsider], id).await;
    people.admin().unwrap().revoke_device(ann.user(), tablet.id()).await.unwrap();
    let after = ann.say(id, "and another");
    ann.device.wait_sequenced(id, after, PATIENCE).await.unwrap();
    let before = now_nanos();
    bob.reads(id, "and another").await;
    outsider.device.fetch_receipts(id).await.unwrap_err();
    eventually("the last call's span", async || {
        let last = |span: &Span| span.name.ends_with("/GetReceipts") && span.start_time_unix_nano >= before;
        collector.spans().iter().any(last).then_some(())
    })
    .await;

    let (spans, metrics) = (collector.bytes(), exposition.render());
    // The search finds what is there.
    for there in ["the-instance", "wardline", "publish conversations", "SessionService/CreateSession"] {
        assert!(memmem::find(&spans, there.as_bytes()).is_some(), "no span tells of {there}");
    }
    for (name, needle) in &told {
        assert!(memmem::find(&spans, needle).is_none(), "a span tells {name}");
        assert!(memmem::find(metrics.as_bytes(), needle).is_none(), "a metric tells {name}");
    }
    are_what_their_tables_say(&metrics);
    cluster.stop().await;
}

/// Every family is in a table, of its kind, and has no label but its own; and the roles' most telling ones are there.
fn are_what_their_tables_say(metrics: &str) {
    let declared = |name: &str| -> &Metric {
        let found = TABLES.iter().copied().flatten().find(|metric| metric.name == name);
        found.unwrap_or_else(|| panic!("{name} is in no table"))
    };
    let mut families = BTreeSet::new();
    for line in metrics.lines().filter(|line| !line.is_empty()) {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert_eq!(declared(name).kind.name(), kind, "{name}");
            families.insert(name);
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
            let metric = declared(family.filter(|family| families.contains(family)).unwrap_or(name));
            for label in labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('=')) {
                assert!(label.0 == "le" || metric.labels.contains(&label.0), "{series} has the label {}", label.0);
            }
        }
    }
    for name in [
        "wardline_ingest_answers_total",
        "wardline_ingest_durable_seconds",
        "wardline_fanout_latency_seconds",
        "wardline_presence_latency_seconds",
        "wardline_presence_streams",
        "wardline_presence_attachments",
        "wardline_receipt_latency_seconds",
        "wardline_directory_decisions_total",
        "wardline_directory_spread_seconds",
        "wardline_fold_lag_records",
        "wardline_log_append_seconds",
        "wardline_fold_age_seconds",
        "wardline_rpc_seconds",
        "wardline_rpc_refusals_total",
        "wardline_revocations_seconds",
        "wardline_trace_spans_total",
        "wardline_build_info",
    ] {
        assert!(families.contains(name), "{name} is not measured");
    }
}

#[test]
fn each_metric_is_its_own_and_is_named_by_the_rules() {
    let mut names = BTreeSet::new();
    for metric in TABLES.iter().copied().flatten() {
        let name = metric.name;
        assert!(names.insert(name), "{name} is in two tables");
        assert!(name.starts_with("wardline_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind.name() == "counter", "{name}");
        assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{name} would break the page's table");
    }
}

fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).unwrap().connect_lazy()
}

/// What an HTTP server answers to a GET.
async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The binary as an operator runs it: it tells when it is ready, what it does, and at its end what it has not told yet.
#[tokio::test]
async fn a_process_tells_on_its_admin_port_and_its_last_spans_at_its_end() {
    let (collector, endpoint) = Collector::start();
    let dir = tempfile::tempdir().unwrap();
    let secret = |name: &str| {
        let file = dir.path().join(name);
        let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).unwrap();
        writeln!(open, "{}", "5a".repeat(32)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (session, authority, link) = (secret("session"), secret("authority"), secret("link"));
    let data = dir.path().join("data").to_str().unwrap().to_owned();
    let any = "127.0.0.1:0";
    let variables = [
        ("WARDLINE_DATA_DIR", data.as_str()),
        ("WARDLINE_SESSION__KEYS_FILE", &session),
        ("WARDLINE_AUTHORITY__KEY_FILE", &authority),
        ("WARDLINE_LINK__KEY_FILE", &link),
        ("WARDLINE_TELEMETRY__OTLP_ENDPOINT", &endpoint),
        ("WARDLINE_TELEMETRY__SAMPLE_RATIO", "1.0"),
        ("WARDLINE_ADMIN__LISTEN", any),
        ("WARDLINE_LISTEN__INGEST", any),
        ("WARDLINE_LISTEN__PRESENCE", any),
        ("WARDLINE_LISTEN__RECEIPT", any),
        ("WARDLINE_LISTEN__DIRECTORY", any),
        ("WARDLINE_LISTEN__PRESENCE_LINK", any),
    ];
    let arguments = ["serve", "all", "--allow-plaintext", "--allow-no-issuer", "--log", "info"];
    let mut process = Process::start(Path::new(env!("CARGO_BIN_EXE_wardline")), arguments, &variables).unwrap();
    let line = process.diagnosed(|line| line.contains("\"addresses\"")).await.unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let (admin, addresses) = (line["admin"].as_str().unwrap(), line["addresses"].as_str().unwrap());
    let (_, directory) = addresses.split_once("\"directory\": ").unwrap();
    let directory = directory.split([',', '}']).next().unwrap();

    eventually("the instance to be ready", async || {
        get(admin, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    let mut sessions = SessionServiceClient::new(channel(&format!("http://{directory}")));
    sessions.get_server_info(v1::GetServerInfoRequest {}).await.unwrap();
    let metrics = get(admin, "/metrics").await;
    let counted = "wardline_rpc_requests_total{method=\"/wardline.v1.SessionService/GetServerInfo\",code=\"OK\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    process.signal("TERM").await.unwrap();
    assert!(process.ended().await.unwrap().status.success());

    let told = collector.spans();
    assert!(told.iter().any(|span| span.name == "wardline.v1.SessionService/GetServerInfo"), "its last span is lost");
    let resource = collector.0.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    let known = |key: &str| resource.attributes.iter().any(|attribute| attribute.key == key);
    assert!(["service.name", "service.version", "service.instance.id", "wardline.roles"].into_iter().all(known));
}

/// The names in a file's code.
fn names(file: &Path) -> BTreeSet<String> {
    let code = std::fs::read_to_string(file).unwrap();
    let literals = code.split('"').filter(|text| text.starts_with("wardline_"));
    let plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    literals.filter(plain).map(str::to_owned).collect()
}

fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    std::fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect()
}

#[test]
fn what_the_engines_measure_is_in_a_table() {
    let declared: BTreeSet<String> = TABLES.iter().copied().flatten().map(|metric| metric.name.to_owned()).collect();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    for engine in ["log-kafka", "store-scylla", "registry-redis"] {
        let measured: BTreeSet<String> =
            files(&crates.join(engine).join("src")).iter().flat_map(|file| names(file)).collect();
        assert!(!measured.is_empty(), "{engine} measures nothing");
        let extra: Vec<_> = measured.difference(&declared).collect();
        assert!(extra.is_empty(), "{engine} measures what is in no table: {extra:?}");
    }
}

#[test]
fn the_page_is_the_tables() {
    let page = exposition::page(TABLES);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(Path::new(PAGE).parent().unwrap()).unwrap();
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "deploy/docs/metrics.md is not the tables; UPDATE=1 writes it anew");
}
