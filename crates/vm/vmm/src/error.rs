use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::admit::Refusals;
use crate::spec::SpecError;

/// The result of an operation on a virtual machine monitor.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host could not read, write, create or connect.
    Io,
    /// The monitor's program is not installed.
    Missing,
    /// The specification makes no sense.
    InvalidInput,
    /// The monitor cannot serve the request.
    Unsupported,
    /// A file or socket that would be taken belongs to somebody else.
    InUse,
    /// The monitor said something that its protocol does not allow.
    Protocol,
    /// The monitor answered a command with an error.
    Refused,
    /// The monitor or its guest did not answer in time.
    Timeout,
    /// The monitor ended, or never began.
    Exited,
}

/// An error from a virtual machine monitor.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("cannot {action} {}", path.display())]
    Host { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not installed: install the package {package}", program.display())]
    Missing { program: PathBuf, package: &'static str },
    #[error("{} is version {found}, at least {oldest} is needed", program.display())]
    TooOld { program: PathBuf, found: String, oldest: String },
    #[error("the socket path {} has {len} bytes, at most {max} fit", path.display())]
    SocketPath { path: PathBuf, len: usize, max: usize },
    #[error("{} {problem}", path.display())]
    Directory { path: PathBuf, problem: &'static str },
    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("{} {problem}", path.display())]
    Image { path: PathBuf, problem: &'static str },
    #[error("{program}: {problem}")]
    Protocol { program: &'static str, problem: &'static str, source: Option<serde_json::Error> },
    #[error("{command}: {class}: {description}")]
    Refused { command: String, class: String, description: String },
    #[error("{what} did not happen within {} ms", after.as_millis())]
    Timeout { what: &'static str, after: Duration },
    #[error("{program} ended during {during} with {status}{}", tail_for_display(stderr))]
    Exited { program: String, during: &'static str, status: String, stderr: String },
    #[error("the machine has no {what}")]
    Absent { what: &'static str },
    #[error("{0}")]
    Spec(SpecError),
    #[error("{0}")]
    Refusals(Refusals),
}

/// The monitor's own words, where it left any.
fn tail_for_display(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

impl Error {
    /// Wraps a failed call to the host; `action` is a verb such as "connect to".
    pub fn host(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self(Box::new(Reason::Host { action, path: path.to_owned(), source }))
    }

    /// States that something which the specification left out was asked for, such as "console".
    pub(crate) fn absent(what: &'static str) -> Self {
        Reason::Absent { what }.into()
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Host { .. } => ErrorKind::Io,
            Reason::Missing { .. } => ErrorKind::Missing,
            Reason::SocketPath { .. } | Reason::Directory { .. } | Reason::Spec(_) => ErrorKind::InvalidInput,
            Reason::InUse { .. } => ErrorKind::InUse,
            Reason::TooOld { .. } | Reason::Image { .. } | Reason::Absent { .. } | Reason::Refusals(_) => {
                ErrorKind::Unsupported
            }
            Reason::Protocol { .. } => ErrorKind::Protocol,
            Reason::Refused { .. } => ErrorKind::Refused,
            Reason::Timeout { .. } => ErrorKind::Timeout,
            Reason::Exited { .. } => ErrorKind::Exited,
        }
    }

    /// What the specification asked for in vain, if that is why this failed.
    pub fn refusals(&self) -> Option<&Refusals> {
        match &*self.0 {
            Reason::Refusals(refusals) => Some(refusals),
            _ => None,
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(Box::new(reason))
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Reason::Spec(error).into()
    }
}

impl From<Refusals> for Error {
    fn from(refusals: Refusals) -> Self {
        Reason::Refusals(refusals).into()
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
