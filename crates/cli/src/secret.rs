//! Passphrases: from a file, or asked for on the terminal without showing what is typed.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use vmwright_crypt::Passphrase;

use crate::failure::Failure;

/// The longest passphrase, as LUKS tools have it.
const LONGEST: u64 = 8 << 20;

/// The argument that names the file of a passphrase.
#[derive(clap::Args, Clone)]
pub(crate) struct Secret {
    /// Read the passphrase of an encrypted image from this file, without the newline at its end; - is standard
    /// input. Otherwise the terminal is asked
    #[arg(long, value_name = "FILE", help_heading = "Opening the disk")]
    passphrase_file: Option<PathBuf>,
}

impl Secret {
    /// The passphrase from the file; without one, from the terminal if it turns out to be `needed`.
    pub(crate) fn find(
        &self,
        what: &str,
        needed: impl FnOnce() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Option<Passphrase>> {
        match &self.passphrase_file {
            Some(path) => Ok(Some(read(path)?)),
            // Where the image cannot even be looked at, opening it says why.
            None if needed().unwrap_or(false) => Ok(Some(ask(what)?)),
            None => Ok(None),
        }
    }

    /// The passphrase of something that is made: from the file, or from the terminal, which is asked twice.
    pub(crate) fn for_new(&self, what: &str) -> anyhow::Result<Passphrase> {
        for_new(self.passphrase_file.as_deref(), what)
    }
}

/// The passphrase of something that is made: from a file, or from the terminal, which is asked twice.
pub(crate) fn for_new(file: Option<&Path>, what: &str) -> anyhow::Result<Passphrase> {
    match file {
        Some(path) => read(path),
        None => ask_new(what),
    }
}

/// Reads a passphrase from a file, without the newline at its end.
fn read(path: &Path) -> anyhow::Result<Passphrase> {
    let attempt = || format!("cannot read the passphrase from {}", path.display());
    let mut bytes = Vec::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes),
        _ => File::open(path).with_context(attempt)?.take(LONGEST + 1).read_to_end(&mut bytes),
    };
    read.with_context(attempt)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Failure::usage("it is longer than 8 MiB")).with_context(attempt);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Passphrase::new(bytes))
}

/// Asks the terminal for a passphrase.
fn ask(what: &str) -> anyhow::Result<Passphrase> {
    let Ok(terminal) = File::options().read(true).write(true).open("/dev/tty") else {
        return Err(Failure::usage(format!(
            "the {what} is needed: give it with --passphrase-file, there is no terminal to ask"
        )));
    };
    if !terminal.is_terminal() {
        return Err(Failure::usage(format!("the {what} is needed: give it with --passphrase-file")));
    }
    write!(&terminal, "{what}: ")?;
    let before = tcgetattr(&terminal).context("cannot ask for the passphrase")?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    hidden.local_flags.insert(LocalFlags::ECHONL);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden)?;
    let mut typed = String::new();
    let read = BufReader::new(&terminal).take(LONGEST).read_line(&mut typed);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &before)?;
    read.context("cannot read the passphrase")?;
    let typed = zeroize::Zeroizing::new(typed);
    Ok(Passphrase::new(typed.trim_end_matches('\n').as_bytes()))
}

/// Asks the terminal for a new passphrase, twice.
fn ask_new(what: &str) -> anyhow::Result<Passphrase> {
    let first = ask(what)?;
    if first.as_bytes().is_empty() {
        return Err(Failure::usage("a passphrase cannot be empty"));
    }
    if ask(&format!("{what}, again"))?.as_bytes() != first.as_bytes() {
        return Err(Failure::usage("the two passphrases differ"));
    }
    Ok(first)
}
