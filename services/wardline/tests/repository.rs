//! What holds for every file of the repository.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Every file below `dir` whose name ends in `.{extension}`, generated ones aside.
fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|ends| ends == extension) {
            found.push(path);
        }
    }
}

fn below(dirs: &[&str], extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    dirs.iter()
        .map(|dir| Path::new(ROOT).join(dir))
        .filter(|dir| dir.is_dir())
        .for_each(|dir| files(&dir, extension, &mut found));
    assert!(!found.is_empty());
    found
}

#[test]
fn every_source_file_says_first_what_it_is_about() {
    for file in below(&["proto", "services", "loadtest"], "rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} has no module header", file.display());
    }
}

#[test]
fn every_package_keeps_the_workspace_s_lints_and_licence() {
    for file in below(&["proto", "services", "loadtest"], "toml").iter().filter(|file| file.ends_with("Cargo.toml")) {
        let manifest: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
        let Some(package) = manifest.get("package") else { continue };
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let inherited = package.get(key).and_then(|value| value.get("workspace")).and_then(toml::Value::as_bool);
            assert_eq!(inherited, Some(true), "{}: package.{key} is the workspace's", file.display());
        }
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(lints, Some(true), "{}: lints are the workspace's", file.display());
    }
}
