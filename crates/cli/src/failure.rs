//! The one place that renders errors and chooses exit codes.

use std::process::ExitCode;

use vmwright_disk::ErrorKind;

/// Why a command ended, as its exit code says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// 1: it could not be done.
    Failed,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: it could be done, but must not be: in use, unsupported, would lose data.
    Refused,
    /// 4: the input contradicts its format.
    Corrupt,
}

impl Reason {
    fn code(self) -> u8 {
        match self {
            Reason::Failed => 1,
            Reason::Usage => 2,
            Reason::Refused => 3,
            Reason::Corrupt => 4,
        }
    }
}

/// The exit code of a command that runs a guest's command and failed itself.
const OWN_FAILURE: u8 = 125;

/// An error of the command line's own, with the reason it stands for.
#[derive(Debug)]
pub(crate) struct Failure {
    reason: Reason,
    text: String,
}

impl Failure {
    /// Makes an error that ends the command for `reason`.
    pub(crate) fn because(reason: Reason, text: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { reason, text: text.into() })
    }

    /// Makes an error about the command line itself.
    pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
        Self::because(Reason::Usage, text)
    }

    /// Makes an error about something that must not be done.
    pub(crate) fn refused(text: impl Into<String>) -> anyhow::Error {
        Self::because(Reason::Refused, text)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The reason that the storage crates' kinds stand for.
fn reason_of_kind(kind: ErrorKind) -> Reason {
    match kind {
        ErrorKind::Corrupt => Reason::Corrupt,
        ErrorKind::Exists | ErrorKind::InUse | ErrorKind::Unsupported | ErrorKind::ReadOnly => {
            Reason::Refused
        }
        _ => Reason::Failed,
    }
}

/// The reason an error stands for: that of the first cause that knows.
fn reason(error: &anyhow::Error) -> Reason {
    let known = error.chain().find_map(|cause| {
        let failure = cause.downcast_ref::<Failure>().map(|failure| failure.reason);
        failure.or_else(|| kind(cause).map(reason_of_kind))
    });
    known.unwrap_or(Reason::Failed)
}

/// The kind of a cause, where it comes from one of the storage crates.
fn kind(cause: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let disk = cause.downcast_ref::<vmwright_disk::Error>().map(vmwright_disk::Error::kind);
    disk.or_else(|| cause.downcast_ref::<vmwright_vfs::Error>().map(vmwright_vfs::Error::kind))
        .or_else(|| cause.downcast_ref::<vmwright_image::Error>().map(vmwright_image::Error::kind))
        .or_else(|| cause.downcast_ref::<vmwright_guest::Error>().map(vmwright_guest::Error::kind))
        .or_else(|| cause.downcast_ref::<vmwright_server::Error>().map(vmwright_server::Error::kind))
        .or_else(|| cause.downcast_ref::<vmwright_runtime::Error>().map(vmwright_runtime::Error::kind))
}

/// Writes an error to standard error and answers the exit code it stands for.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let error_style = style("31;1");
    let plain = style("0");
    if is_reader_gone(error) {
        return ExitCode::from(READER_GONE);
    }
    eprintln!("{error_style}error{plain}: {}", escape(&text(error)));
    if let Some(advice) = advice(error) {
        eprintln!("{advice}");
    }
    ExitCode::from(reason(error).code())
}

/// The exit code where whoever read the answer has read enough: that of a program which SIGPIPE ended.
const READER_GONE: u8 = 128 + 13;

/// Whether an error only says that nobody reads standard output any more, as in `vmwright … | head`.
fn is_reader_gone(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
            == Some(std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(broken) && is_hung_up(&std::io::stdout())
}

/// Whether a descriptor is a pipe that nobody reads.
fn is_hung_up(descriptor: &impl std::os::fd::AsFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::empty())];
    let answered = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0);
    answered && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// An error and its causes in one line. A cause that begins with what it is told of says that itself.
fn text(error: &anyhow::Error) -> String {
    let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    let told: Vec<_> = causes
        .iter()
        .enumerate()
        .filter(|(index, cause)| !causes.get(index + 1).is_some_and(|next| next.starts_with(cause.as_str())))
        .map(|(_, cause)| cause.as_str())
        .collect();
    told.join(": ")
}

/// What to do next, where the error itself cannot know which arguments there are.
fn advice(error: &anyhow::Error) -> Option<&'static str> {
    let silent = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<vmwright_runtime::Error>().is_some_and(|error| error.guest_silence().is_some())
    };
    error.chain().any(silent).then_some(
        "a slow guest needs a longer --timeout, one that ran out of memory more --memory; a machine that stays \
         keeps its whole console: `vmwright vm logs NAME`",
    )
}

/// Like [`report`], for commands whose exit code otherwise belongs to the guest.
pub(crate) fn report_around_guest(error: &anyhow::Error) -> ExitCode {
    if is_reader_gone(error) {
        return ExitCode::from(READER_GONE);
    }
    report(error);
    ExitCode::from(OWN_FAILURE)
}

/// The escape sequence of a style on a terminal that wants colours, and nothing elsewhere.
fn style(code: &str) -> String {
    use std::io::IsTerminal;
    let wanted = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if wanted { format!("\x1b[{code}m") } else { String::new() }
}

/// Makes control characters visible, so that a guest's bytes cannot drive the terminal.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => escaped.push(character),
            _ if character.is_control() => escaped.extend(character.escape_default()),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_cause_decides_the_exit_code() {
        let error = anyhow::Error::new(vmwright_disk::Error::read_only("the base"));
        let error = Err::<(), _>(error).context("cannot write").unwrap_err();
        assert_eq!(reason(&error), Reason::Refused);
        assert_eq!(reason(&Failure::usage("?")), Reason::Usage);
        assert_eq!(reason(&anyhow::anyhow!("?")), Reason::Failed);
    }

    #[test]
    fn what_a_cause_says_itself_is_said_once() {
        let refused = || anyhow::anyhow!("cannot stop a: it is busy");
        assert_eq!(text(&refused().context("cannot stop a")), "cannot stop a: it is busy");
        assert_eq!(text(&refused().context("cannot stop")), "cannot stop a: it is busy");
        assert_eq!(text(&refused().context("no")), "no: cannot stop a: it is busy");
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_told_from_one_that_somebody_does() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!is_hung_up(&writer));
        drop(reader);
        assert!(is_hung_up(&writer));
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(escape("a\x1b[2Jb\u{9b}\n"), "a\\u{1b}[2Jb\\u{9b}\n");
    }
}
