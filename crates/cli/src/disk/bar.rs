//! A progress bar on standard error, where that is a terminal.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::output::size;

/// How long a bar stays as it is.
const STEP: Duration = Duration::from_millis(100);

/// A progress bar.
pub(crate) struct Bar {
    shown: Option<Mutex<Instant>>,
    start: Instant,
}

impl Bar {
    /// Begins to measure time.
    pub(crate) fn new() -> Self {
        let start = Instant::now();
        Self { shown: std::io::stderr().is_terminal().then(|| Mutex::new(start)), start }
    }

    /// Shows how many of all bytes are done.
    pub(crate) fn show(&self, done: u64, total: u64) {
        let Some(shown) = &self.shown else { return };
        // Another thread is drawing: it is current enough.
        let Ok(mut shown) = shown.try_lock() else { return };
        if shown.elapsed() < STEP || total == 0 {
            return;
        }
        *shown = Instant::now();
        let percent = done.saturating_mul(100) / total;
        let filled = (percent / 4) as usize;
        let rate = done as f64 / self.start.elapsed().as_secs_f64();
        eprint!("\r[{:<25}] {percent:3} %  {}/s  ", "=".repeat(filled.min(25)), size(rate as u64));
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
