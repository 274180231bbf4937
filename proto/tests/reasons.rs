//! The table of error reasons and the page rendered from it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use wardline_proto::reason::{self, Reason};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docs/errors.md");

#[test]
fn the_page_is_the_table() {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(std::path::Path::new(PAGE).parent().unwrap()).unwrap();
        std::fs::write(PAGE, reason::page()).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(page == reason::page(), "deploy/docs/errors.md is not the table; UPDATE=1 writes it anew");
}

#[test]
fn every_reason_is_its_own_and_says_what_to_do() {
    let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        let name = reason.as_str();
        assert_eq!(Reason::parse(name), Some(*reason), "{name} is not read back");
        assert!(name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'), "{name}");
        assert_ne!(reason.code(), tonic::Code::Ok, "{name}");
        assert_ne!(reason.code(), tonic::Code::Unknown, "{name}");
        assert!(reason.remedy().ends_with('.') && !reason.message().ends_with('.'), "{name}");
        assert!(![reason.message(), reason.remedy()].concat().contains('|'), "{name} would break the page's table");
    }
    assert_eq!(Reason::parse("SOMETHING_ELSE"), None);
}
