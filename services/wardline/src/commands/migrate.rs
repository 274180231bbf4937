//! `wardline migrate`: topics and tables, made or brought to what this version needs.
//!
//! Deliberately absent: anything that takes away what is there.

use std::ffi::OsString;

use crate::cli::MigrateArgs;
use crate::config::{Config, ConfigError, Refused};
use crate::engines::{self, ClusterError};

/// Why nothing was migrated.
#[derive(Debug, thiserror::Error)]
pub(super) enum MigrateError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// The configuration, if it names a cluster.
pub(super) fn configure(
    args: &MigrateArgs,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, MigrateError> {
    let config = Config::load(args.config.as_deref(), environment)?;
    config.fit_to_migrate(args.allow_plaintext)?;
    Ok(config)
}

/// Migrates and says on stdout what was done.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub(super) async fn run(config: &Config) -> Result<(), MigrateError> {
    println!("{}", engines::migrate(config).await?);
    Ok(())
}
