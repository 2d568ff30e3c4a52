//! Where the blocks of an inode's content are, whichever way the inode maps them.

use crate::block_cache::BlockCache;
use crate::error::Result;
use crate::features::incompat;
use crate::inode::{Inode, flags};
use crate::superblock::Superblock;
use crate::{extents, indirect};

/// Logical blocks of an inode that are neighbours and kept in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first logical block.
    pub(crate) logical: u64,
    /// How many there are, never zero.
    pub(crate) len: u64,
    pub(crate) place: RunPlace,
}

/// How the blocks of a run are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunPlace {
    /// Not at all.
    Hole,
    /// From this block of the volume on, but what stands there is not content: they read as zeros.
    Unwritten(u64),
    /// From this block of the volume on.
    Written(u64),
}

impl Run {
    /// The first block of the volume, where there is one.
    pub(crate) fn start(&self) -> Option<u64> {
        match self.place {
            RunPlace::Hole => None,
            RunPlace::Unwritten(start) | RunPlace::Written(start) => Some(start),
        }
    }
}

/// Finds the run that begins at a logical block; as long as is cheap to find.
pub(crate) fn run_at(
    cache: &BlockCache,
    superblock: &Superblock,
    inode: &Inode,
    logical: u64,
) -> Result<Run> {
    match inode.has_flag(flags::EXTENTS) {
        true => extents::run_at(cache, superblock, inode, logical),
        false => indirect::run_at(cache, superblock, inode, logical),
    }
}

/// One more than the largest logical block that an inode can have.
pub(crate) fn logical_limit(superblock: &Superblock, inode: &Inode) -> u64 {
    // Inline content moves into extents where the volume has them.
    let inline = inode.has_flag(flags::INLINE_DATA) && superblock.features.has_incompat(incompat::EXTENTS);
    match inline || inode.has_flag(flags::EXTENTS) {
        true => extents::LOGICAL_LIMIT,
        false => indirect::logical_limit(superblock.block_size),
    }
}
