//! Making volumes larger and smaller.
//!
//! ```text
//!        ┌ head ┬ bitmaps, tables ┬ blocks …┐┌ group 1 …┐┌ last, short ┐
//! grow   └──────┴─────────────────┴─────────┘└──────────┘└─────────────┴─▶ filled up ┐┌ new groups ┐
//! shrink                                     ◀── blocks and inodes move here ── what is cut off
//! ```
//!
//! The disk keeps its length: lengthen it before growing, and cut it after shrinking.

mod geometry;
mod grow;
mod minimum;
mod placing;
mod relocate;
pub(crate) mod renumber;
pub(crate) mod reserved;
mod shrink;
pub(crate) mod space;

use std::sync::Arc;

use vmwright_disk::Disk;
use vmwright_vfs::Timestamp;

use crate::copies;
use crate::error::{Error, ErrorKind, Result};
use crate::features::incompat;
use crate::volume::{self, Ext4};
pub(crate) use grow::free_heads;
use space::Space;

/// The size that a volume shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// At most this many bytes; whole blocks of them.
    Bytes(u64),
    /// As large as the disk allows.
    Disk,
    /// As small as its content allows.
    Minimum,
}

/// How a volume is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What the superblock and changed inodes are stamped with; by default, the time when the volume was last used.
    pub now: Option<Timestamp>,
    /// How many bytes of metadata are kept in memory.
    pub metadata_cache: usize,
}

impl Default for Options {
    /// With 8 MiB of metadata in memory.
    fn default() -> Self {
        Self { now: None, metadata_cache: 8 << 20 }
    }
}

impl Options {
    fn volume(&self) -> volume::Options {
        volume::Options { write: true, metadata_cache: self.metadata_cache, ..Default::default() }
    }
}

/// What resizing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// The size of a block in bytes.
    pub block_size: u32,
    /// How many blocks there were.
    pub old_blocks: u64,
    /// How many there are.
    pub new_blocks: u64,
    /// How many blocks got another place.
    pub moved_blocks: u64,
    /// How many inodes got another number.
    pub moved_inodes: u64,
}

impl Resized {
    /// The size in bytes that the volume had.
    pub fn old_bytes(&self) -> u64 {
        self.old_blocks.saturating_mul(self.block_size.into())
    }

    /// The size in bytes that the volume has.
    pub fn new_bytes(&self) -> u64 {
        self.new_blocks.saturating_mul(self.block_size.into())
    }
}

/// Gives the volume on a disk another size.
///
/// A journal with changes is replayed first. A last block group that would have no room for more than its own
/// metadata is left out, so that the volume may become a little smaller than asked.
///
/// # Errors
///
/// Kind `InvalidInput` where the disk is shorter than the target; `NoSpace`, before anything is changed, where
/// the content does not fit; `Unsupported` where the volume has features that cannot be written here, or must
/// be checked first; `Corrupt` where it is not sound.
pub fn resize(disk: Arc<dyn Disk>, to: Target, options: &Options) -> Result<Resized> {
    let mut volume = Ext4::open(disk.clone(), options.volume())?;
    if let Some(now) = options.now {
        volume.now = now;
    }
    let old = volume.superblock.clone();
    let block_size = u64::from(old.block_size);
    let blocks = match to {
        Target::Bytes(bytes) if bytes > disk.len() => {
            let problem = "the disk is shorter than the filesystem shall be";
            return Err(Error::plain(ErrorKind::InvalidInput, problem));
        }
        Target::Bytes(bytes) => bytes / block_size,
        Target::Disk => disk.len() / block_size,
        Target::Minimum => minimum::blocks(&volume)?.min(old.blocks),
    };
    let too_small = |volume: &Ext4| Ok(Error::too_small(minimum::blocks(volume)?.saturating_mul(block_size)));
    let settle = |blocks| match geometry::resized(&old, blocks, disk.len()) {
        Err(error) if error.kind() == ErrorKind::NoSpace => Err(too_small(&volume)?),
        new => new,
    };
    let mut new = settle(blocks)?;
    // Without flex_bg a group's metadata cannot leave it: a last group that would be shorter goes as a whole.
    if new.blocks < old.blocks
        && !old.features.has_incompat(incompat::FLEX_BG)
        && new.blocks < minimum::last_metadata(&volume, new.groups - 1)?
    {
        new = settle(old.group_start(new.groups - 1))?;
    }
    let mut done = Resized {
        block_size: new.block_size,
        old_blocks: old.blocks,
        new_blocks: new.blocks,
        moved_blocks: 0,
        moved_inodes: 0,
    };
    if new.blocks > old.blocks {
        grow::grow(disk, volume, new, options)?;
    } else if new.blocks < old.blocks {
        if new.blocks < minimum::blocks(&volume)? {
            return Err(too_small(&volume)?);
        }
        let moved = shrink::shrink(volume, new)?;
        (done.moved_blocks, done.moved_inodes) = (moved.blocks, moved.inodes);
        if !moved.sectors.is_empty() {
            shrink::count(Ext4::open(disk, options.volume())?, &moved)?;
        }
    }
    Ok(done)
}

/// The fewest bytes that the volume on a disk can be shrunk to, as far as can be told without trying. Nothing
/// is written; a journal with changes is followed in memory.
///
/// # Errors
///
/// As [`Ext4::open`] for reading.
pub fn minimum(disk: Arc<dyn Disk>) -> Result<u64> {
    let volume = Ext4::open(disk, volume::Options::default())?;
    let blocks = minimum::blocks(&volume)?.min(volume.superblock.blocks);
    Ok(blocks.saturating_mul(volume.superblock.block_size.into()))
}

/// Brings everything that hangs on the changes up to date and writes it: bitmaps' checksums and counts,
/// descriptors, all copies, and the superblock last.
pub(crate) fn finish(volume: &mut Ext4, space: &mut Space) -> Result<()> {
    space.settle(volume)?;
    write_out(volume)
}

/// Writes all metadata, the descriptors and the superblock with all their copies.
pub(crate) fn write_out(volume: &mut Ext4) -> Result<()> {
    let table = volume.groups.table(&volume.superblock);
    volume.cache.flush()?;
    copies::write(&mut volume.cache, &volume.superblock, &table)?;
    flush_disk(volume)?;
    let kibibytes = volume.cache.take_bytes_written().div_ceil(1024) + 1;
    volume.superblock.record_write(kibibytes, volume.now.seconds);
    copies::write_superblock(&mut volume.cache, &volume.superblock)?;
    volume.changed = false;
    flush_disk(volume)?;
    volume.cache.release_guard(&volume.superblock, volume.now.seconds)
}

fn flush_disk(volume: &Ext4) -> Result<()> {
    volume.cache.disk().flush().map_err(|source| Error::disk("flush", source))
}
