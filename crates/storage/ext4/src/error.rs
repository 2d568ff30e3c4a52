use std::fmt;

pub use vmwright_disk::ErrorKind;

/// The result of an operation on an ext2, ext3 or ext4 filesystem.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from an ext2, ext3 or ext4 filesystem.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} the filesystem's disk")]
    Disk { action: &'static str, source: vmwright_disk::Error },
    #[error("{at}: {what}: expected {expected}, found {found}")]
    Corrupt { at: At, what: &'static str, expected: Detail, found: Detail },
    #[error("{at}: {detail}")]
    Damaged { at: At, detail: &'static str },
    #[error("{detail}")]
    Plain { kind: ErrorKind, detail: &'static str },
    #[error("the filesystem uses {what} that {cannot}: {names}")]
    Features { what: &'static str, cannot: &'static str, names: FeatureNames },
}

/// Where in a filesystem something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// The superblock.
    Superblock,
    /// The descriptor of a block group.
    Group(u32),
    /// A block of the filesystem, and a byte in it.
    Block { block: u64, offset: usize },
    /// An inode.
    Inode(u32),
    /// A block of an inode's content by its logical number, and a byte in it.
    InodeBlock { inode: u32, block: u64, offset: usize },
    /// A block of the journal's content by its logical number.
    Journal(u64),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => write!(f, "superblock"),
            Self::Group(group) => write!(f, "block group {group}"),
            Self::Block { block, offset } => write!(f, "block {block}, byte {offset}"),
            Self::Inode(inode) => write!(f, "inode {inode}"),
            Self::InodeBlock { inode, block, offset } => {
                write!(f, "inode {inode}, logical block {block}, byte {offset}")
            }
            Self::Journal(block) => write!(f, "journal block {block}"),
        }
    }
}

/// A value in an error's message: a number that prints as hexadecimal where it is a checksum or a magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// A quantity.
    Number(u64),
    /// Bits.
    Hex(u64),
    /// What a number alone does not tell.
    Text(&'static str),
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Hex(number) => write!(f, "{number:#x}"),
            Self::Text(text) => f.write_str(text),
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
    /// States that bytes contradict the format, with the value that was expected and the one found.
    pub(crate) fn corrupt(at: At, what: &'static str, expected: Detail, found: Detail) -> Self {
        Self(Box::new(Reason::Corrupt { at, what, expected, found }))
    }

    /// States that bytes contradict the format, where no single expected value exists.
    pub(crate) fn damaged(at: At, detail: &'static str) -> Self {
        Self(Box::new(Reason::Damaged { at, detail }))
    }

    /// States a failure that is not damage, such as "no space" or "not a directory".
    pub(crate) fn plain(kind: ErrorKind, detail: &'static str) -> Self {
        Self(Box::new(Reason::Plain { kind, detail }))
    }

    /// States which features stand in the way of `cannot`, such as "cannot be read here".
    pub(crate) fn features(what: &'static str, cannot: &'static str, names: FeatureNames) -> Self {
        Self(Box::new(Reason::Features { what, cannot, names }))
    }

    /// Wraps a failure of the disk beneath; `action` is a verb such as "read".
    pub(crate) fn disk(action: &'static str, source: vmwright_disk::Error) -> Self {
        Self(Box::new(Reason::Disk { action, source }))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Disk { source, .. } => source.kind(),
            Reason::Corrupt { .. } | Reason::Damaged { .. } => ErrorKind::Corrupt,
            Reason::Plain { kind, .. } => *kind,
            Reason::Features { .. } => ErrorKind::Unsupported,
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
