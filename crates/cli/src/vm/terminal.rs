//! The terminal that this process runs on.

use std::io::{self, IsTerminal};

use nix::sys::termios::{self, SetArg, Termios};
use rustix::termios::tcgetwinsize;

/// The terminal's rows and columns, where there is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// The terminal in raw mode, given back as it was when dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Enters raw mode; nothing where standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody left to tell where this fails.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}
