//! The ways to give a file blocks, take them or move them without writing content.

use std::ops::Range;

use vmwright_vfs::{FileType, InodeNumber};

use crate::error::{Error, ErrorKind, Place, Result};
use crate::inode::{Inode, flags};
use crate::mapping::{self, Run, RunPlace};
use crate::volume::Ext4;

fn invalid(detail: &'static str) -> Error {
    Error::plain(ErrorKind::InvalidInput, detail)
}

impl Ext4 {
    /// Takes a range of bytes out of a file; what follows moves up and the file becomes shorter.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where offset or length are not multiples of the cluster size, or the range is empty or reaches
    /// the file's end; `Unsupported` for files without extents.
    pub fn collapse_range(&mut self, inode: InodeNumber, offset: u64, len: u64) -> Result<()> {
        let mut inode = self.file_to_change(inode)?;
        let (from, count) = self.blocks_to_move(&mut inode, offset, len)?;
        if offset.checked_add(len).is_none_or(|end| end >= inode.size) {
            return Err(invalid("the range to take out reaches the file's end"));
        }
        let result = self.unmap(&mut inode, from..from + count);
        self.put_inode(&inode)?;
        result?;
        self.shift_extents(&mut inode, from + count, -(count as i64))?;
        inode.size -= len;
        self.finish_change(inode.clone())?;
        // What was moved is entered already: where the leaf is full and the volume too, the extents stay two.
        match self.join_extents(&mut inode, from) {
            Err(error) if error.kind() == ErrorKind::NoSpace => Ok(()),
            result => result.and_then(|()| self.finish_change(inode)),
        }
    }

    /// Puts a hole into a file; what follows moves back and the file becomes longer.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where offset or length are not multiples of the cluster size, the offset is not within the file
    /// or the file would become too long; `Unsupported` for files without extents; `NoSpace` where the map
    /// cannot grow.
    pub fn insert_range(&mut self, inode: InodeNumber, offset: u64, len: u64) -> Result<()> {
        let mut inode = self.file_to_change(inode)?;
        let (from, count) = self.blocks_to_move(&mut inode, offset, len)?;
        if offset >= inode.size {
            return Err(invalid("the place for the hole is not within the file"));
        }
        let limit = mapping::logical_limit(&self.superblock, &inode);
        let longest = self.extents_end(&inode)?.max(inode.size.div_ceil(self.block_size()));
        if longest.checked_add(count).is_none_or(|end| end > limit) {
            return Err(invalid("the file would be larger than it can be"));
        }
        self.split_extent(&mut inode, from)?;
        self.shift_extents(&mut inode, from, count as i64)?;
        inode.size += len;
        self.finish_change(inode)
    }

    /// A regular file that may be changed.
    fn file_to_change(&self, number: InodeNumber) -> Result<Inode> {
        self.check_writable()?;
        let narrow = u32::try_from(number.0);
        let inode = self
            .inode(narrow.map_err(|_| Error::corrupt(Place::Inode(number.0), "there is no such inode"))?)?;
        if inode.file_type != FileType::Regular {
            return Err(invalid("the inode is not a regular file"));
        }
        self.check_content(&inode)?;
        crate::protect::check_free(&inode)?;
        Ok(inode)
    }

    fn finish_change(&mut self, mut inode: Inode) -> Result<()> {
        inode.modified = self.now;
        inode.changed = self.now;
        self.note_size(&inode);
        self.put_inode(&inode)
    }

    /// Checks a range that is to be taken out or put in; answers it in blocks.
    fn blocks_to_move(&mut self, inode: &mut Inode, offset: u64, len: u64) -> Result<(u64, u64)> {
        self.move_inline_out(inode)?;
        if !inode.has_flag(flags::EXTENTS) {
            return Err(Error::unsupported("moving the content of a file without extents"));
        }
        let unit = self.block_size() * u64::from(self.superblock.cluster_blocks);
        if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) || len == 0 {
            return Err(invalid("content is moved by whole clusters only"));
        }
        let end = offset.checked_add(len).map(|end| end / self.block_size());
        let limit = mapping::logical_limit(&self.superblock, inode);
        if end.is_none_or(|end| end > limit) {
            return Err(invalid("the range is beyond what a file can have"));
        }
        Ok((offset / self.block_size(), len / self.block_size()))
    }

    /// Gives a file blocks for a range of bytes, which reads as before, zeros where there was nothing; where that
    /// fails, nothing is changed.
    ///
    /// The blocks are unwritten, so that they cost no writing now. Block maps know no such thing: zeros are written,
    /// and blocks past the end, which could not be told from damage, are refused.
    pub(crate) fn allocate_content(
        &mut self,
        mut inode: Inode,
        offset: u64,
        len: u64,
        keep_size: bool,
    ) -> Result<()> {
        self.check_content(&inode)?;
        let block_size = self.block_size();
        let limit = mapping::logical_limit(&self.superblock, &inode) * block_size;
        let Some(end) = offset.checked_add(len).filter(|end| *end <= limit && len > 0) else {
            return Err(invalid("the range is empty or beyond what a file can have"));
        };
        let in_extents = inode.has_flag(flags::EXTENTS | flags::INLINE_DATA);
        let mapped_end = inode.size.next_multiple_of(block_size);
        if keep_size && end > mapped_end && !in_extents {
            return Err(Error::unsupported("blocks beyond the end of a file without extents"));
        }
        let (first, last) = (offset / block_size, end.div_ceil(block_size));
        self.check_room(&inode, first, last)?;
        self.move_inline_out(&mut inode)?;
        let mut filled = Vec::new();
        if let Err(error) = self.fill_holes(&mut inode, first..last, &mut filled) {
            for range in filled {
                self.unmap(&mut inode, range)?;
            }
            self.put_inode(&inode)?;
            return Err(error);
        }
        if !keep_size && end > inode.size {
            self.zero_tail(&inode)?;
            inode.size = end;
        }
        self.finish_change(inode)
    }

    /// Refuses early what would run out of space.
    fn check_room(&self, inode: &Inode, first: u64, last: u64) -> Result<()> {
        let inline = inode.has_flag(flags::INLINE_DATA);
        let (mut at, mut missing) = if inline { (last, last - first) } else { (first, 0) };
        while at < last {
            let run = self.run_at(inode, at)?;
            let len = run.len.min(last - at);
            missing += if run.place == RunPlace::Hole { len } else { 0 };
            at += len;
        }
        let free = self.superblock.free_blocks * u64::from(self.superblock.cluster_blocks);
        match missing <= free {
            true => Ok(()),
            false => Err(Error::plain(ErrorKind::NoSpace, "the filesystem has too few free blocks")),
        }
    }

    /// Maps every hole of a range; what was mapped, or may have been in part, is noted in `filled`.
    fn fill_holes(
        &mut self,
        inode: &mut Inode,
        blocks: Range<u64>,
        filled: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let block_size = self.block_size();
        let unwritten = inode.has_flag(flags::EXTENTS);
        let mut at = blocks.start;
        while at < blocks.end {
            let run = self.run_at(inode, at)?;
            let hole = Run { len: run.len.min(blocks.end - at), ..run };
            if run.place != RunPlace::Hole {
                at += hole.len;
                continue;
            }
            let taken = self.allocate_run(inode, hole)?;
            let range = taken.start * block_size..(taken.start + taken.len) * block_size;
            if !unwritten && let Err(error) = self.zero_range(range) {
                self.return_taken(taken)?;
                return Err(error);
            }
            filled.push(at..at + taken.len);
            self.map_taken(inode, at, taken, unwritten)?;
            at += taken.len;
        }
        Ok(())
    }
}
