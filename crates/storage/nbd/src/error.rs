use std::io;

/// The result of an operation on a connection.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes between the two ends no longer pass: the client hung up, was silent for too long, or TLS failed.
    Connection,
    /// The client broke the protocol, so that nothing more it sends can be understood.
    Protocol,
    /// The client asked for what it is not given, in a way that allows no answer but to hang up.
    Refused,
    /// The caller asked for something that makes no sense.
    InvalidInput,
}

/// An error that ends a connection, or that a set of exports has.
#[derive(Debug)]
pub struct Error(Reason);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("cannot {action}")]
    Connection { action: &'static str, source: io::Error },
    #[error("{what}: expected {expected:#x}, found {actual:#x}")]
    Protocol { what: &'static str, expected: u64, actual: u64 },
    #[error("{what} of {actual} bytes is more than the {most} that are allowed")]
    TooLong { what: &'static str, most: u64, actual: u64 },
    #[error("the client sent {most} options without choosing an export")]
    TooManyOptions { most: u32 },
    #[error("there is no export named {name:?}")]
    UnknownExport { name: String },
    #[error("the client asked for an export before it started TLS, which is required")]
    TlsRequired,
    #[error("export {name:?}: {what}")]
    Export { name: String, what: &'static str },
}

impl Error {
    pub(crate) fn connection(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self(Reason::Connection { action, source })
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self.0 {
            Reason::Connection { .. } => ErrorKind::Connection,
            Reason::Protocol { .. } | Reason::TooLong { .. } | Reason::TooManyOptions { .. } => {
                ErrorKind::Protocol
            }
            Reason::UnknownExport { .. } | Reason::TlsRequired => ErrorKind::Refused,
            Reason::Export { .. } => ErrorKind::InvalidInput,
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(reason)
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
