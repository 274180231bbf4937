//! The one way in which the engine ends the process.

/// The exit code: `EX_IOERR` of sysexits.h.
const EXIT_IO: i32 = 74;

/// Prints why and ends the process without unwinding: nobody may act on what the failed write left behind.
#[allow(clippy::print_stderr)]
pub(super) fn end_process(message: &str) {
    eprintln!("wardline: the log could not be written and the process ends: {message}");
    std::process::exit(EXIT_IO);
}
