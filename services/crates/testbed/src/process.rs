//! The binary as a process that is read line by line, told by signals, and gone when the test is.
//!
//! Deliberately absent: which command it runs.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a line or the end may take before the process is called stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process printed so far, and what it prints next.
#[derive(Debug)]
struct Lines {
    arriving: mpsc::UnboundedReceiver<String>,
    seen: String,
}

impl Lines {
    fn of(pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (send, arriving) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(pipe).lines();
            // Read on when nobody listens any more, so that the process never waits for a reader.
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = send.send(line);
            }
        });
        Self { arriving, seen: String::new() }
    }

    async fn next(&mut self) -> Option<String> {
        let line = self.arriving.recv().await?;
        self.seen.push_str(&line);
        self.seen.push('\n');
        Some(line)
    }

    async fn find(&mut self, wanted: impl Fn(&str) -> bool) -> io::Result<String> {
        let search = async {
            loop {
                match self.next().await {
                    Some(line) if wanted(&line) => return Some(line),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        let found = timeout(PATIENCE, search).await.ok().flatten();
        found.ok_or_else(|| io::Error::other(format!("the line never came; what came:\n{}", self.seen)))
    }

    async fn rest(mut self) -> String {
        while self.next().await.is_some() {}
        self.seen
    }
}

/// A running process. Killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All it printed.
    pub stdout: String,
    /// All its diagnostics.
    pub stderr: String,
}

impl Process {
    /// Runs `binary` with no environment but `variables`.
    pub fn start<A: AsRef<OsStr>>(
        binary: &Path,
        arguments: impl IntoIterator<Item = A>,
        variables: &[(&str, &str)],
    ) -> io::Result<Self> {
        let mut command = Command::new(binary);
        command.args(arguments).env_clear().envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("the process has no pipes"));
        };
        Ok(Self { child, stdout: Lines::of(stdout), stderr: Lines::of(stderr) })
    }

    /// The next printed line that is wanted.
    pub async fn printed(&mut self, wanted: impl Fn(&str) -> bool) -> io::Result<String> {
        self.stdout.find(wanted).await
    }

    /// The next line of diagnostics that is wanted.
    pub async fn diagnosed(&mut self, wanted: impl Fn(&str) -> bool) -> io::Result<String> {
        self.stderr.find(wanted).await
    }

    /// The URL that `wardline dev` prints for a role. Ask in the order of the table.
    pub async fn address(&mut self, role: &str) -> io::Result<String> {
        let line = self.printed(|line| line.split_whitespace().next() == Some(role)).await?;
        let url = line.split_whitespace().nth(1).unwrap_or_default();
        Ok(url.to_owned())
    }

    /// Sends a signal, such as `TERM`.
    pub async fn signal(&self, name: &str) -> io::Result<()> {
        let id = self.child.id().ok_or_else(|| io::Error::other("the process has ended"))?;
        signal(id, name).await
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> io::Result<Ended> {
        let status = timeout(PATIENCE, self.child.wait()).await.map_err(|_| io::Error::other("it did not end"))??;
        Ok(Ended { status, stdout: self.stdout.rest().await, stderr: self.stderr.rest().await })
    }
}

/// Takes each variable that configures Wardline out of a process's environment, by `remove`: what the test runs with must
/// not reach what it starts.
pub fn without_configuration(mut remove: impl FnMut(&OsStr)) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(wardline::config::PREFIX) {
            remove(&name);
        }
    }
}

/// Sends a signal, such as `TERM`, to one process.
pub async fn signal(id: u32, name: &str) -> io::Result<()> {
    let sent = Command::new("kill").arg("-s").arg(name).arg(id.to_string()).status().await?;
    if sent.success() { Ok(()) } else { Err(io::Error::other("the signal was not sent")) }
}
