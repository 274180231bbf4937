//! `wardline config check`.

use std::ffi::OsString;
use std::path::Path;

use crate::config::{Config, ConfigError};

/// Reads `file` as `wardline serve` would and says so on stdout. Deliberately absent: opening what it names.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub(super) fn run(file: &Path, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<(), ConfigError> {
    let config = Config::load(Some(file), environment)?;
    println!("{} is a configuration: {} issuer(s)", file.display(), config.issuers.len());
    Ok(())
}
