//! Taking and giving back blocks and inodes.
//!
//! A bitmap is read when its group is first used, checked against the checksum and the count of its
//! descriptor, or made where it was never written. Its new checksum enters the descriptor at the next sync.

use crate::bitmap;
use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::group::{BLOCK_UNINIT, INODE_UNINIT};
use crate::volume::Ext4;

/// What a run of blocks should have at least, tried one after another; blocks wanted may be fewer.
const RUNS: [u32; 3] = [2048, 16, 1];

/// What is known of the bitmaps of one group.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GroupState {
    blocks_ready: bool,
    inodes_ready: bool,
    /// No run of free blocks is longer than this; `None` where that is not known.
    longest: Option<u32>,
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
        let free = bitmap::count_clear(&bits, self.block_bits(group));
        if free != descriptor.free_blocks {
            let (expected, actual) = (descriptor.free_blocks.into(), free.into());
            let what = "the count of free blocks in the bitmap";
            return Err(Error::mismatch(Place::Group(group), what, expected, actual));
        }
        Ok(StoredBitmap::Stored(bits.to_vec()))
    }

    /// How many bits of a block bitmap stand for blocks of the group.
    fn block_bits(&self, group: u32) -> u32 {
        self.superblock.group_blocks(group)
    }

    fn state(&mut self, group: u32) -> Result<&mut GroupState> {
        let state = self.group_states.get_mut(group as usize);
        state.ok_or_else(|| Error::corrupt(Place::Group(group), "there is no such group"))
    }

    /// The block of a group's block bitmap, once that is sound.
    fn block_bitmap(&mut self, group: u32) -> Result<u64> {
        let descriptor = self.groups.get(group)?.clone();
        if self.state(group)?.blocks_ready {
            return Ok(descriptor.block_bitmap);
        }
        let len = self.block_bits(group);
        if descriptor.flags & BLOCK_UNINIT != 0 {
            let bits = self.initial_block_bitmap(group);
            self.cache.put(descriptor.block_bitmap, bits)?;
            self.groups.modify(group)?.flags &= !BLOCK_UNINIT;
        } else if self.superblock.features.metadata_csum() {
            let bits = self.cache.read(descriptor.block_bitmap)?;
            let actual = self.block_bitmap_checksum(&bits);
            self.check_bitmap(group, "the block bitmap's checksum", descriptor.block_bitmap_csum, actual)?;
        }
        let free = bitmap::count_clear(&self.cache.read(descriptor.block_bitmap)?, len);
        if free != descriptor.free_blocks {
            let (expected, actual) = (descriptor.free_blocks.into(), free.into());
            let what = "the count of free blocks in the bitmap";
            return Err(Error::mismatch(Place::Group(group), what, expected, actual));
        }
        self.state(group)?.blocks_ready = true;
        Ok(descriptor.block_bitmap)
    }

    /// The block of a group's inode bitmap, once that is sound.
    fn inode_bitmap(&mut self, group: u32) -> Result<u64> {
        let descriptor = self.groups.get(group)?.clone();
        if self.state(group)?.inodes_ready {
            return Ok(descriptor.inode_bitmap);
        }
        let len = self.superblock.inodes_per_group;
        if descriptor.flags & INODE_UNINIT != 0 {
            let mut bits = vec![0; self.superblock.block_size as usize];
            let end = self.superblock.block_size * 8;
            bitmap::fill(&mut bits, len, end, true);
            self.cache.put(descriptor.inode_bitmap, bits)?;
            self.groups.modify(group)?.flags &= !INODE_UNINIT;
        } else if self.superblock.features.metadata_csum() {
            let bits = self.cache.read(descriptor.inode_bitmap)?;
            let actual = self.inode_bitmap_checksum(&bits);
            self.check_bitmap(group, "the inode bitmap's checksum", descriptor.inode_bitmap_csum, actual)?;
        }
        let free = bitmap::count_clear(&self.cache.read(descriptor.inode_bitmap)?, len);
        if free != descriptor.free_inodes {
            let (expected, actual) = (descriptor.free_inodes.into(), free.into());
            let what = "the count of free inodes in the bitmap";
            return Err(Error::mismatch(Place::Group(group), what, expected, actual));
        }
        self.state(group)?.inodes_ready = true;
        Ok(descriptor.inode_bitmap)
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
        let len = (self.superblock.blocks_per_group as usize / 8).min(bits.len());
        crc32c(self.superblock.checksum_seed, &bits[..len])
    }

    fn inode_bitmap_checksum(&self, bits: &[u8]) -> u32 {
        let len = (self.superblock.inodes_per_group as usize / 8).min(bits.len());
        crc32c(self.superblock.checksum_seed, &bits[..len])
    }

    /// The block bitmap of a group in which nothing but metadata has ever been.
    fn initial_block_bitmap(&self, group: u32) -> Vec<u8> {
        let superblock = &self.superblock;
        let mut bits = vec![0; superblock.block_size as usize];
        let len = self.block_bits(group);
        bitmap::fill(&mut bits, len, superblock.block_size * 8, true);
        let head = superblock.head_blocks(group).min(len.into()) as u32;
        bitmap::fill(&mut bits, 0, head, true);
        let start = superblock.group_start(group);
        let table = superblock.inode_table_blocks();
        // With flex_bg a group may hold the metadata of others.
        for other in self.groups.iter() {
            for (first, count) in
                [(other.block_bitmap, 1), (other.inode_bitmap, 1), (other.inode_table, table)]
            {
                let from = first.clamp(start, start + u64::from(len)) - start;
                let to = (first + count).clamp(start, start + u64::from(len)) - start;
                bitmap::fill(&mut bits, from as u32, to as u32, true);
            }
        }
        bits
    }

    /// Takes up to `want` neighbouring blocks, at `goal` or near it; answers the first one and how many.
    pub(crate) fn allocate_blocks(&mut self, goal: u64, want: u32) -> Result<(u64, u32)> {
        let want = want.max(1);
        let (first, at) = match self.superblock.is_valid_block(goal) {
            true => self.superblock.group_of_block(goal)?,
            false => (0, 0),
        };
        let groups = self.groups.count();
        for least in RUNS {
            let least = least.min(want);
            for step in 0..groups {
                let group = ((u64::from(first) + u64::from(step)) % u64::from(groups)) as u32;
                let from = if step == 0 { at } else { 0 };
                if let Some((start, len)) = self.find_run(group, from, least)? {
                    let len = len.min(want);
                    self.take_blocks(group, start, len)?;
                    return Ok((self.superblock.group_start(group) + u64::from(start), len));
                }
            }
            if least == want && want == 1 {
                break;
            }
        }
        Err(Error::plain(ErrorKind::NoSpace, "the filesystem has no free blocks"))
    }

    /// Finds a run of at least `least` free blocks in a group: at `from`, else after it, else before it.
    fn find_run(&mut self, group: u32, from: u32, least: u32) -> Result<Option<(u32, u32)>> {
        if self.groups.get(group)?.free_blocks < least {
            return Ok(None);
        }
        if self.state(group)?.longest.is_some_and(|longest| longest < least) {
            return Ok(None);
        }
        let block = self.block_bitmap(group)?;
        let bits = self.cache.read(block)?;
        let len = self.block_bits(group);
        if from > 0 && from < len && !bitmap::is_set(&bits, from) {
            // Going on right where the previous block ends is worth more than a longer run elsewhere.
            return Ok(Some((from, bitmap::find(&bits, from, len, true) - from)));
        }
        let mut longest = 0;
        for (from, to) in [(from, len), (0, from)] {
            let mut at = bitmap::find(&bits, from, to, false);
            while at < to {
                let end = bitmap::find(&bits, at, to, true);
                if end - at >= least {
                    return Ok(Some((at, end - at)));
                }
                longest = longest.max(end - at);
                at = bitmap::find(&bits, end, to, false);
            }
        }
        // A run across `from` was seen as two.
        self.state(group)?.longest = Some(longest.saturating_mul(2));
        Ok(None)
    }

    fn take_blocks(&mut self, group: u32, start: u32, len: u32) -> Result<()> {
        let block = self.block_bitmap(group)?;
        // They agreed at first; groups that share a bitmap fall out with theirs.
        let Some(left) = self.groups.get(group)?.free_blocks.checked_sub(len) else {
            return Err(Error::corrupt(Place::Group(group), "more blocks are free than its count says"));
        };
        bitmap::fill(self.cache.modify(block)?, start, start + len, true);
        self.groups.modify(group)?.free_blocks = left;
        self.superblock.free_blocks = self.superblock.free_blocks.saturating_sub(len.into());
        self.changed = true;
        Ok(())
    }

    /// Takes a block by its number if it is free; answers whether it was.
    pub(crate) fn claim_block(&mut self, block: u64) -> Result<bool> {
        let (group, index) = self.superblock.group_of_block(block)?;
        let at = self.block_bitmap(group)?;
        let free = !bitmap::is_set(&self.cache.read(at)?, index);
        if free {
            self.take_blocks(group, index, 1)?;
        }
        Ok(free)
    }

    /// Takes an inode by its number if it is free; answers whether it was.
    pub(crate) fn claim_inode(&mut self, number: u32, directory: bool) -> Result<bool> {
        self.inode_location(number)?;
        let per_group = self.superblock.inodes_per_group;
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        let at = self.inode_bitmap(group)?;
        let free = !bitmap::is_set(&self.cache.read(at)?, index);
        if free {
            self.take_inode(group, index, directory)?;
        }
        Ok(free)
    }

    /// Gives blocks back.
    pub(crate) fn free_blocks(&mut self, start: u64, len: u64) -> Result<()> {
        self.cache.forget(start, len);
        let (mut at, end) = (start, start.saturating_add(len));
        while at < end {
            let (group, index) = self.superblock.group_of_block(at)?;
            let count = (end - at).min(u64::from(self.block_bits(group) - index)) as u32;
            let block = self.block_bitmap(group)?;
            let bits = self.cache.modify(block)?;
            if bitmap::find(bits, index, index + count, false) != index + count {
                return Err(Error::corrupt(
                    Place::Block(at),
                    "a block in use, or one after it, is marked free",
                ));
            }
            bitmap::fill(bits, index, index + count, false);
            self.groups.modify(group)?.free_blocks += count;
            self.superblock.free_blocks += u64::from(count);
            self.state(group)?.longest = None;
            at += u64::from(count);
        }
        self.changed = true;
        Ok(())
    }

    /// Takes an inode, in the group of the directory that will name it or after that.
    pub(crate) fn allocate_inode(&mut self, parent: u32, directory: bool) -> Result<u32> {
        let per_group = self.superblock.inodes_per_group;
        let groups = self.groups.count();
        let first = (parent - 1) / per_group;
        for step in 0..groups {
            let group = ((u64::from(first) + u64::from(step)) % u64::from(groups)) as u32;
            if self.groups.get(group)?.free_inodes == 0 {
                continue;
            }
            let block = self.inode_bitmap(group)?;
            let reserved = self.superblock.first_inode() - 1;
            let from = reserved.saturating_sub(group.saturating_mul(per_group)).min(per_group);
            let index = bitmap::find(&self.cache.read(block)?, from, per_group, false);
            if index < per_group {
                self.take_inode(group, index, directory)?;
                return Ok(group * per_group + index + 1);
            }
        }
        Err(Error::plain(ErrorKind::NoSpace, "the filesystem has no free inodes"))
    }

    fn take_inode(&mut self, group: u32, index: u32, directory: bool) -> Result<()> {
        // A group with inodes in use has a block bitmap too, as kernels see to.
        self.block_bitmap(group)?;
        let block = self.inode_bitmap(group)?;
        let Some(left) = self.groups.get(group)?.free_inodes.checked_sub(1) else {
            return Err(Error::corrupt(Place::Group(group), "more inodes are free than its count says"));
        };
        bitmap::fill(self.cache.modify(block)?, index, index + 1, true);
        let per_group = self.superblock.inodes_per_group;
        let descriptor = self.groups.modify(group)?;
        descriptor.free_inodes = left;
        descriptor.used_dirs = descriptor.used_dirs.saturating_add(directory.into());
        descriptor.itable_unused = descriptor.itable_unused.min(per_group - index - 1);
        self.superblock.free_inodes = self.superblock.free_inodes.saturating_sub(1);
        self.changed = true;
        Ok(())
    }

    /// Gives an inode back.
    pub(crate) fn free_inode(&mut self, number: u32, directory: bool) -> Result<()> {
        let per_group = self.superblock.inodes_per_group;
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        let block = self.inode_bitmap(group)?;
        let bits = self.cache.modify(block)?;
        if !bitmap::is_set(bits, index) {
            let place = Place::Inode(number.into());
            return Err(Error::corrupt(place, "it is in use but marked free"));
        }
        bitmap::fill(bits, index, index + 1, false);
        let descriptor = self.groups.modify(group)?;
        descriptor.free_inodes += 1;
        descriptor.used_dirs = descriptor.used_dirs.saturating_sub(directory.into());
        self.superblock.free_inodes += 1;
        self.changed = true;
        Ok(())
    }

    /// Enters the checksums of changed bitmaps into their descriptors.
    pub(crate) fn seal_bitmaps(&mut self) -> Result<()> {
        if !self.superblock.features.metadata_csum() {
            return Ok(());
        }
        for group in self.groups.changed() {
            let state = *self.state(group)?;
            if state.blocks_ready {
                let bits = self.cache.read(self.groups.get(group)?.block_bitmap)?;
                let checksum = self.block_bitmap_checksum(&bits);
                self.groups.modify(group)?.block_bitmap_csum = checksum;
            }
            if state.inodes_ready {
                let bits = self.cache.read(self.groups.get(group)?.inode_bitmap)?;
                let checksum = self.inode_bitmap_checksum(&bits);
                self.groups.modify(group)?.inode_bitmap_csum = checksum;
            }
        }
        Ok(())
    }
}
