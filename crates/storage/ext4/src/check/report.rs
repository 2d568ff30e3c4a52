//! What a check has found.

use std::fmt;

use super::problem::Problem;

/// Where something was found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// The superblock.
    Superblock,
    /// A block group, by its number.
    Group(u32),
    /// A block of the volume, by its number.
    Block(u64),
    /// An inode, by its number.
    Inode(u32),
    /// A block of the content of an inode.
    Content {
        /// The inode's number.
        inode: u32,
        /// The block's logical number within the content.
        block: u64,
    },
    /// An entry of a directory.
    Entry {
        /// The directory's inode.
        directory: u32,
        /// The entry's name, byte by byte.
        name: Vec<u8>,
    },
    /// What a quota file says of somebody.
    Quota {
        /// The file's inode.
        inode: u32,
        /// The user, group or project.
        id: u32,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => write!(f, "superblock"),
            Self::Group(group) => write!(f, "block group {group}"),
            Self::Block(block) => write!(f, "block {block}"),
            Self::Inode(inode) => write!(f, "inode {inode}"),
            Self::Content { inode, block } => write!(f, "inode {inode}, block {block} of its content"),
            Self::Quota { inode, id } => write!(f, "quota file {inode}, identity {id}"),
            Self::Entry { directory, name } => {
                write!(f, "directory {directory}, entry \"{}\"", name.escape_ascii())
            }
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: Problem,
    /// Where.
    pub place: Place,
    /// Which part of it, where there are several: the name of a field.
    pub field: &'static str,
    /// What should be there, where that is a number.
    pub expected: Option<u64>,
    /// What is there, where that is a number.
    pub found: Option<u64>,
    /// Whether it was put right.
    pub repaired: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.kind)?;
        if !self.field.is_empty() {
            write!(f, " ({})", self.field)?;
        }
        match (self.expected, self.found) {
            (Some(expected), Some(found)) => write!(f, ": {found}, expected {expected}"),
            (None, Some(found)) => write!(f, ": {found}"),
            (Some(expected), None) => write!(f, ": expected {expected}"),
            (None, None) => Ok(()),
        }
    }
}

/// What is in a volume, as far as a check has counted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Inodes in use, reserved ones among them.
    pub inodes_used: u64,
    /// Inodes that there are.
    pub inodes: u64,
    /// Blocks in use.
    pub blocks_used: u64,
    /// Blocks that there are.
    pub blocks: u64,
    /// Directories.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Files and directories whose content is not in one piece.
    pub fragmented: u64,
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, in the order in which it was found; only the first ones where there are many.
    pub findings: Vec<Finding>,
    /// How many things are wrong, those that `findings` has no room for among them.
    pub total: u64,
    /// How many of them were put right.
    pub repaired: u64,
    /// Whether nothing is damaged, or nothing any more. Notices ([`Problem::is_damage`]) do not count.
    pub clean: bool,
    /// Whether the journal held changes, which were followed before anything was checked.
    pub journal_replayed: bool,
    /// What was counted.
    pub stats: Stats,
}

/// Gathers findings, of which it keeps a bounded number.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) kept: Vec<Finding>,
    pub(crate) total: u64,
    /// How many of all are damage.
    pub(crate) damage: u64,
    pub(crate) limit: usize,
}

impl Findings {
    /// States that something is wrong.
    pub(crate) fn add(&mut self, kind: Problem, place: Place) {
        self.push(kind, place, "", None, None);
    }

    /// States that a field is wrong whose value says nothing.
    pub(crate) fn add_field(&mut self, kind: Problem, place: Place, field: &'static str) {
        self.push(kind, place, field, None, None);
    }

    /// States that a field is wrong.
    pub(crate) fn field(&mut self, kind: Problem, place: Place, field: &'static str, found: u64) {
        self.push(kind, place, field, None, Some(found));
    }

    /// States that a number is not what it must be.
    pub(crate) fn mismatch(
        &mut self,
        kind: Problem,
        place: Place,
        field: &'static str,
        expected: u64,
        found: u64,
    ) {
        self.push(kind, place, field, Some(expected), Some(found));
    }

    fn push(
        &mut self,
        kind: Problem,
        place: Place,
        field: &'static str,
        expected: Option<u64>,
        found: Option<u64>,
    ) {
        self.total += 1;
        self.damage += u64::from(kind.is_damage());
        if self.kept.len() < self.limit {
            self.kept.push(Finding { kind, place, field, expected, found, repaired: false });
        }
    }
}
