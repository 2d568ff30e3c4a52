pub use vmwright_disk::ErrorKind;

/// The result of an operation on a filesystem.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from a filesystem or from resolving a path in it.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{detail}")]
    Plain { kind: ErrorKind, detail: &'static str },
    #[error("{path}: {inner}")]
    At { path: String, inner: Error },
    #[error("{inner}")]
    Driver { kind: ErrorKind, inner: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    /// States a failure that has no cause beneath it, such as "the directory is not empty".
    pub fn new(kind: ErrorKind, detail: &'static str) -> Self {
        Self(Box::new(Reason::Plain { kind, detail }))
    }

    /// Wraps the error of a filesystem driver or of the disk beneath it.
    pub fn driver(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(Reason::Driver { kind, inner: Box::new(source) }))
    }

    /// Says at which guest path the failure was; bytes that are not UTF-8 are shown as U+FFFD.
    pub fn at(self, path: &[u8]) -> Self {
        Self(Box::new(Reason::At { path: String::from_utf8_lossy(path).into_owned(), inner: self }))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::At { inner, .. } => inner.kind(),
            Reason::Plain { kind, .. } | Reason::Driver { kind, .. } => *kind,
        }
    }
}

impl From<vmwright_disk::Error> for Error {
    fn from(source: vmwright_disk::Error) -> Self {
        Self::driver(source.kind(), source)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            // The wrapped error speaks for this one, so what is beneath it comes next.
            Reason::At { inner, .. } => inner.source(),
            Reason::Driver { inner, .. } => inner.source(),
            reason => reason.source(),
        }
    }
}
