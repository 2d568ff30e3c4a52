//! Taking and giving back inodes: directories spread over the volume, files beside their directory.

use crate::bitmap;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::group::INODE_ZEROED;
use crate::inode::{Inode, ROOT_INODE};
use crate::volume::Ext4;

/// `i_flags`: the directories in this one are the tops of trees of their own.
const TOP_OF_TREES: u32 = 0x2_0000;

/// What is free in groups that lie together, each in the mean of one group.
#[derive(Debug, Clone, Copy, Default)]
struct Together {
    free_inodes: u64,
    free_blocks: u64,
    directories: u64,
}

impl Ext4 {
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

    /// Takes an inode that a directory will name.
    pub(crate) fn allocate_inode(&mut self, parent: &Inode, directory: bool) -> Result<u32> {
        let per_group = self.superblock.inodes_per_group;
        let groups = self.groups.count();
        self.allocator();
        let first = match directory {
            true => self.group_for_directory(parent)?,
            false => (parent.number - 1) / per_group,
        };
        for (first, end) in [(first, groups), (0, first)] {
            let mut next = first;
            while let Some(group) = self.allocator.inodes.next(next, 1).filter(|group| *group < end) {
                if let Some(index) = self.free_inode_in(group)? {
                    self.take_inode(group, index, directory)?;
                    return Ok(group * per_group + index + 1);
                }
                next = group + 1;
            }
        }
        Err(Error::plain(ErrorKind::NoSpace, "the filesystem has no free inodes"))
    }

    fn free_inode_in(&mut self, group: u32) -> Result<Option<u32>> {
        let per_group = self.superblock.inodes_per_group;
        let block = self.inode_bitmap(group)?;
        let reserved = self.superblock.first_inode() - 1;
        let reserved = reserved.saturating_sub(group.saturating_mul(per_group)).min(per_group);
        let from = self.state(group)?.first_free_inode.max(reserved).min(per_group);
        let index = bitmap::find(&self.cache.read(block)?, from, per_group, false);
        self.state(group)?.first_free_inode = index;
        Ok((index < per_group).then_some(index))
    }

    /// The group for a new directory: the emptiest for the top of a tree, else near its parent.
    fn group_for_directory(&self, parent: &Inode) -> Result<u32> {
        let flex = self.superblock.flex_groups().clamp(1, self.groups.count());
        let own = (parent.number - 1) / self.superblock.inodes_per_group;
        let clusters = u64::from(self.groups.count());
        let mean = Together {
            free_inodes: u64::from(self.superblock.free_inodes) / clusters,
            free_blocks: self.superblock.free_blocks / clusters,
            directories: self.allocator.directories / clusters,
        };
        if parent.number == ROOT_INODE || parent.has_flag(TOP_OF_TREES) {
            return self.group_for_tree(flex, mean);
        }
        // A directory leaves its parent's groups once they have far more directories, or far less room, than most.
        let per_group = u64::from(self.superblock.inodes_per_group);
        let most = mean.directories + (per_group / 16).max(1) * u64::from(flex);
        let inodes = mean.free_inodes.saturating_sub(per_group / 4).max(1);
        let blocks = mean.free_blocks.saturating_sub(u64::from(self.superblock.clusters_per_group()) / 4);
        let begin = own / flex * flex;
        for step in 0..self.groups.count().div_ceil(flex) {
            let first = (u64::from(begin) + u64::from(step) * u64::from(flex)) as u32;
            let first = if first < self.groups.count() { first } else { step * flex % self.groups.count() };
            let here = self.together(first / flex * flex, flex)?;
            if here.directories <= most && here.free_inodes >= inodes && here.free_blocks >= blocks {
                return Ok(if step == 0 { own } else { first });
            }
        }
        Ok(own)
    }

