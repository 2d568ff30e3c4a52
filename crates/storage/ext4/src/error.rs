use std::fmt;

pub use vmwright_disk::ErrorKind;

use crate::mmp::Holder;

/// The result of an operation on an ext2, ext3 or ext4 filesystem.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from an ext2, ext3 or ext4 filesystem.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} the filesystem's disk")]
    Disk { action: &'static str, source: vmwright_disk::Error },
    #[error("{place}: {problem}")]
    Corrupt { place: Place, problem: &'static str },
    #[error("{place}: {what} is {actual:#x}, expected {expected:#x}")]
    Mismatch { place: Place, what: &'static str, expected: u64, actual: u64 },
    #[error("{detail}")]
    Plain { kind: ErrorKind, detail: &'static str },
    #[error("the filesystem cannot have less than {minimum} bytes")]
    TooSmall { minimum: u64 },
    #[error("a new volume's {key}: {problem}")]
    Option { key: &'static str, problem: &'static str },
    #[error("a new volume's {key} cannot be {value:?}: it must be {allowed}")]
    Value { key: &'static str, value: Box<str>, allowed: &'static str },
    #[error("the filesystem uses {what} that {cannot}: {names}")]
    Features { what: &'static str, cannot: &'static str, names: FeatureNames },
    #[error(
        "the filesystem is in use: {0} (multiple mount protection); where that is long gone, \
         clear it with `tune2fs -f -E clear_mmp` or open the volume ignoring it"
    )]
    Held(Holder),
    #[error("the filesystem's journal is on another disk, which is needed: the one with the UUID {0}")]
    JournalElsewhere(uuid::Uuid),
}

/// Where in a filesystem something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The superblock.
    Superblock,
    /// A block group.
    Group(u32),
    /// A block of the filesystem.
    Block(u64),
    /// An inode.
    Inode(u64),
    /// A block of the journal's content by its logical number.
    Journal(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => write!(f, "superblock"),
            Self::Group(group) => write!(f, "block group {group}"),
            Self::Block(block) => write!(f, "block {block}"),
            Self::Inode(inode) => write!(f, "inode {inode}"),
            Self::Journal(block) => write!(f, "journal block {block}"),
        }
    }
}

/// The feature bits that stand in the way, by the names mke2fs uses or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeatureNames {
    /// Names of known bits.
    pub(crate) known: Vec<&'static str>,
    /// Bits that have no name here.
    pub(crate) unknown: u32,
}

impl fmt::Display for FeatureNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for name in &self.known {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        if self.unknown != 0 {
            write!(f, "{separator}unknown bits {:#x}", self.unknown)?;
        }
        Ok(())
    }
}

impl Error {
    /// States that bytes contradict the format.
    pub(crate) fn corrupt(place: Place, problem: &'static str) -> Self {
        Self(Box::new(Reason::Corrupt { place, problem }))
    }

    /// States that a value, such as a checksum, is not what it must be; `what` is a noun.
    pub(crate) fn mismatch(place: Place, what: &'static str, expected: u64, actual: u64) -> Self {
        Self(Box::new(Reason::Mismatch { place, what, expected, actual }))
    }

    /// States that a volume uses something that is not handled; `detail` names it.
    pub(crate) fn unsupported(detail: &'static str) -> Self {
        Self::plain(ErrorKind::Unsupported, detail)
    }

    /// States a failure that is not damage, such as "no space" or "not a directory".
    pub(crate) fn plain(kind: ErrorKind, detail: &'static str) -> Self {
        Self(Box::new(Reason::Plain { kind, detail }))
    }

    /// States why an option of a new volume cannot be as it is.
    pub(crate) fn bad_option(key: &'static str, problem: &'static str) -> Self {
        Self(Box::new(Reason::Option { key, problem }))
    }

    /// States what a value of an option of a new volume must be.
    pub(crate) fn bad_value(key: &'static str, value: &str, allowed: &'static str) -> Self {
        Self(Box::new(Reason::Value { key, value: value.into(), allowed }))
    }

    /// States which features stand in the way of `cannot`, such as "cannot be read here".
    pub(crate) fn features(what: &'static str, cannot: &'static str, names: FeatureNames) -> Self {
        Self(Box::new(Reason::Features { what, cannot, names }))
    }

    /// States that the content of a filesystem needs at least so many bytes.
    pub(crate) fn too_small(minimum: u64) -> Self {
        Self(Box::new(Reason::TooSmall { minimum }))
    }

    /// States that someone else has the volume open.
    pub(crate) fn held(holder: Holder) -> Self {
        Self(Box::new(Reason::Held(holder)))
    }

    /// States that there is no going on without the journal's own disk.
    pub(crate) fn journal_elsewhere(uuid: [u8; 16]) -> Self {
        Self(Box::new(Reason::JournalElsewhere(uuid::Uuid::from_bytes(uuid))))
    }

    /// Wraps a failure of the disk beneath; `action` is a verb such as "read".
    pub(crate) fn disk(action: &'static str, source: vmwright_disk::Error) -> Self {
        Self(Box::new(Reason::Disk { action, source }))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Disk { source, .. } => source.kind(),
            Reason::Corrupt { .. } | Reason::Mismatch { .. } => ErrorKind::Corrupt,
            Reason::Plain { kind, .. } => *kind,
            Reason::Features { .. } => ErrorKind::Unsupported,
            Reason::TooSmall { .. } => ErrorKind::NoSpace,
            Reason::Option { .. } | Reason::Value { .. } => ErrorKind::InvalidInput,
            Reason::Held(_) => ErrorKind::InUse,
            Reason::JournalElsewhere(_) => ErrorKind::Unsupported,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl From<Error> for vmwright_vfs::Error {
    fn from(source: Error) -> Self {
        Self::driver(source.kind(), source)
    }
}
