//! Taking blocks for the holes of files, and entering them into maps.

use std::ops::Range;

use vmwright_vfs::FileType;

use crate::error::{Error, Place, Result};
use crate::extents::{Extent, MAX_UNWRITTEN};
use crate::inode::{Inode, flags};
use crate::mapping::Run;
use crate::volume::Ext4;

/// From this many groups that lie together on, the data of files leaves the first one to directories and maps.
const FLEX_FOR_DIRECTORIES: u32 = 4;

/// How long a first write must be for room to be kept behind it, in bytes.
const LONG_WRITE: u64 = 16 << 10;

/// The least and the most clusters of room kept for a file that grows.
const ROOM: Range<u64> = 128..2048;

/// The clusters of room for a file when much of what is free is kept for others.
const LITTLE_ROOM: u64 = 16;

/// Blocks for a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Whether their clusters were free before; otherwise the file has other blocks in their only cluster.
    pub(crate) fresh: bool,
}

impl Ext4 {
    /// Refuses maps that have no way to share a cluster.
    pub(crate) fn check_map(&self, inode: &Inode) -> Result<()> {
        let mapped = inode.has_blocks(&self.superblock) && !inode.has_flag(flags::EXTENTS);
        if mapped && self.superblock.cluster_blocks > 1 {
            return Err(Error::unsupported("a file without extents on a volume of clusters (bigalloc)"));
        }
        Ok(())
    }

    /// Takes blocks for a hole, as many as there are in one piece.
    pub(crate) fn allocate_run(&mut self, inode: &Inode, hole: Run) -> Result<Taken> {
        self.check_map(inode)?;
        let cluster = u64::from(self.superblock.cluster_blocks);
        let within = hole.logical % cluster;
        let mut wanted = hole.len.min(MAX_UNWRITTEN.into());
        if cluster > 1 {
            if let Some(start) = self.cluster_in_use(inode, hole.logical)? {
                let len = wanted.min(cluster - within);
                return Ok(Taken { start: start + within, len, fresh: false });
            }
            let end = hole.logical + wanted;
            let last = end - end % cluster;
            if last < end && hole.logical < last && self.cluster_in_use(inode, last)?.is_some() {
                wanted = last - hole.logical;
            }
        }
        let (goal, exact) = self.data_goal(inode, hole.logical)?;
        let (start, len) = self.allocate_near(goal, (within + wanted) as u32, exact, inode.number)?;
        Ok(Taken { start: start + within, len: wanted.min(u64::from(len) - within), fresh: true })
    }

    /// Gives back what was taken and is not mapped.
    pub(crate) fn return_taken(&mut self, taken: Taken) -> Result<()> {
        if taken.fresh { self.free_blocks(taken.start, taken.len) } else { Ok(()) }
    }

    /// The first block of the cluster in which a logical block belongs, where the file already has a part of it.
    fn cluster_in_use(&self, inode: &Inode, logical: u64) -> Result<Option<u64>> {
        let cluster = u64::from(self.superblock.cluster_blocks);
        let first = logical - logical % cluster;
        self.mapped_within(inode, first..first + cluster)
    }

    /// The first block of the cluster of the first block that is mapped within one cluster of a file.
    fn mapped_within(&self, inode: &Inode, range: Range<u64>) -> Result<Option<u64>> {
        let cluster = u64::from(self.superblock.cluster_blocks);
        let mut at = range.start;
        while at < range.end {
            let run = self.run_at(inode, at)?;
            if let Some(start) = run.start() {
                let within = at % cluster;
                if start % cluster != within {
                    let problem = "an extent does not lie in its clusters as it does in the file";
                    return Err(Error::corrupt(Place::Inode(inode.number.into()), problem));
                }
                return Ok(Some(start - within));
            }
            at = at.saturating_add(run.len);
        }
        Ok(None)
    }

    /// How many clusters an extent that is to be mapped adds to those in which the file has blocks.
    pub(crate) fn new_clusters(&self, inode: &Inode, extent: Extent) -> Result<u64> {
        let cluster = u64::from(self.superblock.cluster_blocks);
        if extent.start % cluster != u64::from(extent.logical) % cluster {
            let problem = "an extent does not lie in its clusters as it does in the file";
            return Err(Error::corrupt(Place::Inode(inode.number.into()), problem));
        }
        let (first, last) = (u64::from(extent.logical) / cluster, (extent.end() - 1) / cluster);
        let mut new = last + 1 - first;
        if cluster > 1 {
            // Only the outermost clusters can hold anything else.
            new -= u64::from(self.cluster_in_use(inode, first * cluster)?.is_some());
            let two = last > first;
            new -= u64::from(two && self.cluster_in_use(inode, last * cluster)?.is_some());
        }
        Ok(new)
    }

