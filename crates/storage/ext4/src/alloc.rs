//! Taking and giving back blocks, in whole clusters.
//!
//! ```text
//! wanted: blocks, near a goal
//!   │  exactly at the goal, where a file goes on
//!   │  else a run that holds all of them: the goal's group first, then the next that has one
//!   ▼  else runs of an eighth, … down to single clusters
//! index of groups (no run of group n is longer than …)  →  bitmap of the group  →  first run that fits
//! ```

use std::ops::Range;

use crate::bitmap;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::group_index::GroupIndex;
use crate::volume::Ext4;
use crate::windows::Windows;

/// How many times shorter than the last runs are that are looked for next.
const SHORTER: u32 = 8;

/// What allocation keeps in mind from one time to the next; none of it is on the volume.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    /// For each group a length that no free run in it exceeds, in clusters.
    runs: GroupIndex,
    /// For each group the number of free inodes.
    pub(crate) inodes: GroupIndex,
    /// How many directories there are.
    pub(crate) directories: u64,
    /// Where the metadata of all groups is, in ranges that are sorted and do not touch; empty until it is needed.
    pub(crate) metadata: Vec<Range<u64>>,
    /// Room kept for files that are growing.
    pub(crate) windows: Windows,
}

/// What is looked for in the bitmap of one group.
#[derive(Debug, Clone, Copy)]
struct Search {
    group: u32,
    /// The bit to begin at.
    from: u32,
    /// How many bits a run must have.
    least: u32,
    /// Whose room may be used.
    owner: u32,
}

impl Ext4 {
    /// Makes the indexes over the groups when something is first taken or given back.
    pub(crate) fn allocator(&mut self) -> &mut Allocator {
        if self.allocator.runs.groups() != self.groups.count() {
            let groups = || self.groups.iter();
            self.allocator.runs = GroupIndex::new(groups().map(|group| group.free_blocks));
            self.allocator.inodes = GroupIndex::new(groups().map(|group| group.free_inodes));
            self.allocator.directories = groups().map(|group| u64::from(group.used_dirs)).sum();
        }
        &mut self.allocator
    }

    /// Takes up to `want` neighbouring blocks, rounded up to clusters, at `goal` or near it; answers the first
    /// one and how many, which may be more than was wanted by less than a cluster.
    pub(crate) fn allocate_blocks(&mut self, goal: u64, want: u32) -> Result<(u64, u32)> {
        self.allocate_near(goal, want, false, 0)
    }

    /// The same for the inode `owner`, 0 for none; `exact` where even a short run at the goal is best.
    pub(crate) fn allocate_near(
        &mut self,
        goal: u64,
        want: u32,
        exact: bool,
        owner: u32,
    ) -> Result<(u64, u32)> {
        let cluster = self.superblock.cluster_blocks;
        let want = want.max(1).div_ceil(cluster);
        let (group, from) = match self.superblock.is_valid_block(goal) {
            true => self.superblock.bit_of_block(goal)?,
            false => (0, 0),
        };
        self.allocator();
        let mut found = None;
        if exact {
            found = self.run_exactly_at(Search { group, from, least: 1, owner })?;
        }
        if found.is_none() {
            found = self.run_anywhere(Search { group, from, least: want, owner })?;
        }
        if found.is_none() && self.allocator.windows.clear() {
            found = self.run_anywhere(Search { group, from, least: want, owner })?;
        }
        let Some((group, start, len)) = found else {
            return Err(Error::plain(ErrorKind::NoSpace, "the filesystem has no free blocks"));
        };
        let len = len.min(want);
        self.take_blocks(group, start, len)?;
        let first = self.superblock.group_start(group) + u64::from(start) * u64::from(cluster);
        Ok((first, len * cluster))
    }

    /// The free run that begins at a bit, where that is free and its group known.
    fn run_exactly_at(&mut self, search: Search) -> Result<Option<(u32, u32, u32)>> {
        let Search { group, from, owner, .. } = search;
        let len = self.superblock.group_clusters(group);
        if self.groups.get(group)?.free_blocks == 0 || from >= len {
            return Ok(None);
        }
        let block = self.block_bitmap(group)?;
        let bits = self.cache.read(block)?;
        let end = bitmap::find(&bits, from, len, true);
        let clear = self.allocator.windows.clear_run(self.bit_range(group, from, end), owner, 1);
        Ok(clear.filter(|(skip, _)| *skip == 0).map(|(_, len)| (group, from, len)))
    }

    /// A range of bits as clusters counted from the beginning of the volume.
    fn bit_range(&self, group: u32, from: u32, to: u32) -> Range<u64> {
        let start = u64::from(group) * u64::from(self.superblock.clusters_per_group());
        start + u64::from(from)..start + u64::from(to)
    }

    /// A run as long as wanted, in the goal's group or one after it, else the next shorter one.
    fn run_anywhere(&mut self, search: Search) -> Result<Option<(u32, u32, u32)>> {
        let mut least = search.least;
        loop {
            // Where no group has such a run, the index knows it after having been told once by each.
            if least <= self.allocator.runs.largest()
                && let Some(found) = self.run_in_any_group(Search { least, ..search })?
            {
                return Ok(Some(found));
            }
            if least == 1 {
                return Ok(None);
            }
            least = (least / SHORTER).max(1);
        }
    }

