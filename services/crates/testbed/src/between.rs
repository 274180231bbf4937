//! Where that runs which stands between processes: threads of its own, so that what devices compute in the same process does
//! not delay what others send each other.
//!
//! Deliberately absent: what it does there.

use std::io;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<io::Result<Runtime>> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).thread_name("between").enable_all().build());

fn runtime() -> io::Result<&'static Runtime> {
    RUNTIME.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// Does `work` there, and whatever it spawns.
pub(crate) async fn run<T: Send + 'static>(
    work: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    runtime()?.spawn(work).await.map_err(io::Error::other)?
}

/// Does `work` there, and waits for nothing.
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    runtime()?.spawn(work);
    Ok(())
}
