//! Inode tables: wider inodes, and tables without parts that were never written.

use super::Tuning;
use crate::error::{Error, ErrorKind, Result};
use crate::features::incompat;

impl Tuning<'_> {
    /// Gives every group a table of wider inodes, in another place; the old one is free then.
    pub(super) fn widen_inodes(&mut self, size: u16) -> Result<()> {
        let (old, block_size) = (self.volume.superblock.clone(), self.volume.superblock.block_size);
        if size == old.inode_size {
            return Ok(());
        }
        let invalid = |detail| Err(Error::plain(ErrorKind::InvalidInput, detail));
        if !size.is_power_of_two() || u32::from(size) > block_size || size < old.inode_size {
            return invalid("inodes become wider only, up to the size of a block");
        }
        if old.raw().s_rev_level.get() == 0 {
            return Err(Error::unsupported("wider inodes in a volume of the first revision"));
        }
        let len = self.volume.cache.disk().len();
        let new = old.edited(len, |raw| {
            raw.s_inode_size.set(size);
            raw.s_overhead_blocks.set(0);
        })?;
        let (had, has) = (old.inode_table_blocks(), new.inode_table_blocks());
        let more = (has - had).saturating_mul(old.groups.into());
        if more.saturating_add(has) > old.free_blocks * u64::from(old.cluster_blocks) {
            return Err(Error::plain(ErrorKind::NoSpace, "the filesystem has no room for wider inodes"));
        }
        let anywhere = old.features.has_incompat(incompat::FLEX_BG);
        // Not while bitmaps are still made as the old tables lie.
        for group in 0..old.groups {
            self.space.touch(&mut self.volume, group)?;
        }
        for group in 0..old.groups {
            let volume = &mut self.volume;
            let found = self.space.take_whole(volume, has, (!anywhere).then_some(group))?;
            let found = found.ok_or_else(|| {
                let problem = "no room in one piece for a table of wider inodes";
                Error::plain(ErrorKind::NoSpace, problem)
            })?;
            self.copy_table(group, found.start, size)?;
            let table = self.volume.groups.get(group)?.inode_table;
            self.volume.cache.forget(table, had);
            self.space.mark(&mut self.volume, &(table..table + had), false)?;
            self.volume.groups.modify(group)?.inode_table = found.start;
        }
        self.volume.superblock = new;
        self.reseal_records()
    }

    fn copy_table(&mut self, group: u32, to: u64, size: u16) -> Result<()> {
        let volume = &mut self.volume;
        let (old, block) = (usize::from(volume.superblock.inode_size), volume.block_size());
        let descriptor = volume.groups.get(group)?.clone();
        let used = volume.superblock.inodes_per_group - descriptor.itable_unused;
        let new = usize::from(size);
        let per_block = block as usize / new;
        let whole = u64::from(volume.superblock.inodes_per_group).div_ceil(per_block as u64);
        volume.cache.forget(to, whole);
        for index in 0..u64::from(used).div_ceil(per_block as u64) {
            let mut bytes = vec![0; block as usize];
            for (slot, at) in bytes.chunks_exact_mut(new).zip(index as usize * per_block..) {
                if at >= used as usize {
                    break;
                }
                let from = at * old;
                let source = volume.cache.read(descriptor.inode_table + from as u64 / block)?;
                let within = from % block as usize;
                slot[..old].copy_from_slice(&source[within..within + old]);
            }
            volume.cache.put(to + index, bytes)?;
        }
        let written = u64::from(used).div_ceil(per_block as u64);
        if written < whole {
            volume.cache.zero_data((to + written) * block, (whole - written) * block)?;
        }
        Ok(())
    }

    /// Seals the records of all inodes, whose lengths have changed.
    fn reseal_records(&mut self) -> Result<()> {
        if !self.volume.superblock.features.metadata_csum() {
            return Ok(());
        }
        let superblock = self.volume.superblock.clone();
        for group in 0..superblock.groups {
            crate::reseal::seal_records(&mut self.volume, &superblock, group)?;
        }
        Ok(())
    }

    /// Makes everything that was left unwritten because descriptors said so.
    pub(super) fn write_unwritten(&mut self) -> Result<()> {
        let per_group = self.volume.superblock.inodes_per_group;
        let (size, block) = (u64::from(self.volume.superblock.inode_size), self.volume.block_size());
        self.volume.cache.flush()?;
        for group in 0..self.volume.superblock.groups {
            self.space.touch(&mut self.volume, group)?;
            self.numbers.touch(&mut self.volume, group)?;
            let descriptor = self.volume.groups.get(group)?.clone();
            let unused = u64::from(descriptor.itable_unused);
            let from = (u64::from(per_group) - unused) * size;
            let at = descriptor.inode_table * block + from;
            let (first, count) = (at / block, (unused * size).div_ceil(block) + 1);
            self.volume.cache.flush()?;
            self.volume.cache.forget(first, count);
            if unused > 0 {
                self.volume.cache.zero_data(at, unused * size)?;
            }
            let descriptor = self.volume.groups.modify(group)?;
            descriptor.itable_unused = 0;
            descriptor.flags = 0;
        }
        Ok(())
    }
}