    fn run_in_any_group(&mut self, search: Search) -> Result<Option<(u32, u32, u32)>> {
        let groups = self.groups.count();
        for (first, end) in [(search.group, groups), (0, search.group)] {
            let mut next = first;
            while let Some(group) = self.allocator.runs.next(next, search.least).filter(|group| *group < end)
            {
                let from = if group == search.group { search.from } else { 0 };
                if let Some((start, len)) = self.run_in_group(Search { group, from, ..search })? {
                    return Ok(Some((group, start, len)));
                }
                next = group + 1;
            }
        }
        Ok(None)
    }

    /// Finds a run of free bits in a group: the first from `from` on, else the first before it.
    fn run_in_group(&mut self, search: Search) -> Result<Option<(u32, u32)>> {
        let Search { group, from, least, owner } = search;
        let block = self.block_bitmap(group)?;
        let bits = self.cache.read(block)?;
        let len = self.superblock.group_clusters(group);
        let first_free = self.state(group)?.first_free.min(len);
        let from = if from >= len { first_free } else { from.max(first_free) };
        let mut longest = 0;
        for (begin, end) in [(from, len), (first_free, from)] {
            let mut at = bitmap::find(&bits, begin, end, false);
            if begin == first_free && begin < end {
                self.state(group)?.first_free = at.max(first_free);
            }
            while at < end {
                let to = bitmap::find(&bits, at, len, true);
                if to - at >= least {
                    let clear = self.allocator.windows.clear_run(self.bit_range(group, at, to), owner, least);
                    if let Some((skip, len)) = clear {
                        return Ok(Some((at + skip, len)));
                    }
                }
                longest = longest.max(to - at);
                at = bitmap::find(&bits, to, end, false);
            }
        }
        self.allocator.runs.set(group, longest);
        Ok(None)
    }

    fn take_blocks(&mut self, group: u32, start: u32, len: u32) -> Result<()> {
        // They agreed at first; groups that share a bitmap fall out with theirs.
        let Some(left) = self.groups.get(group)?.free_blocks.checked_sub(len) else {
            return Err(Error::corrupt(Place::Group(group), "more blocks are free than its count says"));
        };
        bitmap::fill(self.change_block_bitmap(group)?, start, start + len, true);
        self.groups.modify(group)?.free_blocks = left;
        self.superblock.free_blocks = self.superblock.free_blocks.saturating_sub(len.into());
        let state = self.state(group)?;
        if state.first_free == start {
            state.first_free = start + len;
        }
        let runs = &mut self.allocator().runs;
        runs.set(group, runs.get(group).min(left));
        self.changed = true;
        Ok(())
    }

    /// Takes the cluster of a block if it is free; answers whether it was.
    pub(crate) fn claim_block(&mut self, block: u64) -> Result<bool> {
        let (group, index) = self.superblock.bit_of_block(block)?;
        let at = self.block_bitmap(group)?;
        let free = !bitmap::is_set(&self.cache.read(at)?, index);
        if free {
            self.take_blocks(group, index, 1)?;
        }
        Ok(free)
    }

    /// Gives blocks back, and with them the rest of their clusters.
    pub(crate) fn free_blocks(&mut self, start: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let cluster = u64::from(self.superblock.cluster_blocks);
        let end = start.saturating_add(len).min(self.superblock.blocks);
        let mut at = start;
        while at < end {
            let (group, index) = self.superblock.group_of_block(at)?;
            let left = u64::from(self.superblock.group_blocks(group) - index);
            let blocks = (end - at).min(left);
            let from = u64::from(index) / cluster;
            let to = (u64::from(index) + blocks).div_ceil(cluster);
            let first = self.superblock.group_start(group) + from * cluster;
            self.cache.forget(first, (to - from) * cluster);
            self.free_bits(group, from as u32, to as u32)?;
            at += blocks;
        }
        Ok(())
    }

    fn free_bits(&mut self, group: u32, from: u32, to: u32) -> Result<()> {
        let bits = self.change_block_bitmap(group)?;
        if bitmap::find(bits, from, to, false) != to {
            let block = self.superblock.group_start(group)
                + u64::from(from) * u64::from(self.superblock.cluster_blocks);
            return Err(Error::corrupt(
                Place::Block(block),
                "a block in use, or one after it, is marked free",
            ));
        }
        bitmap::fill(bits, from, to, false);
        let count = to - from;
        let descriptor = self.groups.modify(group)?;
        descriptor.free_blocks += count;
        let free = descriptor.free_blocks;
        self.superblock.free_blocks += u64::from(count);
        let state = self.state(group)?;
        state.first_free = state.first_free.min(from);
        let runs = &mut self.allocator().runs;
        // What is freed may join the longest run before and that after it.
        let longest = runs.get(group).saturating_mul(2).saturating_add(count);
        runs.set(group, longest.min(free));
        self.changed = true;
        Ok(())
    }
}