    /// The clusters of the file at both ends of a cut that have blocks outside of it.
    pub(crate) fn clusters_kept(&self, inode: &Inode, cut: &Range<u64>) -> Result<[Option<u64>; 2]> {
        let cluster = u64::from(self.superblock.cluster_blocks);
        if cluster == 1 {
            return Ok([None; 2]);
        }
        let (first, last) = (cut.start / cluster, cut.end / cluster);
        let around = [
            (first, first * cluster..cut.start),
            (first, cut.end..cut.end.max((first + 1) * cluster)),
            (last, cut.end..(last + 1) * cluster),
        ];
        let mut kept = [None; 2];
        for (number, range) in around {
            let range = range.start..range.end.min((number + 1) * cluster);
            if range.start < range.end && self.mapped_within(inode, range)?.is_some() {
                kept[usize::from(number == last)] = Some(number);
            }
        }
        Ok(kept)
    }

    /// Where the data of a file is best put, and whether that is right behind the block before it.
    fn data_goal(&self, inode: &Inode, logical: u64) -> Result<(u64, bool)> {
        if let Some(before) = logical.checked_sub(1)
            && let Some(start) = self.run_at(inode, before)?.start()
        {
            return Ok((start + 1, true));
        }
        if inode.file_type != FileType::Regular {
            return Ok((self.metadata_goal(inode), false));
        }
        let flex = self.superblock.flex_groups();
        let group = self.home_group(inode) + u32::from(flex >= FLEX_FOR_DIRECTORIES);
        Ok((self.superblock.group_start(group.min(self.groups.count() - 1)), false))
    }

    /// Where the blocks of maps, directories and attributes of an inode are best put.
    pub(crate) fn metadata_goal(&self, inode: &Inode) -> u64 {
        self.superblock.group_start(self.home_group(inode))
    }

    /// The first of the groups that lie together with an inode's.
    fn home_group(&self, inode: &Inode) -> u32 {
        let group = inode.number.saturating_sub(1) / self.superblock.inodes_per_group;
        let flex = self.superblock.flex_groups();
        if flex >= FLEX_FOR_DIRECTORIES { group / flex * flex } else { group }
    }

    /// Keeps room behind a file that was written at its end and seems to go on: whole blocks, more than a few.
    pub(crate) fn keep_room(&mut self, inode: &Inode, written: Range<u64>) -> Result<()> {
        let block_size = self.block_size();
        let goes_on = written.end >= inode.size
            && written.end.is_multiple_of(block_size)
            && (written.start > 0 || written.end >= LONG_WRITE)
            && !written.is_empty();
        if !goes_on {
            self.allocator.windows.drop_of(inode.number);
            return Ok(());
        }
        let blocks = written.end / block_size;
        let Some(last) = self.run_at(inode, blocks - 1)?.start() else { return Ok(()) };
        let cluster = u64::from(self.superblock.cluster_blocks);
        let (group, bit) = self.superblock.bit_of_block(last)?;
        let group_start = u64::from(group) * u64::from(self.superblock.clusters_per_group());
        let first = group_start + u64::from(bit) + 1;
        let room = (blocks / cluster).saturating_mul(4).clamp(ROOM.start, ROOM.end);
        let spare = (self.superblock.free_blocks / 2).saturating_sub(self.allocator.windows.kept());
        let room = room.min((spare / 16).max(LITTLE_ROOM));
        let end = (first + room).min(group_start + u64::from(self.superblock.group_clusters(group)));
        self.allocator.windows.keep(inode.number, first..end.max(first));
        Ok(())
    }

    /// Gives a directory or link one more block, whose content is left to the caller; answers where it is.
    pub(crate) fn add_block(&mut self, inode: &mut Inode, logical: u64) -> Result<u64> {
        let hole = Run { logical, len: 1, place: crate::mapping::RunPlace::Hole };
        let taken = self.allocate_run(inode, hole)?;
        self.map_taken(inode, logical, taken, false)?;
        Ok(taken.start)
    }

    /// Maps blocks just taken; where that fails, they are given back.
    pub(crate) fn map_taken(
        &mut self,
        inode: &mut Inode,
        logical: u64,
        taken: Taken,
        unwritten: bool,
    ) -> Result<()> {
        let Taken { start, len, fresh } = taken;
        let (mapped, result) = match (inode.has_flag(flags::EXTENTS), u32::try_from(logical)) {
            (true, Ok(logical)) => {
                let extent = Extent { logical, len: len as u32, start, unwritten };
                let result = self.insert_extent(inode, extent);
                (if result.is_ok() { len } else { 0 }, result)
            }
            _ => self.map_indirect(inode, logical, start, len),
        };
        if fresh {
            let cluster = u64::from(self.superblock.cluster_blocks);
            let clusters = if mapped == 0 { 0 } else { (start % cluster + mapped).div_ceil(cluster) };
            inode.sectors += clusters * self.superblock.cluster_sectors();
            self.free_blocks(start + mapped, len - mapped)?;
        }
        result
    }
}
