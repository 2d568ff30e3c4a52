//! What this crate needs of the host's files: one trait, so that crashes can be simulated beneath it.

mod holder;
mod lock;
mod real;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use lock::{Conflict, LockMode};
pub(crate) use real::RealHost;

/// Facts about an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) len: u64,
    pub(crate) links: u64,
    /// The user the file belongs to.
    pub(crate) owner: u32,
    pub(crate) kind: FileKind,
}

/// What a file is, as far as disks care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    Block,
    Other,
}

/// A range of a file that is either a hole or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) hole: bool,
    /// Where the range ends; past the end of the file for "up to the end".
    pub(crate) end: u64,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    Read,
    Write,
    /// For writing; must not exist yet.
    Create,
    /// The same, and nobody else may read it.
    CreatePrivate,
}

/// The names of files, and making them durable.
///
/// A file's own content becomes durable by [`Handle::sync`], a change of names only by
/// [`Host::sync_dir`] on the folder.
pub(crate) trait Host: Send + Sync + Debug {
    /// The absolute path without symbolic links.
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf>;

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn Handle>>;

    /// The user this process acts as.
    fn user(&self) -> u32;

    /// Device and inode that a name stands for now.
    fn identity(&self, path: &Path) -> io::Result<(u64, u64)>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn unlink(&self, path: &Path) -> io::Result<()>;

    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether names can be made in a folder by this process.
    fn can_create_in(&self, dir: &Path) -> bool;

    /// The names in a folder, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// A file without a name, for reading and writing, that is gone once it is closed.
    fn scratch(&self, dir: &Path) -> io::Result<Arc<dyn Handle>>;
}

/// An open file.
pub(crate) trait Handle: Send + Sync + Debug {
    /// The file itself, where there is one that the host knows.
    fn as_file(&self) -> Option<&std::fs::File> {
        None
    }

    fn stat(&self) -> io::Result<Stat>;

    /// Fills `buf`, or fails with `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a range within the file read as zeros, giving its space back where that is possible.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives the space of a range back, or does nothing where that is not possible.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Allocates the space of a range without changing a byte or the length; `Unsupported` where the
    /// filesystem cannot.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;

    /// How many bytes this process may still allocate on the filesystem of the file.
    fn free_space(&self) -> io::Result<u64>;

    /// Whether overwriting bytes that are already allocated may need new space.
    fn copies_on_write(&self) -> bool;

    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes content durable; with `metadata`, everything else about the file too.
    fn sync(&self, metadata: bool) -> io::Result<()>;

    /// Whether there is a hole at `offset`, and how far it or the data reaches.
    fn region_at(&self, offset: u64) -> io::Result<Region>;

    /// Locks the file for as long as it is open; answers who prevents it.
    fn lock(&self, mode: LockMode) -> io::Result<Result<(), Conflict>>;
}
