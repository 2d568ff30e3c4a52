use std::io;
use std::path::{Path, PathBuf};

pub use vmwright_disk::ErrorKind;

/// The result of an operation of a server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from a server.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("cannot {action} {what}")]
    Host { action: &'static str, what: String, source: io::Error },
    #[error("cannot listen on {}: something that is not a socket has that name", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot listen on {}: another server listens there", path.display())]
    Listening { path: PathBuf },
    #[error("cannot listen on {}: the name of a socket has at most 107 bytes, and this one {len}", path.display())]
    LongName { path: PathBuf, len: usize },
    #[error(
        "cannot listen on {address}: anybody could connect from elsewhere, which must be allowed explicitly"
    )]
    Remote { address: std::net::SocketAddr },
    #[error("a server needs at least one place to listen on")]
    NoListener,
    #[error("the exports cannot be served: {0}")]
    Exports(vmwright_nbd::Error),
    #[error("cannot use {} for TLS: {what}", path.display())]
    Credentials { path: PathBuf, what: String },
    #[error("cannot make the changes of export {export:?} durable")]
    Flush { export: String, source: vmwright_disk::Error },
}

impl Error {
    pub(crate) fn host(action: &'static str, what: impl ToString, source: impl Into<io::Error>) -> Self {
        Reason::Host { action, what: what.to_string(), source: source.into() }.into()
    }

    pub(crate) fn credentials(path: &Path, what: impl ToString) -> Self {
        Reason::Credentials { path: path.to_owned(), what: what.to_string() }.into()
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Host { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::AddrInUse => ErrorKind::InUse,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
            Reason::NotASocket { .. } => ErrorKind::Exists,
            Reason::Listening { .. } => ErrorKind::InUse,
            Reason::LongName { .. } | Reason::NoListener | Reason::Exports(_) => ErrorKind::InvalidInput,
            Reason::Remote { .. } | Reason::Credentials { .. } => ErrorKind::InvalidInput,
            Reason::Flush { source, .. } => source.kind(),
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(Box::new(reason))
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
