//! The command line.
//!
//! Deliberately absent: what a configuration file says. The two overrides that weaken a deployment are here and only here, so
//! that no file and no environment can carry them along unseen.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use wardline_runtime::telemetry;

use crate::config;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// End-to-end encrypted messaging for health systems: the server.
#[derive(Debug, Parser)]
#[command(name = "wardline", version, styles = STYLES, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How diagnostics look on stderr [default: human for dev and session, else what the configuration says].
    #[arg(long, global = true, value_enum, value_name = "FORMAT", help_heading = "Diagnostics")]
    pub log_format: Option<LogFormat>,

    /// Which diagnostics are printed, such as `info,wardline_fanout=debug` [default: info for dev, else what the configuration
    /// says].
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Diagnostics")]
    pub log: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every role in this process, with its own engines, an issuer of tokens and a small hospital to try things on.
    Dev(DevArgs),
    /// Run some or all roles as the configuration says.
    Serve(ServeArgs),
    /// Make topics and tables in the engines of a cluster, or bring them to what this version needs. Safe to repeat.
    Migrate(MigrateArgs),
    /// Print a session token for a device that `wardline dev` enrolled.
    Session(SessionArgs),
    /// Work with configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `wardline dev`.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Where data and development keys lie; made when absent, kept between runs.
    #[arg(long, value_name = "DIR", default_value = "wardline-data")]
    pub data_dir: PathBuf,

    /// The first of the ports taken on 127.0.0.1; 0 takes any that are free.
    #[arg(long, value_name = "PORT", default_value_t = 7400)]
    pub port_base: u16,

    /// End once the demonstration has run; fails when the demonstration does.
    #[arg(long, conflicts_with = "no_demo", help_heading = "Demonstration")]
    pub exit_after_demo: bool,

    /// Start without the demonstration.
    #[arg(long, help_heading = "Demonstration")]
    pub no_demo: bool,

    /// Where the demonstration's devices attach instead, `http://host:port`. For tests that stand in between.
    #[arg(long, value_name = "URL", hide = true)]
    pub demo_presence: Option<String>,

    /// How long each step of the demonstration may take. For tests that make one fail.
    #[arg(long, value_name = "SECONDS", hide = true)]
    pub demo_patience: Option<u64>,
}

/// `wardline serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The roles to run.
    #[arg(required = true, value_enum, value_name = "ROLE")]
    pub roles: Vec<RoleArg>,

    /// The configuration file, TOML. `WARDLINE_SECTION__KEY` in the environment goes before it.
    #[arg(long, value_name = "FILE", env = "WARDLINE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take a doc comment for the group's help")]
    pub overrides: Overrides,
}

/// `wardline migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// The configuration file, TOML. `WARDLINE_SECTION__KEY` in the environment goes before it.
    #[arg(long, value_name = "FILE", env = "WARDLINE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,

    /// Speak to the engines without TLS where none is set.
    #[arg(long)]
    pub allow_plaintext: bool,
}

/// What weakens a deployment: said aloud, each time, where the process is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
#[command(next_help_heading = "Overrides (each weakens the deployment)")]
pub struct Overrides {
    /// Serve, and speak to the engines, without TLS where none is set: sessions and who talks to whom cross the network readably.
    #[arg(long)]
    pub allow_plaintext: bool,

    /// Start without an issuer: nobody can open a session.
    #[arg(long)]
    pub allow_no_issuer: bool,
}

/// `wardline session`.
#[derive(Debug, Clone, Args)]
pub struct SessionArgs {
    /// The data directory of a running `wardline dev`.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Which of the demonstration's people.
    #[arg(long = "as", value_name = "WHO", default_value = "physician")]
    pub who: String,
}

/// `wardline config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file together with the environment, as `wardline serve` would.
    Check {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// A role, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Accepts messages and makes them durable.
    Ingest,
    /// Orders conversations and expands them into feeds.
    Fanout,
    /// Holds users' feeds and the devices attached to them.
    Presence,
    /// Folds receipts into what was delivered and read.
    Receipt,
    /// Tenants, users, devices, key packages, sessions.
    Directory,
    /// All of them in one process.
    All,
}

/// How diagnostics look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl From<LogFormat> for config::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

impl From<LogFormat> for telemetry::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}
