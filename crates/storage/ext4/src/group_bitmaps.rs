//! The bitmaps of groups: read, checked or made when first needed, sealed when the volume is synced.
//!
//! A bit of a block bitmap stands for a cluster, which is one block unless the volume has `bigalloc`.

use crate::bitmap;
use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::group::{BLOCK_UNINIT, INODE_UNINIT};
use crate::volume::Ext4;

/// What is known of the bitmaps of one group.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GroupState {
    pub(crate) blocks_ready: bool,
    pub(crate) inodes_ready: bool,
    /// Whether the bitmaps' checksums in the descriptor are behind.
    blocks_changed: bool,
    inodes_changed: bool,
    /// No bit before this one is free.
    pub(crate) first_free: u32,
    /// No inode before this one is free.
    pub(crate) first_free_inode: u32,
}

/// A block bitmap as the disk has it.
pub(crate) enum StoredBitmap {
    /// Only metadata has ever been in the group.
    NeverWritten,
    /// These bits, which agree with the descriptor.
    Stored(Vec<u8>),
}

impl Ext4 {
    /// The block bitmap of a group without changing anything, checked like one that is about to be used.
    pub(crate) fn stored_block_bitmap(&self, group: u32) -> Result<StoredBitmap> {
        let descriptor = self.groups.get(group)?;
        if descriptor.flags & BLOCK_UNINIT != 0 {
            return Ok(StoredBitmap::NeverWritten);
        }
        let bits = self.cache.read(descriptor.block_bitmap)?;
        // One that was changed in memory was checked before, and has its new checksum only after a sync.
        let checked = self.group_states.get(group as usize).is_some_and(|state| state.blocks_ready);
        if self.superblock.features.metadata_csum() && !checked {
            let actual = self.block_bitmap_checksum(&bits);
            self.check_bitmap(group, "the block bitmap's checksum", descriptor.block_bitmap_csum, actual)?;
        }
        self.check_free_blocks(group, &bits)?;
        Ok(StoredBitmap::Stored(bits.to_vec()))
    }

    fn check_free_blocks(&self, group: u32, bits: &[u8]) -> Result<()> {
        let free = bitmap::count_clear(bits, self.superblock.group_clusters(group));
        let expected = self.groups.get(group)?.free_blocks;
        if free != expected {
            let what = "the count of free blocks in the bitmap";
            return Err(Error::mismatch(Place::Group(group), what, expected.into(), free.into()));
        }
        Ok(())
    }

    /// What is known of a group's bitmaps.
    pub(crate) fn state(&mut self, group: u32) -> Result<&mut GroupState> {
        let state = self.group_states.get_mut(group as usize);
        state.ok_or_else(|| Error::corrupt(Place::Group(group), "there is no such group"))
    }

    /// The block of a group's block bitmap, once that is sound.
    pub(crate) fn block_bitmap(&mut self, group: u32) -> Result<u64> {
        let descriptor = self.groups.get(group)?;
        let (at, flags, checksum) = (descriptor.block_bitmap, descriptor.flags, descriptor.block_bitmap_csum);
        if self.state(group)?.blocks_ready {
            return Ok(at);
        }
        if flags & BLOCK_UNINIT != 0 {
            if self.allocator.metadata.is_empty() {
                self.allocator.metadata = self.metadata()?;
            }
            let bits = self.initial_block_bitmap(group);
            self.cache.put(at, bits)?;
            self.groups.modify(group)?.flags &= !BLOCK_UNINIT;
            self.state(group)?.blocks_changed = true;
        } else if self.superblock.features.metadata_csum() {
            let bits = self.cache.read(at)?;
            let actual = self.block_bitmap_checksum(&bits);
            self.check_bitmap(group, "the block bitmap's checksum", checksum, actual)?;
        }
        let bits = self.cache.read(at)?;
        self.check_free_blocks(group, &bits)?;
        self.state(group)?.blocks_ready = true;
        Ok(at)
    }

    /// The bits of a group's block bitmap, to be changed.
    pub(crate) fn change_block_bitmap(&mut self, group: u32) -> Result<&mut Vec<u8>> {
        let block = self.block_bitmap(group)?;
        self.state(group)?.blocks_changed = true;
        self.cache.modify(block)
    }

