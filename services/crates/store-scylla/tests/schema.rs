//! Migrations, and what opens a keyspace or refuses to.

#![allow(clippy::unwrap_used)]

mod support;

use support::{drop_keyspace, fresh_name, nodes, options, raw};
use wardline_domain::failure::CauseKind;
use wardline_store::Failure;
use wardline_store_scylla::{NEWEST, migrate, open};

/// What is refused for the operator to act on. Answers with what it says.
fn refused<T>(result: wardline_store::Result<T>) -> String {
    match result.map(drop) {
        Err(Failure::NotApplied(cause)) if cause.kind == CauseKind::Unavailable => cause.detail,
        other => panic!("{other:?}"),
    }
}

/// The second run finds nothing to do, and what is there opens.
#[tokio::test]
async fn a_second_run_applies_nothing() {
    let Some(nodes) = nodes() else { return };
    let options = options(nodes.clone(), &fresh_name());
    let first = migrate(&options).await.unwrap();
    assert_eq!(first.applied, (1..=NEWEST).collect::<Vec<_>>());
    let second = migrate(&options).await.unwrap();
    assert_eq!((second.applied, second.version), (vec![], NEWEST));
    open(options.clone()).await.unwrap();
    drop_keyspace(&raw(nodes).await, &options.keyspace).await;
}

/// Of runs at the same time each migration is applied by one; both end well.
#[tokio::test]
async fn two_runs_at_once_apply_each_once() {
    let Some(nodes) = nodes() else { return };
    let options = options(nodes.clone(), &fresh_name());
    let (first, second) = tokio::join!(migrate(&options), migrate(&options));
    let mut applied = [first.unwrap().applied, second.unwrap().applied].concat();
    applied.sort_unstable();
    assert_eq!(applied, (1..=NEWEST).collect::<Vec<_>>());
    open(options.clone()).await.unwrap();
    drop_keyspace(&raw(nodes).await, &options.keyspace).await;
}

/// Without a keyspace, or a migration, or with another one of the same number, nothing opens, and what to do is said. A run
/// that ended half-way is gone on with.
#[tokio::test]
async fn another_schema_is_refused() {
    let Some(nodes) = nodes() else { return };
    let options = options(nodes.clone(), &fresh_name());
    let session = raw(nodes).await;
    assert!(refused(open(options.clone()).await).contains("wardline migrate"));
    migrate(&options).await.unwrap();
    let table = format!("{}.schema_migrations", options.keyspace);
    session.query_unpaged(format!("DELETE FROM {table} WHERE version = {NEWEST}"), ()).await.unwrap();
    assert!(refused(open(options.clone()).await).contains("wardline migrate"));
    assert_eq!(migrate(&options).await.unwrap().applied, [NEWEST]);
    open(options.clone()).await.unwrap();
    let changed = format!("UPDATE {table} SET checksum = ? WHERE version = 1");
    session.query_unpaged(changed, (&[7u8; 32][..],)).await.unwrap();
    assert!(refused(open(options.clone()).await).contains("migration 1"));
    assert!(refused(migrate(&options).await).contains("migration 1"));
    drop_keyspace(&session, &options.keyspace).await;
}

/// A schema that a later version has added to opens: old and new programs run side by side during an update.
#[tokio::test]
async fn a_later_schema_is_accepted() {
    let Some(nodes) = nodes() else { return };
    let options = options(nodes.clone(), &fresh_name());
    let session = raw(nodes).await;
    migrate(&options).await.unwrap();
    let later = format!("INSERT INTO {}.schema_migrations (version, checksum) VALUES (?, ?)", options.keyspace);
    session.query_unpaged(later, (NEWEST + 1, &[7u8; 32][..])).await.unwrap();
    open(options.clone()).await.unwrap();
    assert_eq!(migrate(&options).await.unwrap().applied, Vec::<i32>::new());
    drop_keyspace(&session, &options.keyspace).await;
}

/// A datacenter that no node is in is refused, with those there are.
#[tokio::test]
async fn a_datacenter_without_nodes_is_refused() {
    let Some(nodes) = nodes() else { return };
    let mut options = options(nodes, &fresh_name());
    options.datacenter = Some("elsewhere".to_owned());
    assert!(refused(open(options).await).contains("no node is in datacenter elsewhere; there are: "));
}

/// Where nobody listens, that is said, and nothing hangs.
#[tokio::test]
async fn no_node_is_unavailable() {
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let options = options(vec![address.to_string()], "nobody");
    assert!(refused(open(options).await).contains("no node is reached"));
}

/// With TLS and a password: the right CA and password open, a wrong CA, password or none do not.
#[tokio::test]
async fn tls_and_passwords_are_asked_for() {
    let variable = |name: &str| std::env::var(format!("WARDLINE_TEST_SECURE_{name}")).ok();
    let Some(node) = variable("CQL") else { return };
    let mut right = options(vec![node], &fresh_name());
    right.ca_pem = Some(std::fs::read(variable("CA").unwrap()).unwrap());
    right.username = variable("USER");
    let password = std::fs::read_to_string(variable("PASSWORD_FILE").unwrap()).unwrap();
    right.password = Some(password.trim_end().to_owned().into());
    migrate(&right).await.unwrap();
    let stores = open(right.clone()).await.unwrap();
    assert_eq!(stores.checkpoints.get(("conversations", 0)).await.unwrap(), None);
    let mut wrong_password = right.clone();
    wrong_password.password = Some("wrong".to_owned().into());
    let mut plain = right.clone();
    plain.ca_pem = None;
    let mut no_ca = right.clone();
    no_ca.ca_pem = Some(b"no certificate".to_vec());
    let mut other_ca = right.clone();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    other_ca.ca_pem = Some(other.cert.pem().into_bytes());
    for wrong in [wrong_password, plain, no_ca, other_ca] {
        refused(open(wrong).await);
    }
}
