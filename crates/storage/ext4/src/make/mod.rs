//! Making volumes, as mke2fs does.
//!
//! ```text
//! options ─ features ─ geometry ─ superblock ─┬─ heads, tables ─ files of the filesystem ─┬─ wipe, write
//!              -O        sizes       fields    │           space: what is taken             │
//!                                              └────────── nothing is written so far ───────┘
//! ```
//!
//! A volume is planned to its last byte before anything is written, so that what is refused changes nothing. Everything
//! stands where mke2fs would put it. The superblock is written last.

mod contents;
mod device;
mod features;
mod fields;
mod geometry;
mod keys;
mod maps;
mod options;
mod plan;
mod presets;
mod quota_file;
mod size;
mod space;
mod tables;
mod wipe;
mod write;

use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::Disk;
use vmwright_vfs::XattrMode;

pub use self::features::FeatureEdits;
pub use self::options::{Generation, JournalPlace, MakeOptions, NameHash, OnErrors, QuotaTypes, Usage};
use self::plan::Plan;
pub(crate) use self::plan::usual_journal;
pub use self::size::{Content, fit};
use crate::error::{Error, ErrorKind, Result};
use crate::features::incompat;
use crate::inode::ROOT_INODE;
use crate::volume::{Ext4, Options};

/// `s_creator_os` of the Hurd, which knows fewer features.
const HURD: u32 = 1;

fn no_room() -> Error {
    Error::plain(ErrorKind::NoSpace, "there is no room in the new volume for its own metadata")
}

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// `ext2`, `ext3` or `ext4`, by its features.
    pub generation: &'static str,
    /// The size of a block in bytes.
    pub block_size: u32,
    /// The size of a cluster in bytes; that of a block without the feature `bigalloc`.
    pub cluster_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Blocks that are free.
    pub free_blocks: u64,
    /// Blocks that only root may take.
    pub reserved_blocks: u64,
    /// Block groups.
    pub groups: u32,
    /// Blocks per group.
    pub blocks_per_group: u32,
    /// All inodes.
    pub inodes: u32,
    /// Inodes that are free.
    pub free_inodes: u32,
    /// Inodes per group.
    pub inodes_per_group: u32,
    /// The size of an inode in bytes.
    pub inode_size: u16,
    /// The blocks of the journal inside, if there is one.
    pub journal_blocks: Option<u64>,
    /// The blocks in which copies of the superblock stand.
    pub backups: Vec<u64>,
    /// The names of all features.
    pub features: Vec<&'static str>,
    /// The UUID.
    pub uuid: Uuid,
}

/// Adds a volume to the users of a journal device, so that it may keep its journal there; twice is once.
///
/// # Errors
///
/// Kind `Corrupt` where the disk is no journal device, `NoSpace` where it has 48 users already.
pub fn add_journal_user(device: &dyn Disk, volume: Uuid) -> Result<()> {
    device::add_user(device, volume)
}

/// Makes a volume on a disk, whose content is lost. The caller flushes.
///
/// # Errors
///
/// Kind `InvalidInput` for options that cannot be or cannot be together, naming the one that stands in the way, and
/// for a disk on which there is no room; `Unsupported` for a volume larger than is handled here; `ReadOnly`. In all
/// these cases the disk is as it was.
pub fn make(disk: Arc<dyn Disk>, options: &MakeOptions) -> Result<Made> {
    if disk.is_read_only() {
        return Err(Error::plain(ErrorKind::ReadOnly, "the disk for the new volume is read-only"));
    }
    let len = match options.length {
        Some(len) if len > disk.len() => {
            return Err(Error::bad_option("length", "it is more than the disk has"));
        }
        Some(len) => len,
        // Whole pages, as kernels map them.
        None => disk.len() & !4095,
    };
    let features = features::resolve(options)?;
    if features.has_incompat(incompat::JOURNAL_DEV) {
        return device::make(&*disk, options, features, len);
    }
    let made = Plan::new(options, features, len)?.fill()?.write(&*disk)?;
    if let Some(label) = &options.root_selinux {
        label_root(disk, label, options)?;
    }
    Ok(made)
}

/// Gives the root directory its label of SELinux.
fn label_root(disk: Arc<dyn Disk>, label: &[u8], options: &MakeOptions) -> Result<()> {
    let mut volume = Ext4::open(disk, Options::writable())?;
    volume.now = options.now;
    let root = volume.inode(ROOT_INODE)?;
    volume.set_attribute(root, b"security.selinux", label, XattrMode::Set)?;
    volume.sync_volume()
}
