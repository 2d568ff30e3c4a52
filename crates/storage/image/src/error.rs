use vmwright_disk::ErrorKind;

use crate::Format;

/// The result of an operation on an image.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from an image format, a chain of images or a copy between images.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{0}")]
    Disk(vmwright_disk::Error),
    #[error("{0}")]
    Crypt(vmwright_crypt::Error),
    #[error("{what} at offset {at:#x} is damaged: expected {expected}, found {actual:#x}")]
    Corrupt { what: &'static str, at: u64, expected: &'static str, actual: u64 },
    #[error("{what} at offset {at:#x} cannot be decompressed")]
    Compressed { what: &'static str, at: u64, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cancelled")]
    Cancelled,
    #[error("the new image does not hold what was read: a re-read at the end differs")]
    NotVerified,
    #[error("cannot go on with the unfinished copy: {why}; remove {path:?} and its record to begin anew")]
    CannotResume { path: std::path::PathBuf, why: &'static str },
    #[error("the compressor could not be set up")]
    Compressor { source: std::io::Error },
    #[error("{feature} is not supported")]
    Unsupported { feature: &'static str },
    #[error("the image uses features that are not supported: {}", names.join(", "))]
    UnknownFeatures { names: Vec<String> },
    #[error("{what}: version {version} is not supported")]
    Version { what: &'static str, version: u64 },
    #[error("the image needs its backing file {name:?}, which was not opened")]
    BackingNotOpened { name: String },
    #[error("the image names the file {name:?}, which the caller does not allow to be opened")]
    Denied { name: String },
    #[error("the image names the backing file {name:?} without its format; guessing it is not allowed")]
    BackingFormatUnknown { name: String },
    #[error("backing file {name:?} leads back to an image that is already part of the chain")]
    ChainLoop { name: String },
    #[error("the chain of backing files is deeper than {limit}")]
    ChainTooDeep { limit: usize },
    #[error("{name:?} is not the name of an image format")]
    UnknownFormat { name: String },
    #[error("{what} was opened for reading only")]
    ReadOnly { what: &'static str },
    #[error("the image is marked as corrupt and can only be read until it is repaired")]
    MarkedCorrupt,
    #[error("the image cannot grow any further in its format")]
    Full,
    #[error("the image needs {end} bytes, which its device does not have")]
    DeviceFull { end: u64 },
    #[error("an earlier failure to make the image durable leaves unknown what the host has kept; reopen it")]
    FlushFailed,
    #[error("the {format} format has no option {key}")]
    NoOption { format: Format, key: String },
    #[error("{key} must be {allowed}, not {value:?}")]
    BadOption { key: &'static str, value: String, allowed: &'static str },
    #[error("the image is encrypted and needs its passphrase")]
    NeedsPassphrase,
    #[error("the passphrase does not open the image")]
    WrongPassphrase,
    #[error("the image is spread over several files, and {name:?} was not opened")]
    PartNotOpened { name: String },
    #[error("{name:?} is not the parent that the image was made from: it has changed since, or is another")]
    WrongParent { name: String },
    #[error("the image has no {what} {name:?}")]
    NoSuch { what: &'static str, name: String },
    #[error("the image has a {what} {name:?} already")]
    Exists { what: &'static str, name: String },
    #[error("the bitmap {name:?} is {state}")]
    BitmapState { name: String, state: &'static str },
    #[error("{what}: {why}")]
    Invalid { what: &'static str, why: &'static str },
}

impl Error {
    pub(crate) fn corrupt(what: &'static str, at: u64, expected: &'static str, actual: u64) -> Self {
        Reason::Corrupt { what, at, expected, actual }.into()
    }

    pub(crate) fn unsupported(feature: &'static str) -> Self {
        Reason::Unsupported { feature }.into()
    }

    pub(crate) fn invalid(what: &'static str, why: &'static str) -> Self {
        Reason::Invalid { what, why }.into()
    }

    /// Whether this is no failure: the caller asked for an end.
    pub fn is_cancelled(&self) -> bool {
        matches!(*self.0, Reason::Cancelled)
    }

    pub(crate) fn is_not_verified(&self) -> bool {
        matches!(*self.0, Reason::NotVerified)
    }

    /// What is behind it.
    pub(crate) fn reason(&self) -> &Reason {
        &self.0
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Disk(error) => error.kind(),
            Reason::Crypt(error) => error.kind(),
            Reason::WrongParent { .. } => ErrorKind::Corrupt,
            Reason::Corrupt { .. } | Reason::Compressed { .. } | Reason::ChainLoop { .. } => {
                ErrorKind::Corrupt
            }
            Reason::Unsupported { .. }
            | Reason::UnknownFeatures { .. }
            | Reason::Version { .. }
            | Reason::Denied { .. }
            | Reason::BackingFormatUnknown { .. }
            | Reason::ChainTooDeep { .. } => ErrorKind::Unsupported,
            Reason::BackingNotOpened { .. } | Reason::PartNotOpened { .. } | Reason::NoSuch { .. } => {
                ErrorKind::NotFound
            }
            Reason::Exists { .. } => ErrorKind::Exists,
            Reason::ReadOnly { .. } | Reason::MarkedCorrupt => ErrorKind::ReadOnly,
            Reason::Full | Reason::DeviceFull { .. } => ErrorKind::NoSpace,
            Reason::FlushFailed | Reason::Compressor { .. } | Reason::Cancelled | Reason::NotVerified => {
                ErrorKind::Io
            }
            Reason::CannotResume { .. }
            | Reason::BitmapState { .. }
            | Reason::UnknownFormat { .. }
            | Reason::NoOption { .. }
            | Reason::BadOption { .. }
            | Reason::NeedsPassphrase
            | Reason::WrongPassphrase
            | Reason::Invalid { .. } => ErrorKind::InvalidInput,
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(Box::new(reason))
    }
}

impl From<vmwright_disk::Error> for Error {
    fn from(error: vmwright_disk::Error) -> Self {
        Reason::Disk(error).into()
    }
}

impl From<vmwright_crypt::Error> for Error {
    fn from(error: vmwright_crypt::Error) -> Self {
        match error.is_wrong_passphrase() {
            true => Reason::WrongPassphrase.into(),
            false => Reason::Crypt(error).into(),
        }
    }
}

impl From<Error> for vmwright_disk::Error {
    fn from(error: Error) -> Self {
        match *error.0 {
            Reason::Disk(inner) => inner,
            reason => {
                let error = Error::from(reason);
                Self::layer(error.kind(), error)
            }
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
            Reason::Disk(inner) => inner.source(),
            Reason::Crypt(inner) => inner.source(),
            reason => reason.source(),
        }
    }
}
