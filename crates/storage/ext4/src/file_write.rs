//! Changing the content of inodes: writing, truncating, punching.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::features::ro_compat;
use crate::inode::{Inode, flags};
use crate::mapping::{self, Run, RunPlace};
use crate::protect;
use crate::volume::Ext4;

/// The largest file that counts as small in the superblock.
pub(crate) const SMALL_FILE: u64 = 0x7fff_ffff;

/// Up to this many bytes data and the zeros around it are put together for a single write.
const ONE_WRITE: u64 = 1 << 16;

/// How many blocks a map may need for itself when it takes up one more run.
const MAP_GROWTH: u64 = 8;

impl Ext4 {
    /// Refuses to change content that is not understood.
    pub(crate) fn check_content(&self, inode: &Inode) -> Result<()> {
        if inode.has_flag(flags::ENCRYPT) {
            return Err(Error::unsupported("the file is encrypted"));
        }
        if inode.has_flag(flags::VERITY) {
            return Err(Error::unsupported("the file is sealed by fs-verity"));
        }
        protect::check_mutable(inode)
    }

    /// Writes to a file and records its size and times.
    pub(crate) fn write_content(&mut self, mut inode: Inode, data: &[u8], offset: u64) -> Result<()> {
        self.check_content(&inode)?;
        if offset != inode.size {
            protect::check_free(&inode)?;
        }
        let end = offset.checked_add(data.len() as u64);
        let limit = mapping::logical_limit(&self.superblock, &inode) * self.block_size();
        let Some(end) = end.filter(|end| *end <= limit) else {
            return Err(Error::plain(ErrorKind::InvalidInput, "the file would be larger than it can be"));
        };
        if data.is_empty() {
            return Ok(());
        }
        if self.write_inline(&mut inode, data, offset)? {
            return self.put_changed(inode);
        }
        self.move_inline_out(&mut inode)?;
        if offset > inode.size {
            self.zero_tail(&inode)?;
        }
        let (written, result) = self.write_blocks(&mut inode, data, offset);
        self.keep_room(&inode, offset..offset + written)?;
        if written > 0 {
            inode.size = inode.size.max(offset + written);
            debug_assert!(inode.size <= end.max(inode.size));
        }
        inode.modified = self.now;
        inode.changed = self.now;
        self.note_size(&inode);
        self.put_inode(&inode)?;
        result
    }

    /// Records in the superblock that there is a large file.
    pub(crate) fn note_size(&mut self, inode: &Inode) {
        if inode.size > SMALL_FILE && !inode.is_directory() {
            self.superblock.features.ro_compat |= ro_compat::LARGE_FILE;
        }
    }

    /// Writes data through the map, which it completes; answers how many bytes were written, with the error
    /// where those are not all.
    pub(crate) fn write_blocks(&mut self, inode: &mut Inode, data: &[u8], offset: u64) -> (u64, Result<()>) {
        let mut done = 0;
        while done < data.len() {
            match self.write_run(inode, &data[done..], offset + done as u64) {
                Ok(step) => done += step,
                Err(error) => return (done as u64, Err(error)),
            }
        }
        (done as u64, Ok(()))
    }

    /// Writes as much as one run holds; answers how many bytes that is.
    fn write_run(&mut self, inode: &mut Inode, data: &[u8], offset: u64) -> Result<usize> {
        let block_size = self.block_size();
        let (first, within) = (offset / block_size, offset % block_size);
        let blocks = (within + data.len() as u64).div_ceil(block_size);
        let run = self.run_at(inode, first)?;
        let run = Run { len: run.len.min(blocks), ..run };
        let mut taken = None;
        let (start, len, fresh) = match run.place {
            RunPlace::Written(start) => (start, run.len, false),
            RunPlace::Unwritten(start) => (start, run.len, true),
            RunPlace::Hole => {
                let new = self.allocate_run(inode, run)?;
                taken = Some(new);
                (new.start, new.len, true)
            }
        };
        let step = (len * block_size - within).min(data.len() as u64) as usize;
        let at = start * block_size + within;
        let written = match fresh {
            true => self.write_fresh(start, len, within, &data[..step]),
            false => self.cache.write_content(&data[..step], at),
        };
        if let (Err(_), Some(taken)) = (&written, taken) {
            self.return_taken(taken)?;
        }
        written?;
        let growth = MAP_GROWTH * u64::from(self.superblock.cluster_blocks);
        match (run.place, taken) {
            (RunPlace::Unwritten(_), _) => self.mark_written(inode, first..first + len)?,
            (_, Some(taken)) => match self.map_taken(inode, first, taken, false) {
                // The data took the blocks that the map needs to grow: with less data there are some.
                Err(error) if error.kind() == ErrorKind::NoSpace && len > growth => {
                    let shorter = (len - growth) * block_size - within;
                    return self.write_run(inode, &data[..step.min(shorter as usize)], offset);
                }
                result => result?,
            },
            _ => {}
        }
        Ok(step)
    }

