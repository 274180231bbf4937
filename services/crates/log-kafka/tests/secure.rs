//! TLS and SCRAM towards brokers that ask for both: a listener of the brokers that `WARDLINE_TEST_KAFKA` names in the clear.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::path::PathBuf;

use futures::future::join_all;
use wardline_domain::Failure;
use wardline_log_kafka::{Mechanism, Options, Sasl, Tls, migrate, open};

use self::support::{Topics, at, brokers, insist, read_to, within};

/// What the brokers must be told, on the listener that asks. `None`, said once, when there is none; where tests must not be left
/// out, a panic.
fn secured(options: &Options) -> Option<Options> {
    let variable = |name: &str| std::env::var(format!("WARDLINE_TEST_SECURE_{name}"));
    let Ok(brokers) = variable("KAFKA") else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "WARDLINE_TEST_SECURE_KAFKA is not set");
        println!("skipped: WARDLINE_TEST_SECURE_KAFKA is not set");
        return None;
    };
    let password = std::fs::read_to_string(variable("PASSWORD_FILE").unwrap()).unwrap();
    Some(Options {
        brokers: brokers.split(',').map(str::to_owned).collect(),
        tls: Some(Tls { ca_file: Some(PathBuf::from(variable("CA").unwrap())) }),
        sasl: Some(Sasl {
            mechanism: Mechanism::ScramSha512,
            username: variable("USER").unwrap(),
            password: password.trim_end().into(),
        }),
        ..options.clone()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_go_and_come_over_tls_with_a_password() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let Some(secured) = secured(&topics.options) else { return };
    assert_eq!(within(migrate(&secured)).await.unwrap().verified.len(), 6);
    let log = topics.open_with(|options, _| *options = secured).await;
    for payload in ["a", "b", "end"] {
        insist(&*log, at(0), payload).await;
    }
    assert_eq!(read_to(&*log, at(0), "end").await, ["a", "b", "end"]);
}

/// Whoever cannot prove who they are, or whose broker cannot, gets nowhere; and no text holds the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_proven_is_refused() {
    let Some(brokers) = brokers() else { return };
    let topics = Topics::create(brokers).await;
    let Some(right) = secured(&topics.options) else { return };
    let sasl = right.sasl.clone().unwrap();
    let with = |sasl: Option<Sasl>| Options { sasl, ..right.clone() };
    let wrong = [
        with(Some(Sasl { password: "not the password".into(), ..sasl.clone() })),
        with(Some(Sasl { username: "nobody".to_owned(), ..sasl })),
        with(None),
        // The authority is none of the system's.
        Options { tls: Some(Tls { ca_file: None }), ..right.clone() },
        Options { tls: None, ..right.clone() },
    ];
    let refused = within(join_all(wrong.map(open))).await;
    within(open(right)).await.unwrap();
    for (nth, refused) in refused.into_iter().enumerate() {
        match refused.err() {
            Some(Failure::NotApplied(cause)) => assert!(!cause.to_string().contains("not the password"), "{cause}"),
            other => panic!("the case {nth}: {other:?}"),
        }
    }
}
