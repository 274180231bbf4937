//! What the server cannot know and what it does not tell: after a real exchange, its files hold no word of it, and its
//! diagnostics, at their most talkative, name nobody.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use memchr::memmem;
use secrecy::ExposeSecret as _;
use wardline::issuer::Issuer;
use wardline_client::{ConversationId, Device, DeviceId, NewConversation, UserId};
use wardline_runtime::Clock;
use wardline_testbed::people::{PATIENCE, People, Tokens};
use wardline_testbed::process;
use wardline_testbed::server::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_wardline");
const FILE_CONTENT: &str = "the file's content";

/// A word that is nowhere by chance, and that no compression shortens: it is there once.
fn word(kind: &str) -> String {
    format!("{kind}{}", uuid::Uuid::new_v4().simple())
}

/// The files under `dir` that hold any of `needles`, as (file, needle).
fn found(dir: &Path, needles: &[(String, Vec<u8>)]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for file in files(dir) {
        let bytes = std::fs::read(&file).unwrap();
        let held = needles.iter().filter(|(_, needle)| memmem::find(&bytes, needle).is_some());
        found.extend(held.map(|(name, _)| (file.clone(), name.clone())));
    }
    found
}

fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    std::fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect()
}

/// An id in every form that would tell: as clients write it, without hyphens in either case, and as it lies in records.
fn forms(name: &str, id: &[u8; 16]) -> Vec<(String, Vec<u8>)> {
    let id = uuid::Uuid::from_bytes(*id);
    let texts = [
        id.hyphenated().to_string(),
        id.hyphenated().to_string().to_uppercase(),
        id.simple().to_string(),
        id.simple().to_string().to_uppercase(),
        // As `{:?}` prints bytes.
        format!("{:?}", id.as_bytes()).trim_matches(['[', ']']).to_owned(),
    ];
    let raw = (format!("{name}, raw"), id.as_bytes().to_vec());
    texts.into_iter().map(|text| (format!("{name} as {text}"), text.into_bytes())).chain([raw]).collect()
}

/// What was said, and who said it.
struct Exchange {
    words: Vec<(String, Vec<u8>)>,
    ids: Vec<(String, Vec<u8>)>,
    sessions: Vec<(String, Vec<u8>)>,
    conversation: ConversationId,
}

fn needle(name: &str, text: impl Into<String>) -> (String, Vec<u8>) {
    (name.to_owned(), text.into().into_bytes())
}

/// Two people open a conversation, write, send a file, read; one looks around where it may not; one device is lost.
async fn exchange(people: &People) -> Exchange {
    let [title, text, reply, file, content] = ["title", "text", "reply", "file", "content"].map(word);
    let (one, two) = (people.person("one").await.unwrap(), people.person("two").await.unwrap());
    let first = people.device(&one, None).await.unwrap();
    let second = people.device(&two, None).await.unwrap();
    let conversation = first.create_conversation(NewConversation::group(&title, [two.user])).await.unwrap();
    first.send_text(conversation, &text).unwrap();
    second.wait_for_text(conversation, &text, PATIENCE).await.unwrap();
    second.send_text(conversation, &reply).unwrap();
    let seen = first.wait_for_text(conversation, &reply, PATIENCE).await.unwrap();
    first.mark_read(conversation, seen.sequence).unwrap();
    let sent = first.send_attachment(conversation, &file, "text/plain", content.clone().into_bytes()).unwrap();
    let arrived = |history: Vec<wardline_client::HistoryEntry>| {
        history.iter().any(|entry| entry.content().is_some_and(|(id, _)| id == sent)).then_some(())
    };
    second.wait_for("the file", PATIENCE, |view| Ok(arrived(view.history(conversation)?))).await.unwrap();
    first.fetch_receipts(conversation).await.unwrap();
    first.present(&[two.user]).await.unwrap();

    let outsider = people.person("outsider").await.unwrap();
    let third = people.device(&outsider, None).await.unwrap();
    third.fetch_receipts(conversation).await.unwrap_err();
    let sessions = [&first, &second, &third].map(|device| device.session_token());
    let sessions = futures::future::join_all(sessions).await;
    let tablet = people.device(&one, Some(&first)).await.unwrap();
    tablet.revoke_device(first.id()).await.unwrap();

    let user = |name: &str, id: UserId| forms(name, id.as_bytes());
    let device = |name: &str, device: &Device| {
        let id: DeviceId = device.id();
        forms(name, id.as_bytes())
    };
    let ids = [
        user("the first user", one.user),
        user("the second user", two.user),
        user("the outsider", outsider.user),
        device("the first device", &first),
        device("the second device", &second),
        device("the outsider's device", &third),
        device("the tablet", &tablet),
        forms("the conversation", conversation.as_bytes()),
    ];
    let names = [&one.subject, &two.subject, &outsider.subject].map(|subject| needle("a subject", subject));
    for device in [first, second, third, tablet] {
        device.close().await;
    }
    Exchange {
        words: vec![
            needle("the title", title),
            needle("the text", text),
            needle("the reply", reply),
            needle("the file's name", file),
            needle(FILE_CONTENT, content),
        ],
        ids: ids.into_iter().flatten().chain(names).collect(),
        sessions: sessions.into_iter().map(|token| needle("a session", token.unwrap())).collect(),
        conversation,
    }
}