    /// Writes data into blocks whose old content means nothing; what surrounds it must read as zeros.
    fn write_fresh(&mut self, start: u64, len: u64, within: u64, data: &[u8]) -> Result<()> {
        let block_size = self.block_size();
        let (first, total) = (start * block_size, len * block_size);
        let end = within + data.len() as u64;
        if total <= ONE_WRITE && (within > 0 || end < total) {
            let mut blocks = vec![0; total as usize];
            blocks[within as usize..end as usize].copy_from_slice(data);
            return self.cache.write_content(&blocks, first);
        }
        self.zero_range(first..first + within)?;
        self.cache.write_content(data, first + within)?;
        self.zero_range(first + end..first + total)
    }

    pub(crate) fn zero_range(&mut self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.cache.zero_data(range.start, range.end - range.start)
    }

    /// Unmaps a range of logical blocks and gives back what it took.
    pub(crate) fn unmap(&mut self, inode: &mut Inode, range: Range<u64>) -> Result<()> {
        self.check_map(inode)?;
        self.allocator.windows.drop_of(inode.number);
        match inode.has_flag(flags::EXTENTS) {
            true => self.cut_extents(inode, range),
            false => self.cut_indirect(inode, range),
        }
    }

    /// Makes the rest of a file's last block zeros, so that growing shows nothing old.
    pub(crate) fn zero_tail(&mut self, inode: &Inode) -> Result<()> {
        let size = inode.size;
        self.zero_within(inode, size..size.next_multiple_of(self.block_size()))
    }

    /// Makes a range of bytes within one block zeros, where it is mapped.
    pub(crate) fn zero_within(&mut self, inode: &Inode, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let block_size = self.block_size();
        if let RunPlace::Written(start) = self.run_at(inode, range.start / block_size)?.place {
            let at = start * block_size + range.start % block_size;
            self.zero_range(at..at + (range.end - range.start))?;
        }
        Ok(())
    }

    /// Stamps a file whose content changed and writes its record.
    fn put_changed(&mut self, mut inode: Inode) -> Result<()> {
        inode.modified = self.now;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// Changes a file's length.
    pub(crate) fn truncate_content(&mut self, mut inode: Inode, size: u64) -> Result<()> {
        self.check_content(&inode)?;
        protect::check_free(&inode)?;
        let block_size = self.block_size();
        if size > mapping::logical_limit(&self.superblock, &inode) * block_size {
            return Err(Error::plain(ErrorKind::InvalidInput, "the file would be larger than it can be"));
        }
        if self.truncate_inline(&mut inode, size)? {
            return self.put_changed(inode);
        }
        self.move_inline_out(&mut inode)?;
        if size > inode.size {
            self.zero_tail(&inode)?;
        } else {
            let result = self.unmap(&mut inode, size.div_ceil(block_size)..u64::from(u32::MAX) + 1);
            self.put_inode(&inode)?;
            result?;
            self.zero_within(&inode, size..size.next_multiple_of(block_size))?;
        }
        inode.size = size;
        inode.modified = self.now;
        inode.changed = self.now;
        self.note_size(&inode);
        self.put_inode(&inode)
    }

    /// Makes a range of a file a hole.
    pub(crate) fn punch_content(&mut self, mut inode: Inode, offset: u64, len: u64) -> Result<()> {
        self.check_content(&inode)?;
        protect::check_free(&inode)?;
        let end = offset.saturating_add(len).min(inode.size);
        if offset >= end {
            return Ok(());
        }
        if self.punch_inline(&mut inode, offset..end)? {
            return self.put_changed(inode);
        }
        let block_size = self.block_size();
        let mut whole = offset.div_ceil(block_size)..end / block_size;
        if end == inode.size {
            // Nothing of the last block is left, however much of it the file has.
            whole.end = end.div_ceil(block_size);
        }
        if whole.start < whole.end {
            // Without room for a longer map this fails, and nothing has been changed.
            let result = self.unmap(&mut inode, whole.clone());
            self.put_inode(&inode)?;
            result?;
        }
        if whole.start > whole.end || (whole.is_empty() && offset / block_size == end / block_size) {
            self.zero_within(&inode, offset..end)?;
        } else {
            self.zero_within(&inode, offset..whole.start * block_size)?;
            self.zero_within(&inode, (whole.end * block_size).min(end)..end)?;
        }
        inode.modified = self.now;
        inode.changed = self.now;
        self.put_inode(&inode)
    }
}
