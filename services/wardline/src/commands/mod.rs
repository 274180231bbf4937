//! What each command does, one file a command.

mod check;
mod migrate;
mod serve;
mod session;

use std::ffi::OsString;

use wardline_runtime::telemetry;

use crate::cli::{Cli, Command, ConfigCommand, LogFormat};
use crate::config::{Config, Roles};
use crate::dev;

/// Does what the command line asks, with the environment as it is now. The error is for a person to read.
pub fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    let environment = || std::env::vars_os().collect::<Vec<(OsString, OsString)>>();
    match &cli.command {
        Command::Config(ConfigCommand::Check { file }) => check::run(file, environment())?,
        Command::Serve(args) => {
            let mut config = serve::configure(args, environment())?;
            if let Some(format) = cli.log_format {
                config.diagnostics.format = format.into();
            }
            if let Some(filter) = cli.log {
                config.diagnostics.filter = filter;
            }
            runtime()?.block_on(serve::run(config, &Roles::of(&args.roles)))?;
        }
        Command::Migrate(args) => {
            let config = migrate::configure(args, environment())?;
            diagnostics(&cli, LogFormat::Human.into(), "warn")?;
            runtime()?.block_on(migrate::run(&config))?;
        }
        Command::Dev(args) => {
            // The demonstration's devices say what they find in the transcript.
            let config = Config::load(None, environment())?;
            diagnostics(&cli, LogFormat::Human.into(), "warn,wardline_client=error")?;
            runtime()?.block_on(dev::run(args.clone(), config))?;
        }
        Command::Session(args) => {
            diagnostics(&cli, LogFormat::Human.into(), "warn")?;
            runtime()?.block_on(session::run(args.clone()))?;
        }
    }
    Ok(())
}

/// The command line goes before what else is said.
fn diagnostics(cli: &Cli, format: telemetry::Format, filter: &str) -> Result<(), telemetry::InitError> {
    telemetry::init(cli.log_format.map_or(format, Into::into), cli.log.as_deref().unwrap_or(filter))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
