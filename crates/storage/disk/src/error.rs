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
    #[error("{} is damaged at offset {offset}: {what}", path.display())]
    Damaged { path: PathBuf, offset: u64, what: &'static str },
    #[error(
        "{} was changed by something else after a change of it was interrupted: {} {what}; nothing was done now. \
         `vmwright disk recover {} --apply` finishes the interrupted change all the same, `--discard` gives it up",
        path.display(), redo.display(), path.display()
    )]
    Conflict { path: PathBuf, redo: PathBuf, what: &'static str },
    #[error(
        "{} was changed by something else after a change of it was interrupted: the sector at offset {offset} is \
         neither the old nor the new one in {}; nothing was done now. `vmwright disk recover {} --apply` finishes \
         the interrupted change all the same, `--discard` gives it up",
        path.display(), redo.display(), path.display()
    )]
    ConflictAt { path: PathBuf, redo: PathBuf, offset: u64 },
    #[error(
        "{} is {reason}, so a redo file cannot be kept beside it: name a lasting folder for redo files \
         (`--redo-dir`), or change it in place (ordered mode)",
        path.display()
    )]
    NeedsRedoDir { path: PathBuf, reason: &'static str },
    #[error(
        "there is no room to change {}: {needed} bytes are needed on its filesystem and {free} are free; nothing \
         was changed",
        path.display()
    )]
    NoRoom { path: PathBuf, needed: u64, free: u64 },
    #[error(
        "the change of {} is complete in {} and shows through it, but could not be put in place{}; \
         opening it for writing or `vmwright disk recover {}` tries again",
        path.display(), redo.display(), Free(*to_free), path.display()
    )]
    Unfinished { path: PathBuf, redo: PathBuf, to_free: Option<u64>, kind: ErrorKind, source: Box<Error> },
    #[error(
        "the change of {} may or may not have been made: {} could neither be made durable nor taken back; the \
         next attempt to open it for writing decides",
        path.display(), redo.display()
    )]
    Undecided { path: PathBuf, redo: PathBuf, source: io::Error },
    #[error("the change of {} was made, but its redo file {} could not be removed", path.display(), redo.display())]
    NotRetired { path: PathBuf, redo: PathBuf, source: io::Error },
    #[error(
        "{} of user {owner} describes a change of {}, which belongs to somebody else: it was not applied; \
         `vmwright disk recover {} --discard` removes it",
        redo.display(), path.display(), path.display()
    )]
    ForeignRedo { path: PathBuf, redo: PathBuf, owner: u32 },
    #[error(
        "{} is no longer the file that was opened: something else has removed or replaced it since, and nothing \
         was changed",
        path.display()
    )]
    Replaced { path: PathBuf },
    #[error("{} is {what}", path.display())]
    Misuse { path: PathBuf, what: &'static str },
    #[error("{inner}")]
    Layer { kind: ErrorKind, inner: Box<dyn std::error::Error + Send + Sync> },
}

/// The part of a sentence that says how much to free.
struct Free(Option<u64>);

impl std::fmt::Display for Free {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, " for want of space: free {bytes} bytes on its filesystem"),
            None => Ok(()),
        }
    }
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

    pub(crate) fn damaged(path: &Path, offset: u64, what: &'static str) -> Self {
        Self(Box::new(Reason::Damaged { path: path.to_owned(), offset, what }))
    }

    pub(crate) fn conflict(path: &Path, redo: &Path, what: &'static str) -> Self {
        Self(Box::new(Reason::Conflict { path: path.to_owned(), redo: redo.to_owned(), what }))
    }

    pub(crate) fn conflict_at(path: &Path, redo: &Path, offset: u64) -> Self {
        Self(Box::new(Reason::ConflictAt { path: path.to_owned(), redo: redo.to_owned(), offset }))
    }

    pub(crate) fn needs_redo_dir(path: &Path, reason: &'static str) -> Self {
        Self(Box::new(Reason::NeedsRedoDir { path: path.to_owned(), reason }))
    }

    pub(crate) fn no_room(path: &Path, needed: u64, free: u64) -> Self {
        Self(Box::new(Reason::NoRoom { path: path.to_owned(), needed, free }))
    }

    pub(crate) fn unfinished(path: &Path, redo: &Path, to_free: Option<u64>, cause: Self) -> Self {
        let (path, redo, kind) = (path.to_owned(), redo.to_owned(), cause.kind());
        Self(Box::new(Reason::Unfinished { path, redo, to_free, kind, source: Box::new(cause) }))
    }

    pub(crate) fn undecided(path: &Path, redo: &Path, source: io::Error) -> Self {
        Self(Box::new(Reason::Undecided { path: path.to_owned(), redo: redo.to_owned(), source }))
    }

    pub(crate) fn not_retired(path: &Path, redo: &Path, source: io::Error) -> Self {
        Self(Box::new(Reason::NotRetired { path: path.to_owned(), redo: redo.to_owned(), source }))
    }

    pub(crate) fn foreign_redo(path: &Path, redo: &Path, owner: u32) -> Self {
        Self(Box::new(Reason::ForeignRedo { path: path.to_owned(), redo: redo.to_owned(), owner }))
    }

    pub(crate) fn replaced(path: &Path) -> Self {
        Self(Box::new(Reason::Replaced { path: path.to_owned() }))
    }

    pub(crate) fn misuse(path: &Path, what: &'static str) -> Self {
        Self(Box::new(Reason::Misuse { path: path.to_owned(), what }))
    }

    /// How many bytes must be freed on the host before an interrupted change can be put in place.
    pub fn bytes_to_free(&self) -> Option<u64> {
        match &*self.0 {
            Reason::Unfinished { to_free, .. } => *to_free,
            Reason::NoRoom { needed, free, .. } => Some(needed.saturating_sub(*free)),
            _ => None,
        }
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
            Reason::NeedsRedoDir { .. } | Reason::ForeignRedo { .. } => ErrorKind::Unsupported,
            Reason::Shortened { .. } => ErrorKind::Io,
            Reason::Damaged { .. } => ErrorKind::Corrupt,
            Reason::Conflict { .. } | Reason::ConflictAt { .. } => ErrorKind::InUse,
            Reason::NoRoom { .. } => ErrorKind::NoSpace,
            Reason::Unfinished { kind, .. } => *kind,
            Reason::Undecided { .. } | Reason::NotRetired { .. } => ErrorKind::Io,
            Reason::Misuse { .. } => ErrorKind::InvalidInput,
            Reason::InUse { .. } | Reason::Replaced { .. } => ErrorKind::InUse,
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
