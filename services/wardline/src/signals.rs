//! How a process is told to end: the first SIGTERM or SIGINT asks it to drain, the second ends it at once.
//!
//! Deliberately absent: what draining means.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 128 + 2;
/// What a shell reports for a process that SIGTERM ended.
const EXIT_TERMINATED: i32 = 128 + 15;

/// Cancelled upon the first signal. From this call on, a signal no longer ends the process by itself. Call it inside the
/// runtime.
pub fn drain() -> CancellationToken {
    let listen = |kind| signal(kind).expect("SIGTERM and SIGINT can be received wherever there is a runtime");
    let mut signals =
        Signals { terminate: listen(SignalKind::terminate()), interrupt: listen(SignalKind::interrupt()) };
    let drain = CancellationToken::new();
    tokio::spawn({
        let drain = drain.clone();
        async move {
            let _ = signals.next().await;
            tracing::info!("told to end: draining; a second signal ends at once");
            drain.cancel();
            let code = signals.next().await;
            tracing::warn!("told to end again: ending without draining");
            std::process::exit(code);
        }
    });
    drain
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// The exit code of the next signal.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => EXIT_TERMINATED,
            _ = self.interrupt.recv() => EXIT_INTERRUPTED,
        }
    }
}
