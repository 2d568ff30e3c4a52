use std::io;
use std::path::{Path, PathBuf};

pub use vmwright_vfs::ErrorKind;

/// The result of filling a filesystem.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from reading a source or from writing it into a filesystem.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} {}", path.display())]
    Host { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} cannot be written into the filesystem: {source}", shown(path))]
    Filesystem { path: Vec<u8>, source: vmwright_vfs::Error },
    #[error("the archive cannot be read")]
    Read { source: io::Error },
    #[error("the archive is damaged at byte {at}: {problem}")]
    Damaged { at: u64, problem: &'static str },
    #[error("the archive has {what} at byte {at}, which is not supported")]
    Unsupported { at: u64, what: String },
    #[error("{}: {problem}", shown(path))]
    Entry { kind: ErrorKind, path: Vec<u8>, problem: &'static str },
    #[error("{source}")]
    Beneath { kind: ErrorKind, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{0}")]
    Plain(&'static str),
}

fn shown(path: &[u8]) -> String {
    match path {
        b"" => "the root directory".to_owned(),
        path => format!("/{}", String::from_utf8_lossy(path)),
    }
}

impl Error {
    pub(crate) fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self(Box::new(Reason::Host { action, path: path.to_owned(), source }))
    }

    pub(crate) fn filesystem(path: &[u8]) -> impl FnOnce(vmwright_vfs::Error) -> Self {
        move |source| Self(Box::new(Reason::Filesystem { path: path.to_vec(), source }))
    }

    pub(crate) fn read(source: io::Error) -> Self {
        Self(Box::new(Reason::Read { source }))
    }

    pub(crate) fn damaged(at: u64, problem: &'static str) -> Self {
        Self(Box::new(Reason::Damaged { at, problem }))
    }

    pub(crate) fn unsupported(at: u64, what: impl Into<String>) -> Self {
        Self(Box::new(Reason::Unsupported { at, what: what.into() }))
    }

    pub(crate) fn entry(kind: ErrorKind, path: &[u8], problem: &'static str) -> Self {
        Self(Box::new(Reason::Entry { kind, path: path.to_vec(), problem }))
    }

    pub(crate) fn disk(source: vmwright_disk::Error) -> Self {
        Self(Box::new(Reason::Beneath { kind: source.kind(), source: source.into() }))
    }

    pub(crate) fn volume(source: vmwright_volume::Error) -> Self {
        Self(Box::new(Reason::Beneath { kind: source.kind(), source: source.into() }))
    }

    pub(crate) fn ext4(source: vmwright_ext4::Error) -> Self {
        Self(Box::new(Reason::Beneath { kind: source.kind(), source: source.into() }))
    }

    pub(crate) fn plain(problem: &'static str) -> Self {
        Self(Box::new(Reason::Plain(problem)))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Filesystem { source, .. } => source.kind(),
            Reason::Host { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Reason::Read { source } if source.kind() == io::ErrorKind::InvalidData => ErrorKind::Corrupt,
            Reason::Read { source } if source.kind() == io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
            Reason::Host { .. } | Reason::Read { .. } => ErrorKind::Io,
            Reason::Damaged { .. } => ErrorKind::Corrupt,
            Reason::Unsupported { .. } => ErrorKind::Unsupported,
            Reason::Entry { kind, .. } | Reason::Beneath { kind, .. } => *kind,
            Reason::Plain(_) => ErrorKind::InvalidInput,
        }
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
            // The wrapped error speaks in the message already.
            Reason::Filesystem { source, .. } => source.source(),
            Reason::Beneath { source, .. } => source.source(),
            reason => reason.source(),
        }
    }
}
