//! What the README tells people to type works as it stands there.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wardline_testbed::process::Process;

const BINARY: &str = env!("CARGO_BIN_EXE_wardline");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const FIRST_CALL: &str = "wardline.v1.DeliveryService/ListConversations";

/// The README's blocks of commands, line by line, continued lines joined.
fn blocks() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let fenced = text.split("\n```").collect::<Vec<_>>();
    // Text and fences alternate; what a fence is for stands on its first line.
    let commands = fenced.iter().skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let lines = |block: &str| block.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect();
    commands.map(lines).collect()
}

#[test]
fn running_and_testing_are_one_command_each() {
    let blocks = blocks();
    for command in ["cargo run --release -- dev", "cargo test --workspace"] {
        assert!(blocks.iter().any(|block| block == &[command]), "`{command}` is not a block of its own");
    }
}

/// Every file and command line option that the blocks name is there.
#[test]
fn every_command_names_what_is_there() {
    for line in blocks().into_iter().flatten() {
        let words = line.split_whitespace().collect::<Vec<_>>();
        for word in words.iter().filter(|word| word.starts_with("deploy/") || word.starts_with("proto/")) {
            assert!(Path::new(ROOT).join(word).exists(), "{word} in `{line}`");
        }
        if words[0] == "wardline" {
            let help = Command::new(BINARY).args([words[1], "--help"]).output().unwrap();
            let help = String::from_utf8(help.stdout).unwrap();
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{option} in `{line}`");
            }
        }
    }
}

/// Where grpcurl is, if it is. A check before a merge has it.
fn grpcurl() -> Option<PathBuf> {
    let named = std::env::var_os("WARDLINE_TEST_GRPCURL").map(PathBuf::from);
    assert!(named.is_some() || std::env::var_os("CI").is_none(), "WARDLINE_TEST_GRPCURL names no grpcurl");
    named
}

/// The first call with grpcurl, this binary, this data directory and this address in the places of the README's.
fn first_call(grpcurl: &Path, data: &Path, address: &str) -> String {
    let blocks = blocks();
    let [line] = blocks.iter().find(|block| block.iter().any(|line| line.contains(FIRST_CALL))).unwrap().as_slice()
    else {
        panic!("the first call is one command")
    };
    let line = line.replace("target/release/wardline", BINARY).replace("wardline-data", data.to_str().unwrap());
    assert!(line.starts_with("grpcurl ") && line.contains(BINARY) && line.contains("127.0.0.1:7402"), "{line}");
    let line = line.replace("127.0.0.1:7402", address);
    line.replacen("grpcurl", grpcurl.to_str().unwrap(), 1)
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "who runs the tests is to know what was left out")]
async fn the_first_call_answers_with_the_demonstration_s_conversation() {
    let Some(grpcurl) = grpcurl() else {
        return eprintln!("left out: WARDLINE_TEST_GRPCURL names no grpcurl");
    };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let arguments = ["dev", "--port-base", "0", "--data-dir", data.to_str().unwrap()];
    let mut server = Process::start(Path::new(BINARY), arguments, &[]).unwrap();
    let presence = server.address("presence").await.unwrap();
    let address = presence.trim_start_matches("http://").to_owned();
    server.printed(|line| line.starts_with("PASS ")).await.unwrap();
    // It offers the same call itself, with its own address.
    let offered = server.printed(|line| line.contains(FIRST_CALL)).await.unwrap();
    assert!(offered.contains(&address), "{offered}");

    let call = first_call(&grpcurl, &data, &address);
    let answer = tokio::process::Command::new("sh").arg("-c").arg(&call).kill_on_drop(true).output().await.unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    let conversations = answer["conversations"].as_array().unwrap();
    let [listed] = conversations.as_slice() else { panic!("{answer}") };
    assert_eq!(listed["deviceIsMember"], true, "{answer}");
    let sequence: u64 = listed["conversation"]["sequence"].as_str().unwrap().parse().unwrap();
    assert!(sequence >= 5 && listed["conversation"]["id"].is_string(), "{answer}");

    server.signal("TERM").await.unwrap();
    assert_eq!(server.ended().await.unwrap().status.code(), Some(0));
}
