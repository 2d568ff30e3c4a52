//! Changing block maps of ext2 and ext3.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::indirect::{DIRECT, check, pointer, pointers, slot, span};
use crate::inode::Inode;
use crate::volume::Ext4;

/// Blocks that are given back once nothing leads to them, neighbours together: the first one, and how many. Where
/// damage ends a cut too early, blocks are lost, but none belongs to two files.
type Freed = Vec<(u64, u64)>;

impl Ext4 {
    /// Maps `len` logical blocks, all holes, to blocks from `start` on; answers how many were mapped, with
    /// the error where those are not all.
    pub(crate) fn map_indirect(
        &mut self,
        inode: &mut Inode,
        logical: u64,
        start: u64,
        len: u64,
    ) -> (u64, Result<()>) {
        for done in 0..len {
            if let Err(error) = self.map_one(inode, logical + done, start + done) {
                return (done, Err(error));
            }
        }
        (len, Ok(()))
    }

    fn map_one(&mut self, inode: &mut Inode, logical: u64, block: u64) -> Result<()> {
        let size = self.superblock.block_size;
        let too_far =
            || Error::plain(ErrorKind::NoSpace, "the file would be longer than its block map allows");
        let (slot, levels, mut rest) = slot(size, logical).ok_or_else(too_far)?;
        // Block numbers have 32 bits here.
        let number = u32::try_from(block).map_err(|_| too_far())?;
        if levels == 0 {
            inode.block[slot * 4..slot * 4 + 4].copy_from_slice(&number.to_le_bytes());
            return Ok(());
        }
        let mut at = check(&self.superblock, inode, pointer(&inode.block, slot))?;
        if at == 0 {
            at = self.new_pointers(inode, block)?;
            inode.block[slot * 4..slot * 4 + 4].copy_from_slice(&(at as u32).to_le_bytes());
        }
        for level in (2..=levels).rev() {
            let index = (rest / span(size, level)) as usize;
            rest %= span(size, level);
            let mut next = check(&self.superblock, inode, pointer(&self.cache.read(at)?, index))?;
            if next == 0 {
                next = self.new_pointers(inode, block)?;
                self.cache.modify(at)?[index * 4..index * 4 + 4]
                    .copy_from_slice(&(next as u32).to_le_bytes());
            }
            at = next;
        }
        let index = rest as usize * 4;
        self.cache.modify(at)?[index..index + 4].copy_from_slice(&number.to_le_bytes());
        Ok(())
    }

    /// Takes a block for pointers, none of which leads anywhere.
    fn new_pointers(&mut self, inode: &mut Inode, goal: u64) -> Result<u64> {
        let (block, len) = self.allocate_blocks(goal, 1)?;
        if u32::try_from(block).is_err() {
            self.free_blocks(block, len.into())?;
            return Err(Error::plain(ErrorKind::NoSpace, "no block is free that a block map can lead to"));
        }
        self.cache.put(block, vec![0; self.superblock.block_size as usize])?;
        inode.sectors += self.block_size() / 512;
        Ok(block)
    }

    /// Unmaps a range of logical blocks and gives back what it took.
    pub(crate) fn cut_indirect(&mut self, inode: &mut Inode, cut: Range<u64>) -> Result<()> {
        let size = self.superblock.block_size;
        let mut freed = Freed::default();
        let mut first = 0;
        for slot in 0..15_usize {
            let level = slot.saturating_sub(DIRECT as usize - 1) as u32;
            let covered = if level == 0 { 1 } else { span(size, level) * pointers(size) };
            let range = first..first + covered;
            first = range.end;
            let block = pointer(&inode.block, slot);
            if block == 0 || range.end <= cut.start || cut.end <= range.start {
                continue;
            }
            let block = check(&self.superblock, inode, block)?;
            if self.cut_branch(inode, block, level, range, &cut, &mut freed)? {
                inode.block[slot * 4..slot * 4 + 4].fill(0);
            }
        }
        for (start, len) in freed {
            self.free_blocks(start, len)?;
            inode.sectors = inode.sectors.saturating_sub(len * (self.block_size() / 512));
        }
        Ok(())
    }

    /// Cuts a range out of a branch; answers whether nothing is left of it and it was given back.
    fn cut_branch(
        &mut self,
        inode: &mut Inode,
        block: u64,
        level: u32,
        range: Range<u64>,
        cut: &Range<u64>,
        freed: &mut Freed,
    ) -> Result<bool> {
        if level == 0 {
            gather(block, freed);
            return Ok(true);
        }
        let span = span(self.superblock.block_size, level);
        let bytes = self.cache.read(block)?;
        let from = cut.start.saturating_sub(range.start) / span;
        let to = (cut.end.min(range.end) - range.start).div_ceil(span);
        let mut cleared = Vec::new();
        for index in from..to {
            let below = pointer(&bytes, index as usize);
            if below == 0 {
                continue;
            }
            let below = check(&self.superblock, inode, below)?;
            let start = range.start + index * span;
            if self.cut_branch(inode, below, level - 1, start..start + span, cut, freed)? {
                cleared.push(index as usize);
            }
        }
        let left = (0..bytes.len() / 4)
            .any(|index| pointer(&bytes, index) != 0 && cleared.binary_search(&index).is_err());
        if !left {
            gather(block, freed);
        } else if !cleared.is_empty() {
            let bytes = self.cache.modify(block)?;
            cleared.into_iter().for_each(|index| bytes[index * 4..index * 4 + 4].fill(0));
        }
        Ok(!left)
    }
}

fn gather(block: u64, freed: &mut Freed) {
    match freed.last_mut() {
        Some((start, len)) if *start + *len == block => *len += 1,
        _ => freed.push((block, 1)),
    }
}
