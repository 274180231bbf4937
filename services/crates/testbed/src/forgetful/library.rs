//! Builds the preloaded library with the system's C compiler.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::process::{self, Command};

const SOURCE: &str = include_str!("../../forgetful/forgetful.c");

/// The preloaded library, compiled with `cc` beside the running test binary unless it is there already.
///
/// Safe to call from several processes at once: each builds under a name of its own and renames.
pub fn library() -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    let name = format!("forgetful-{:016x}", hasher.finish());
    let folder = env::current_exe()?.parent().map_or_else(env::temp_dir, PathBuf::from);
    let built = folder.join(format!("{name}.so"));
    if built.exists() {
        return Ok(built);
    }
    let work = tempfile::Builder::new().prefix(&format!("{name}-{}-", process::id())).tempdir_in(&folder)?;
    let (source, object) = (work.path().join("forgetful.c"), work.path().join("forgetful.so"));
    fs::write(&source, SOURCE)?;
    let output = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-shared", "-fPIC", "-O2", "-o"])
        .args([&object, &source])
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("the forgetful disk needs a C compiler, `cc`: {error}"))
        })?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::rename(&object, &built)?;
    Ok(built)
}