    /// The block of a group's inode bitmap, once that is sound.
    pub(crate) fn inode_bitmap(&mut self, group: u32) -> Result<u64> {
        let descriptor = self.groups.get(group)?;
        let (at, flags, checksum) = (descriptor.inode_bitmap, descriptor.flags, descriptor.inode_bitmap_csum);
        if self.state(group)?.inodes_ready {
            return Ok(at);
        }
        let len = self.superblock.inodes_per_group;
        if flags & INODE_UNINIT != 0 {
            let mut bits = vec![0; self.superblock.block_size as usize];
            let end = self.superblock.block_size * 8;
            bitmap::fill(&mut bits, len, end, true);
            self.cache.put(at, bits)?;
            self.groups.modify(group)?.flags &= !INODE_UNINIT;
            self.state(group)?.inodes_changed = true;
        } else if self.superblock.features.metadata_csum() {
            let bits = self.cache.read(at)?;
            let actual = self.inode_bitmap_checksum(&bits);
            self.check_bitmap(group, "the inode bitmap's checksum", checksum, actual)?;
        }
        let free = bitmap::count_clear(&self.cache.read(at)?, len);
        let expected = self.groups.get(group)?.free_inodes;
        if free != expected {
            let what = "the count of free inodes in the bitmap";
            return Err(Error::mismatch(Place::Group(group), what, expected.into(), free.into()));
        }
        self.state(group)?.inodes_ready = true;
        Ok(at)
    }

    /// The bits of a group's inode bitmap, to be changed.
    pub(crate) fn change_inode_bitmap(&mut self, group: u32) -> Result<&mut Vec<u8>> {
        let block = self.inode_bitmap(group)?;
        self.state(group)?.inodes_changed = true;
        self.cache.modify(block)
    }

    fn check_bitmap(&self, group: u32, what: &'static str, expected: u32, actual: u32) -> Result<()> {
        // Short descriptors have room for half of the checksum only.
        let mask = if self.superblock.desc_size >= 64 { u32::MAX } else { 0xffff };
        if expected & mask != actual & mask {
            return Err(Error::mismatch(Place::Group(group), what, expected.into(), actual.into()));
        }
        Ok(())
    }

    fn block_bitmap_checksum(&self, bits: &[u8]) -> u32 {
        let len = (self.superblock.clusters_per_group() as usize / 8).min(bits.len());
        crc32c(self.superblock.checksum_seed, &bits[..len])
    }

    fn inode_bitmap_checksum(&self, bits: &[u8]) -> u32 {
        let len = (self.superblock.inodes_per_group as usize / 8).min(bits.len());
        crc32c(self.superblock.checksum_seed, &bits[..len])
    }

    /// The block bitmap of a group in which nothing but metadata has ever been.
    fn initial_block_bitmap(&self, group: u32) -> Vec<u8> {
        let superblock = &self.superblock;
        let cluster = u64::from(superblock.cluster_blocks);
        let mut bits = vec![0; superblock.block_size as usize];
        let len = u64::from(superblock.group_blocks(group));
        bitmap::fill(&mut bits, superblock.group_clusters(group), superblock.block_size * 8, true);
        let start = superblock.group_start(group);
        let metadata = &self.allocator.metadata;
        // With flex_bg a group may hold the metadata of others.
        let first = metadata.partition_point(|range| range.end <= start);
        for range in metadata[first..].iter().take_while(|range| range.start < start + len) {
            let (from, to) = (range.start.max(start) - start, range.end.min(start + len) - start);
            bitmap::fill(&mut bits, (from / cluster) as u32, to.div_ceil(cluster) as u32, true);
        }
        bits
    }

    /// Enters the checksums of changed bitmaps into their descriptors.
    pub(crate) fn seal_bitmaps(&mut self) -> Result<()> {
        for group in self.groups.changed() {
            let state = self.state(group)?;
            let (blocks, inodes) = (state.blocks_changed, state.inodes_changed);
            let sealed = self.superblock.features.metadata_csum();
            if sealed && blocks {
                let bits = self.cache.read(self.groups.get(group)?.block_bitmap)?;
                let checksum = self.block_bitmap_checksum(&bits);
                self.groups.modify(group)?.block_bitmap_csum = checksum;
            }
            if sealed && inodes {
                let bits = self.cache.read(self.groups.get(group)?.inode_bitmap)?;
                let checksum = self.inode_bitmap_checksum(&bits);
                self.groups.modify(group)?.inode_bitmap_csum = checksum;
            }
            // Not before both are in: a sync that fails is tried again.
            let state = self.state(group)?;
            (state.blocks_changed, state.inodes_changed) = (false, false);
        }
        Ok(())
    }
}