    /// The groups with the fewest directories among those with more room than most.
    fn group_for_tree(&self, flex: u32, mean: Together) -> Result<u32> {
        let mut best: Option<(u64, u32)> = None;
        for first in (0..self.groups.count()).step_by(flex as usize) {
            let here = self.together(first, flex)?;
            let roomy = here.free_inodes > 0
                && here.free_inodes >= mean.free_inodes
                && here.free_blocks >= mean.free_blocks;
            if roomy && best.is_none_or(|(fewest, _)| here.directories < fewest) {
                best = Some((here.directories, first));
            }
        }
        Ok(best.map_or(0, |(_, first)| first))
    }

    /// What is free in the groups from `first` on, in the mean of one.
    fn together(&self, first: u32, flex: u32) -> Result<Together> {
        let end = first.saturating_add(flex).min(self.groups.count());
        let mut all = Together::default();
        for group in first..end {
            let group = self.groups.get(group)?;
            all.free_inodes += u64::from(group.free_inodes);
            all.free_blocks += u64::from(group.free_blocks);
            all.directories += u64::from(group.used_dirs);
        }
        let count = u64::from(end.saturating_sub(first)).max(1);
        // Few directories in many groups are told apart too.
        Ok(Together {
            free_inodes: all.free_inodes / count,
            free_blocks: all.free_blocks / count,
            directories: all.directories,
        })
    }

    fn take_inode(&mut self, group: u32, index: u32, directory: bool) -> Result<()> {
        // A group with inodes in use has a block bitmap too, as kernels see to.
        self.block_bitmap(group)?;
        let Some(left) = self.groups.get(group)?.free_inodes.checked_sub(1) else {
            return Err(Error::corrupt(Place::Group(group), "more inodes are free than its count says"));
        };
        self.clear_records(group, index)?;
        bitmap::fill(self.change_inode_bitmap(group)?, index, index + 1, true);
        let per_group = self.superblock.inodes_per_group;
        let descriptor = self.groups.modify(group)?;
        descriptor.free_inodes = left;
        descriptor.used_dirs = descriptor.used_dirs.saturating_add(directory.into());
        descriptor.itable_unused = descriptor.itable_unused.min(per_group - index - 1);
        self.superblock.free_inodes = self.superblock.free_inodes.saturating_sub(1);
        let allocator = self.allocator();
        allocator.inodes.set(group, left);
        allocator.directories += u64::from(directory);
        self.changed = true;
        Ok(())
    }

    /// Makes zeros of the records, up to that of an inode about to be taken, that were beyond those ever used: a table
    /// that was never zeroed holds anything there, and nobody looked so far.
    fn clear_records(&mut self, group: u32, index: u32) -> Result<()> {
        let per_group = self.superblock.inodes_per_group;
        let descriptor = self.groups.get(group)?;
        let used = per_group - descriptor.itable_unused;
        if descriptor.flags & INODE_ZEROED != 0 || index < used || !self.superblock.features.group_csum() {
            return Ok(());
        }
        for index in used..=index {
            let (block, at) = self.inode_location(group * per_group + index + 1)?;
            let size = usize::from(self.superblock.inode_size);
            self.cache.modify(block)?[at..at + size].fill(0);
        }
        Ok(())
    }

    /// Gives an inode back.
    pub(crate) fn free_inode(&mut self, number: u32, directory: bool) -> Result<()> {
        let per_group = self.superblock.inodes_per_group;
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        let bits = self.change_inode_bitmap(group)?;
        if !bitmap::is_set(bits, index) {
            let place = Place::Inode(number.into());
            return Err(Error::corrupt(place, "it is in use but marked free"));
        }
        bitmap::fill(bits, index, index + 1, false);
        let descriptor = self.groups.modify(group)?;
        descriptor.free_inodes += 1;
        descriptor.used_dirs = descriptor.used_dirs.saturating_sub(directory.into());
        let free = descriptor.free_inodes;
        self.superblock.free_inodes += 1;
        let state = self.state(group)?;
        state.first_free_inode = state.first_free_inode.min(index);
        let allocator = self.allocator();
        allocator.inodes.set(group, free);
        allocator.directories = allocator.directories.saturating_sub(directory.into());
        allocator.windows.drop_of(number);
        self.changed = true;
        Ok(())
    }
}
