//! See [`wardline_testbed::command`].

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use wardline_testbed::command::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    match command::run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody looks on: what counts is the exit code.
            let _ = writeln!(std::io::stdout(), "FAIL {error}");
            ExitCode::FAILURE
        }
    }
}
