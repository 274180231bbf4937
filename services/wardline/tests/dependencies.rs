//! Dependencies point one way: `domain` ← traits, `proto` ← engines and `runtime` ← roles ← `wardline`, `testbed`.
//!
//! Only what is built into a binary counts: a test may use whatever proves its point.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const ROLES: [&str; 5] =
    ["wardline-ingest", "wardline-fanout", "wardline-presence", "wardline-receipt", "wardline-directory"];
const SEAMS: [&str; 3] = ["wardline-log", "wardline-store", "wardline-registry"];
/// The crates that speak to an engine's own protocol or format, and who may use each.
const ENGINES: [(&str, &[&str]); 4] = [
    ("fjall", &["wardline-log", "wardline-store"]),
    ("rdkafka", &["wardline-log-kafka"]),
    ("scylla", &["wardline-store-scylla"]),
    ("redis", &["wardline-registry-redis"]),
];
/// What is built around the roles, and may know all of them.
const COMPOSERS: [&str; 2] = ["wardline", "wardline-testbed"];

/// Every package of the workspace with the names of what it is built from.
fn built_from() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--no-deps", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_owned(), normal(package))).collect()
}

/// Dependencies of kind `null` are the normal ones.
fn normal(package: &Value) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    dependencies
        .filter(|dependency| dependency["kind"].is_null())
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect()
}

fn of<'a>(packages: &'a BTreeMap<String, BTreeSet<String>>, name: &str) -> &'a BTreeSet<String> {
    packages.get(name).unwrap_or_else(|| panic!("there is no package {name}"))
}

fn ours(names: &BTreeSet<String>) -> BTreeSet<&str> {
    names.iter().map(String::as_str).filter(|name| name.starts_with("wardline")).collect()
}

#[test]
fn domain_stands_on_nothing_but_bytes_hashes_ids_and_errors() {
    let packages = built_from();
    let allowed = BTreeSet::from(["bytes", "sha2", "thiserror", "uuid"].map(str::to_owned));
    let extra: Vec<_> = of(&packages, "wardline-domain").difference(&allowed).collect();
    assert!(extra.is_empty(), "wardline-domain is pure, but depends on {extra:?}");
}

#[test]
fn the_seams_know_neither_protocol_nor_roles() {
    let packages = built_from();
    for seam in SEAMS {
        let allowed = BTreeSet::from(["wardline-domain", "wardline-store"]);
        let extra: Vec<_> = ours(of(&packages, seam)).difference(&allowed).copied().collect();
        assert!(extra.is_empty(), "{seam} depends on {extra:?}");
    }
    assert_eq!(ours(of(&packages, "wardline-proto")), BTreeSet::from(["wardline-domain"]));
}

#[test]
fn an_engine_is_named_only_behind_its_seam() {
    for (package, dependencies) in built_from() {
        for (engine, owners) in ENGINES {
            let named = dependencies.contains(engine);
            assert!(!named || owners.contains(&package.as_str()), "{package} names {engine}");
        }
    }
}

#[test]
fn a_role_knows_no_other_role_and_no_engine_of_a_cluster() {
    let packages = built_from();
    let allowed: BTreeSet<&str> =
        SEAMS.into_iter().chain(["wardline-domain", "wardline-proto", "wardline-runtime"]).collect();
    for role in ROLES {
        let extra: Vec<_> = ours(of(&packages, role)).difference(&allowed).copied().collect();
        assert!(extra.is_empty(), "{role} depends on {extra:?}");
    }
}

#[test]
fn only_what_composes_them_knows_roles() {
    for (package, dependencies) in built_from() {
        let roles: Vec<_> = ours(&dependencies).into_iter().filter(|name| ROLES.contains(name)).collect();
        assert!(roles.is_empty() || COMPOSERS.contains(&package.as_str()), "{package} depends on {roles:?}");
    }
}

#[test]
fn a_device_is_built_from_no_part_of_the_server() {
    let packages = built_from();
    assert_eq!(ours(of(&packages, "wardline-client")), BTreeSet::from(["wardline-domain", "wardline-proto"]));
}
