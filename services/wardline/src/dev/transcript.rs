//! What the demonstration shows a person: numbered steps with the time each took, what was said, and a verdict.
//!
//! Deliberately absent: what happens in a step.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Writes to standard output, in colour when a person looks at it.
#[derive(Debug)]
pub(crate) struct Transcript {
    colour: bool,
    step: u32,
    began: Instant,
}

/// How wide the text of a step is before its time is put beside it, in columns.
const WIDTH: usize = 72;

impl Transcript {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, step: 0, began: Instant::now() }
    }

    /// A heading.
    pub(crate) fn heading(&self, text: &str) {
        self.line(&format!("\n{}", self.paint("1", text)));
    }

    /// A step that is done, and how long it took.
    pub(crate) fn step(&mut self, text: &str, took: Duration) {
        self.step += 1;
        let mut line = format!("{:>2}  {text}", self.step);
        let _ = write!(line, "{:>pad$}", "", pad = WIDTH.saturating_sub(text.chars().count()));
        self.line(&format!("{line} {}", self.paint("2", &milliseconds(took))));
    }

    /// Something said, by whom, as it looks on a receiver's screen.
    pub(crate) fn said(&self, who: &str, text: &str) {
        self.line(&format!("      {} {text}", self.paint("36", &format!("{who}:"))));
    }

    /// A detail under a step.
    pub(crate) fn detail(&self, text: &str) {
        self.line(&format!("      {}", self.paint("2", text)));
    }

    /// The end: what was verified.
    pub(crate) fn verdict(&self, text: &str) {
        let took = self.began.elapsed().as_secs_f64();
        self.line(&format!("\n{} {text} ({took:.1} s)", self.paint("32;1", "PASS")));
    }

    /// The end: what went wrong.
    pub(crate) fn failure(&self, text: &str) {
        self.line(&format!("\n{} step {}: {text}", self.paint("31;1", "FAIL"), self.step + 1));
    }

    /// A line as it is.
    pub(crate) fn line(&self, text: &str) {
        // Whoever closed the pipe does not want to read on; the demonstration goes on all the same.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Milliseconds with as many digits as mean something.
pub(crate) fn milliseconds(took: Duration) -> String {
    let millis = took.as_secs_f64() * 1000.0;
    if millis < 10.0 { format!("{millis:>7.1} ms") } else { format!("{millis:>7.0} ms") }
}