/// People whose access tokens are remembered.
fn people(server: &Server, data: &Path, dir: &Path) -> (People, Arc<Mutex<Vec<String>>>) {
    let issuer = Issuer::load_or_make(&data.join("dev"), wardline::dev::ISSUER, Clock::system()).unwrap();
    let minted = Arc::<Mutex<Vec<String>>>::default();
    let remembered = Arc::clone(&minted);
    let tokens: Tokens = Arc::new(move |subject, scope| {
        let token = issuer.mint(subject, scope, None).unwrap();
        remembered.lock().unwrap().push(token.expose_secret().to_owned());
        token
    });
    (People::new(server.endpoints(), tokens, dir), minted)
}

#[tokio::test]
async fn the_server_holds_no_word_and_its_diagnostics_name_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (data, devices) = (dir.path().join("data"), dir.path().join("devices"));
    std::fs::create_dir(&devices).unwrap();
    let mut server = Server::start_telling(Path::new(BINARY), &data, None, "debug,wardline=trace").await.unwrap();
    let (people, minted) = people(&server, &data, &devices);
    let exchange = exchange(&people).await;
    // Its last words count too, and what it writes when it goes.
    process::signal(server.pid().unwrap(), "TERM").await.unwrap();
    tokio::time::timeout(PATIENCE, server.ended()).await.unwrap().unwrap();

    let diagnostics = server.diagnostics();
    let nothing: Vec<(PathBuf, String)> = Vec::new();
    // The search finds what is there: on the devices, and the ids that the server needs.
    // Files lie sealed under their own key even there.
    for needle in exchange.words.iter().filter(|(name, _)| name != FILE_CONTENT) {
        assert!(!found(&devices, std::slice::from_ref(needle)).is_empty(), "{} is on no device", needle.0);
    }
    assert!(!found(&data, &[("raw".to_owned(), exchange.conversation.as_bytes().to_vec())]).is_empty());
    let talk = std::fs::read_to_string(diagnostics).unwrap();
    assert!(talk.contains("DEBUG"), "the diagnostics are not at their most talkative");

    assert_eq!(found(&data, &exchange.words), nothing, "the server's files hold words of the exchange");
    assert_eq!(found(diagnostics, &exchange.words), nothing, "the diagnostics hold words of the exchange");
    assert_eq!(found(diagnostics, &exchange.ids), nothing, "the diagnostics name somebody");
    let mut secrets = exchange.sessions;
    secrets.extend(minted.lock().unwrap().iter().map(|token| needle("an access token", token)));
    assert!(secrets.len() > 6);
    assert_eq!(found(diagnostics, &secrets), nothing, "the diagnostics hold somebody's token");
    assert_eq!(found(&data, &secrets), nothing, "the server's files hold somebody's token");
    assert!(!talk.contains("panicked"), "something panicked");
    private_keys(&data);
}

/// Whatever holds a secret is its owner's only, and so is the directory.
fn private_keys(data: &Path) {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(data), 0o700);
    let public = |file: &Path| file.ends_with("running.json");
    let secret: Vec<PathBuf> = files(&data.join("dev")).into_iter().filter(|file| !public(file)).collect();
    for name in ["session.keys", "authority.key", "link.key"] {
        assert!(secret.contains(&data.join("dev").join(name)), "{name} is missing");
    }
    for file in secret {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}
