//! The binary: what it is asked on the command line is done in [`wardline::commands`].

use std::process::ExitCode;

use clap::Parser as _;
use wardline::cli::Cli;
use wardline::commands;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match commands::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// To whoever started the process, whether or not diagnostics are set up.
#[expect(clippy::print_stderr, reason = "the reason of a failed start is for a person to read")]
fn say(error: &str) {
    eprintln!("wardline: {error}");
}
