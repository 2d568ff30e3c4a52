use std::io;
use std::path::{Path, PathBuf};

pub use vmwright_disk::ErrorKind;

/// The result of an operation on a guest.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from opening, inspecting or changing a guest.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} {}", path.display())]
    Image { action: &'static str, path: PathBuf, kind: ErrorKind, source: Cause },
    #[error("cannot {action} {device}")]
    Volume { action: &'static str, device: String, kind: ErrorKind, source: Cause },
    #[error("{device}")]
    On { device: String, kind: ErrorKind, source: Cause },
    #[error("{0}")]
    Filesystem(vmwright_vfs::Error),
    #[error("{0}")]
    Disk(vmwright_disk::Error),
    #[error("cannot {action} {}", path.display())]
    Host { action: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no filesystem here that can be read; found: {found}")]
    NoFilesystem { found: String },
    #[error("there is more than one {what} here: choose one of {}", devices.join(", "))]
    SeveralRoots { what: &'static str, devices: Vec<String> },
    #[error("{name} is none of the filesystems here: {}", devices.join(", "))]
    NoSuchVolume { name: String, devices: Vec<String> },
    #[error("{device} holds {found}, which cannot be read")]
    NotReadable { device: String, found: String },
    #[error("{subject}: {detail}")]
    Plain { kind: ErrorKind, subject: String, detail: &'static str },
    #[error("the regular expression is not valid")]
    Expression { source: Cause },
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// States a failure that has no cause beneath it; `subject` is what it is about.
    pub(crate) fn plain(kind: ErrorKind, subject: impl Into<String>, detail: &'static str) -> Self {
        Self(Box::new(Reason::Plain { kind, subject: subject.into(), detail }))
    }

    pub(crate) fn guest_path(kind: ErrorKind, path: &[u8], detail: &'static str) -> Self {
        Self::plain(kind, String::from_utf8_lossy(path), detail)
    }

    pub(crate) fn image(action: &'static str, path: &Path) -> impl FnOnce(vmwright_image::Error) -> Self {
        move |source| {
            let (path, kind, source) = (path.to_owned(), source.kind(), source.into());
            Self(Box::new(Reason::Image { action, path, kind, source }))
        }
    }

    pub(crate) fn volume(
        action: &'static str,
        device: &str,
        kind: ErrorKind,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let (device, source) = (device.to_owned(), source.into());
        Self(Box::new(Reason::Volume { action, device, kind, source }))
    }

    /// An error about a volume, where the caller says what was attempted.
    pub(crate) fn on(
        device: &str,
        kind: ErrorKind,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self(Box::new(Reason::On { device: device.to_owned(), kind, source: source.into() }))
    }

    pub(crate) fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self(Box::new(Reason::Host { action, path: path.to_owned(), source }))
    }

    pub(crate) fn no_filesystem(found: String) -> Self {
        Self(Box::new(Reason::NoFilesystem { found }))
    }

    pub(crate) fn several_roots(what: &'static str, devices: Vec<String>) -> Self {
        Self(Box::new(Reason::SeveralRoots { what, devices }))
    }

    pub(crate) fn no_such_volume(name: &str, devices: Vec<String>) -> Self {
        Self(Box::new(Reason::NoSuchVolume { name: name.to_owned(), devices }))
    }

    pub(crate) fn not_readable(device: &str, found: &str) -> Self {
        Self(Box::new(Reason::NotReadable { device: device.to_owned(), found: found.to_owned() }))
    }

    pub(crate) fn expression(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(Reason::Expression { source: source.into() }))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Image { kind, .. }
            | Reason::Volume { kind, .. }
            | Reason::On { kind, .. }
            | Reason::Plain { kind, .. } => *kind,
            Reason::Filesystem(source) => source.kind(),
            Reason::Disk(source) => source.kind(),
            Reason::Host { source, .. } => host_kind(source),
            Reason::NoFilesystem { .. } | Reason::NotReadable { .. } => ErrorKind::Unsupported,
            Reason::NoSuchVolume { .. } => ErrorKind::NotFound,
            Reason::SeveralRoots { .. } | Reason::Expression { .. } => ErrorKind::InvalidInput,
        }
    }
}

fn host_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    }
}

impl From<vmwright_vfs::Error> for Error {
    fn from(source: vmwright_vfs::Error) -> Self {
        Self(Box::new(Reason::Filesystem(source)))
    }
}

impl From<vmwright_disk::Error> for Error {
    fn from(source: vmwright_disk::Error) -> Self {
        Self(Box::new(Reason::Disk(source)))
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
            Reason::Filesystem(inner) => inner.source(),
            Reason::Disk(inner) => inner.source(),
            reason => reason.source(),
        }
    }
}
