//! `wardline session`: a token on stdout, for grpcurl and the like.
//!
//! Deliberately absent: how the token is come by, which only `dev` knows.

use crate::cli::SessionArgs;
use crate::dev;

/// Prints the token of the device that `args` names, and nothing else.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
pub(super) async fn run(args: SessionArgs) -> Result<(), Box<dyn std::error::Error>> {
    println!("{}", dev::session(&args).await?);
    Ok(())
}
