//! The binary's words and exit codes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/config");

/// Runs the binary with no environment but `variables`.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wardline"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_names_every_command_and_every_role() {
    let help = stdout(&run(&["--help"], &[]));
    for command in ["dev", "serve", "migrate", "session", "config"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{help}");
    }
    let help = stdout(&run(&["serve", "--help"], &[]));
    for word in
        ["ingest", "fanout", "presence", "receipt", "directory", "all", "--allow-plaintext", "--allow-no-issuer"]
    {
        assert!(help.contains(word), "{word} in {help}");
    }
    assert_eq!(run(&["serve"], &[]).status.code(), Some(2));
}

#[test]
fn the_samples_pass_the_check_and_a_misspelt_key_does_not() {
    for sample in ["serve.toml", "minimal.toml"] {
        let output = run(&["config", "check", &format!("{SAMPLES}/{sample}")], &[]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let output = run(&["config", "check", &format!("{SAMPLES}/serve.toml")], &[("WARDLINE_LISTEN__INGST", "x")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("WARDLINE_LISTEN__INGEST"), "{}", stderr(&output));
}

#[test]
fn serving_without_what_it_needs_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let output =
        run(&["serve", "ingest", "presence", "directory"], &[("WARDLINE_DATA_DIR", data_dir.to_str().unwrap())]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    for word in ["wardline serve all", "--allow-plaintext", "session.keys_file", "authority.key_file", "link.key_file"]
    {
        assert!(told.contains(word), "{word} in {told}");
    }
    assert!(!Path::new(&data_dir).exists());
}

#[test]
fn a_secret_that_others_can_read_stops_the_start() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "07".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let key = key.to_str().unwrap();
    let data_dir = dir.path().join("data");
    let variables = [
        ("WARDLINE_DATA_DIR", data_dir.to_str().unwrap()),
        ("WARDLINE_SESSION__KEYS_FILE", key),
        ("WARDLINE_AUTHORITY__KEY_FILE", key),
        ("WARDLINE_LINK__KEY_FILE", key),
    ];
    let output = run(&["serve", "all", "--allow-plaintext", "--allow-no-issuer"], &variables);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("0644") && !stderr(&output).contains("0707"), "{}", stderr(&output));
}
