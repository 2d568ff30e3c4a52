use std::io;
use std::path::{Path, PathBuf};

/// The result of an operation on a disk.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an error is; the same short list in every crate of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host could not read or write.
    Io,
    /// The bytes contradict their format.
    Corrupt,
    /// The bytes are well-formed but use something that is not handled.
    Unsupported,
    /// The named object does not exist.
    NotFound,
    /// The named object exists already.
    Exists,
    /// There is no room.
    NoSpace,
    /// The object can be read but not changed.
    ReadOnly,
    /// Somebody else is using the object.
    InUse,
    /// The caller asked for something that makes no sense.
    InvalidInput,
}

/// An error from a disk.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} {}", path.display())]
    Host { action: &'static str, path: PathBuf, source: io::Error },
    #[error("range of {len} bytes at offset {offset} does not lie within the disk of {disk_len} bytes")]
    OutOfRange { offset: u64, len: u64, disk_len: u64 },
    #[error("{what} is read-only")]
    ReadOnly { what: &'static str },
    #[error("{what} has a fixed size")]
    FixedSize { what: &'static str },
    #[error("{} is not a regular file or block device", path.display())]
    NotADisk { path: PathBuf },
    #[error(
        "cannot read {len} bytes at offset {offset} of {}: the file ends before that, so something has made it \
         shorter since it was opened",
        path.display()
    )]
    Shortened { path: PathBuf, offset: u64, len: u64 },
    #[error("{} is in use by {}", path.display(), holder.as_deref().unwrap_or("another process"))]
    InUse { path: PathBuf, holder: Option<String> },
    #[error("{inner}")]
    Layer { kind: ErrorKind, inner: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    /// Wraps the error of a layer above, such as an image format, that is itself a disk.
    pub fn layer(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(Reason::Layer { kind, inner: Box::new(source) }))
    }

    /// Wraps a failed call to the host; `action` is a verb such as "read".
    pub fn host(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self(Box::new(Reason::Host { action, path: path.to_owned(), source }))
    }

    /// States that something cannot be changed; `what` is a noun such as "the backing file".
    pub fn read_only(what: &'static str) -> Self {
        Self(Box::new(Reason::ReadOnly { what }))
    }

    /// States that the length of something cannot be changed.
    pub fn fixed_size(what: &'static str) -> Self {
        Self(Box::new(Reason::FixedSize { what }))
    }

    pub(crate) fn out_of_range(offset: u64, len: u64, disk_len: u64) -> Self {
        Self(Box::new(Reason::OutOfRange { offset, len, disk_len }))
    }

    pub(crate) fn not_a_disk(path: &Path) -> Self {
        Self(Box::new(Reason::NotADisk { path: path.to_owned() }))
    }

    pub(crate) fn shortened(path: &Path, offset: u64, len: u64) -> Self {
        Self(Box::new(Reason::Shortened { path: path.to_owned(), offset, len }))
    }

    pub(crate) fn in_use(path: &Path, holder: Option<String>) -> Self {
        Self(Box::new(Reason::InUse { path: path.to_owned(), holder }))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Host { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::AlreadyExists => ErrorKind::Exists,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
                _ => ErrorKind::Io,
            },
            Reason::OutOfRange { .. } => ErrorKind::InvalidInput,
            Reason::ReadOnly { .. } => ErrorKind::ReadOnly,
            Reason::FixedSize { .. } | Reason::NotADisk { .. } => ErrorKind::Unsupported,
            Reason::Shortened { .. } => ErrorKind::Io,
            Reason::InUse { .. } => ErrorKind::InUse,
            Reason::Layer { kind, .. } => *kind,
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
            // The wrapped error speaks for this one, so what is beneath it comes next.
            Reason::Layer { inner, .. } => inner.source(),
            reason => reason.source(),
        }
    }
}
