//! What is left of inodes that were removed.

use std::ops::ControlFlow;

use vmwright_vfs::{FileType, InodeNumber, Timestamp};

use crate::bitmap;
use crate::error::Result;
use crate::features::ro_compat;
use crate::group::INODE_UNINIT;
use crate::group_bitmaps::StoredBitmap;
use crate::inode::Inode;
use crate::volume::Ext4;

/// What is left of an inode that was removed.
///
/// Kernels cut a file to nothing before they remove it, so that size and places of content survive on ext2 at most;
/// what other programs remove may keep more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The inode.
    pub inode: InodeNumber,
    /// What it was.
    pub file_type: FileType,
    /// Its permissions.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The size that is still recorded.
    pub size: u64,
    /// When it was removed.
    pub deleted: Timestamp,
    /// When its content was last changed.
    pub modified: Timestamp,
    /// How many blocks of content its map still leads to.
    pub blocks: u64,
    /// How many of them nothing else has taken since; `None` where the map cannot be followed.
    pub free_blocks: Option<u64>,
}

/// Visits an inode's number, with whether it is in use; answers whether to go on.
pub(crate) type VisitInode<'a> = &'a mut dyn FnMut(&Ext4, u32, bool) -> Result<ControlFlow<()>>;

impl Ext4 {
    /// Visits every inode that was in use once and is no longer, in the order of their numbers.
    ///
    /// Records that are damaged are left out: nobody owes them anything.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where a bitmap is damaged.
    pub fn visit_deleted(&self, visit: &mut dyn FnMut(Deleted) -> ControlFlow<()>) -> Result<()> {
        let mut bitmaps = FreeBlocks { group: None, bits: None };
        let first = self.superblock.first_inode();
        self.visit_inodes(&mut |volume, number, in_use| {
            if in_use || number < first {
                return Ok(ControlFlow::Continue(()));
            }
            let Ok(inode) = volume.any_inode(number) else { return Ok(ControlFlow::Continue(())) };
            if inode.dtime == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(visit(volume.remains(&inode, &mut bitmaps)))
        })
    }

    fn remains(&self, inode: &Inode, bitmaps: &mut FreeBlocks) -> Deleted {
        let counted = self.blocks_left(inode, bitmaps);
        Deleted {
            inode: InodeNumber(inode.number.into()),
            file_type: inode.file_type,
            mode: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            deleted: Timestamp { seconds: inode.dtime.into(), nanoseconds: 0 },
            modified: inode.modified,
            blocks: counted.as_ref().map_or(0, |counted| counted.0),
            free_blocks: counted.ok().map(|counted| counted.1),
        }
    }

    /// How many blocks an inode's map leads to, and how many of those are free.
    fn blocks_left(&self, inode: &Inode, bitmaps: &mut FreeBlocks) -> Result<(u64, u64)> {
        let (mut blocks, mut free, mut at) = (0_u64, 0, 0);
        if !inode.has_blocks(&self.superblock) {
            return Ok((0, 0));
        }
        let limit = crate::mapping::logical_limit(&self.superblock, inode);
        while at < limit && blocks < self.superblock.blocks {
            let run = self.run_at(inode, at)?;
            if let Some(start) = run.start() {
                for block in start..start.saturating_add(run.len).min(self.superblock.blocks) {
                    free += u64::from(bitmaps.is_free(self, block)?);
                }
                blocks = blocks.saturating_add(run.len);
            }
            at = at.saturating_add(run.len);
        }
        Ok((blocks, free))
    }

    /// Visits every inode whose table was ever written.
    pub(crate) fn visit_inodes(&self, visit: VisitInode<'_>) -> Result<()> {
        let per_group = self.superblock.inodes_per_group;
        for number in 0..self.groups.count() {
            let group = self.groups.get(number)?;
            let sealed = self.superblock.features.group_csum();
            if sealed && group.flags & INODE_UNINIT != 0 {
                continue;
            }
            let used = if sealed { per_group.saturating_sub(group.itable_unused) } else { per_group };
            let bits = self.cache.read(group.inode_bitmap)?;
            for index in 0..used {
                let inode = number * per_group + index + 1;
                if visit(self, inode, bitmap::is_set(&bits, index))?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The block bitmap that was asked last.
struct FreeBlocks {
    group: Option<u32>,
    bits: Option<Vec<u8>>,
}

impl FreeBlocks {
    fn is_free(&mut self, volume: &Ext4, block: u64) -> Result<bool> {
        let superblock = &volume.superblock;
        let (group, index) = superblock.group_of_block(block)?;
        if self.group != Some(group) {
            self.bits = match volume.stored_block_bitmap(group)? {
                StoredBitmap::NeverWritten => None,
                StoredBitmap::Stored(bits) => Some(bits),
            };
            self.group = Some(group);
        }
        let clusters = superblock.features.has_ro_compat(ro_compat::BIGALLOC);
        let index = if clusters { index / superblock.cluster_blocks } else { index };
        Ok(self.bits.as_ref().is_none_or(|bits| !bitmap::is_set(bits, index)))
    }
}
