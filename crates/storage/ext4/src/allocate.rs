//! Taking space for content before there is any.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::extents::{Extent, MAX_UNWRITTEN};
use crate::inode::{Inode, flags};
use crate::mapping::{self, Run, RunPlace};
use crate::volume::Ext4;

impl Ext4 {
    /// Takes blocks for every hole of a range, which go on reading as zeros.
    ///
    /// Extents mark them unwritten. Block maps cannot: zeros are written, and space past the end, where e2fsck would
    /// take it for content, is refused.
    pub(crate) fn allocate_content(
        &mut self,
        mut inode: Inode,
        offset: u64,
        len: u64,
        keep_size: bool,
    ) -> Result<()> {
        self.check_content(&inode)?;
        let limit = mapping::logical_limit(&self.superblock, &inode) * self.block_size();
        let Some(end) = offset.checked_add(len).filter(|end| *end <= limit) else {
            return Err(Error::plain(ErrorKind::InvalidInput, "the file would be larger than it can be"));
        };
        if len == 0 {
            return Err(Error::plain(ErrorKind::InvalidInput, "there is nothing to take space for"));
        }
        self.move_inline_out(&mut inode)?;
        if keep_size && end > inode.size && !inode.has_flag(flags::EXTENTS) {
            return Err(Error::unsupported("space past the end of a file that is mapped without extents"));
        }
        let block_size = self.block_size();
        let blocks = offset / block_size..end.div_ceil(block_size);
        if self.holes_in(&inode, blocks.clone())? > self.superblock.free_blocks {
            return Err(Error::plain(ErrorKind::NoSpace, "there are fewer free blocks than the range needs"));
        }
        let mut taken = Vec::new();
        if let Err(error) = self.fill_holes(&mut inode, blocks, &mut taken) {
            for range in taken {
                self.unmap(&mut inode, range)?;
            }
            self.put_inode(&inode)?;
            return Err(error);
        }
        if !keep_size && end > inode.size {
            self.zero_tail(&inode)?;
            inode.size = end;
            self.note_size(&inode);
        }
        inode.modified = self.now;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// How many blocks of a range are not there.
    fn holes_in(&self, inode: &Inode, blocks: Range<u64>) -> Result<u64> {
        let (mut at, mut holes) = (blocks.start, 0);
        while at < blocks.end {
            let run = self.run_at(inode, at)?;
            let len = run.len.min(blocks.end - at);
            if run.place == RunPlace::Hole {
                holes += len;
            }
            at += len;
        }
        Ok(holes)
    }

    /// Maps every hole of a range; what was mapped, or may have been in part, is noted in `taken`.
    fn fill_holes(
        &mut self,
        inode: &mut Inode,
        blocks: Range<u64>,
        taken: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let mut at = blocks.start;
        while at < blocks.end {
            let run = self.run_at(inode, at)?;
            let len = run.len.min(blocks.end - at).min(MAX_UNWRITTEN.into());
            if run.place != RunPlace::Hole {
                at += len;
                continue;
            }
            let (start, len) = self.allocate_run(inode, Run { len, ..run })?;
            taken.push(at..at + len);
            self.map_zeros(inode, at, start, len)?;
            at += len;
        }
        Ok(())
    }

    /// Maps blocks just taken so that they read as zeros; where that fails, those that are not mapped are given back.
    fn map_zeros(&mut self, inode: &mut Inode, logical: u64, start: u64, len: u64) -> Result<()> {
        let block_size = self.block_size();
        if !inode.has_flag(flags::EXTENTS) {
            if let Err(error) = self.cache.zero_data(start * block_size, len * block_size) {
                self.free_blocks(start, len)?;
                return Err(error);
            }
            return self.map_run(inode, logical, start, len);
        }
        // Both fit: logical numbers end where extents' do, and the length is that of one unwritten extent at most.
        let extent = Extent { logical: logical as u32, len: len as u32, start, unwritten: true };
        if let Err(error) = self.insert_extent(inode, extent) {
            self.free_blocks(start, len)?;
            return Err(error);
        }
        inode.sectors += len * (block_size / 512);
        Ok(())
    }
}
