//! Taking and giving back blocks while the geometry changes: by place, and never in what is to be vacated.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::bitmap;
use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::group::BLOCK_UNINIT;
use crate::volume::Ext4;

/// What a run of clusters should have at least, tried one after another.
const RUNS: [u64; 4] = [1 << 15, 512, 16, 1];

/// Ranges that are sorted and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(crate) fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    pub(crate) fn into_vec(self) -> Vec<Range<u64>> {
        self.0
    }

    /// The first range that ends behind a number.
    fn after(&self, at: u64) -> Option<&Range<u64>> {
        self.0.get(self.0.partition_point(|range| range.end <= at))
    }

    pub(crate) fn contains(&self, at: u64) -> bool {
        self.after(at).is_some_and(|range| range.start <= at)
    }

    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.after(range.start).is_some_and(|other| other.start < range.end)
    }

    /// Splits a range at the borders of these: how far from its start on all is within, or all is not.
    pub(crate) fn step(&self, range: &Range<u64>) -> (bool, u64) {
        match self.after(range.start) {
            Some(other) if other.start <= range.start => (true, other.end.min(range.end) - range.start),
            Some(other) => (false, other.start.min(range.end) - range.start),
            None => (false, range.end - range.start),
        }
    }

    /// The parts within a range.
    pub(crate) fn within(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.0.partition_point(|other| other.end <= range.start);
        let inside = self.0[first..].iter().take_while(|other| other.start < range.end);
        inside.map(|other| other.start.max(range.start)..other.end.min(range.end))
    }
}

/// Which blocks are taken, and which of the free ones may be.
pub(crate) struct Space {
    /// Metadata of all groups: what a bitmap that was never written has set.
    metadata: Ranges,
    /// Blocks that are not to be taken.
    forbidden: Ranges,
    /// Groups whose bitmaps were looked at, and those whose bitmaps were changed.
    ready: BTreeSet<u32>,
    pub(crate) changed: BTreeSet<u32>,
    /// Where the last search ended.
    cursor: u64,
}

/// Every block that holds metadata of groups.
pub(crate) fn metadata(volume: &Ext4) -> Ranges {
    let superblock = &volume.superblock;
    let table = superblock.inode_table_blocks();
    let mut ranges = Vec::with_capacity(superblock.groups as usize * 4);
    for (group, number) in volume.groups.iter().zip(0..) {
        let start = superblock.group_start(number);
        ranges.push(start..start + superblock.head_blocks(number));
        ranges.push(group.block_bitmap..group.block_bitmap + 1);
        ranges.push(group.inode_bitmap..group.inode_bitmap + 1);
        ranges.push(group.inode_table..group.inode_table + table);
    }
    Ranges::new(ranges)
}

/// How many bits of a range are clear.
fn clear_in(bits: &[u8], from: u32, to: u32) -> u32 {
    let (mut count, mut at) = (0, from);
    while at < to {
        let free = bitmap::find(bits, at, to, false);
        at = bitmap::find(bits, free, to, true);
        count += at - free;
    }
    count
}

impl Space {
    /// Looks at a volume in which `forbidden` is to become free of everything.
    pub(crate) fn new(volume: &Ext4, forbidden: Ranges) -> Self {
        Self {
            metadata: metadata(volume),
            forbidden,
            ready: BTreeSet::new(),
            changed: BTreeSet::new(),
            cursor: 0,
        }
    }

    pub(crate) fn forbidden(&self) -> &Ranges {
        &self.forbidden
    }

    fn clusters(volume: &Ext4, group: u32) -> u32 {
        volume.superblock.group_blocks(group).div_ceil(volume.superblock.cluster_blocks)
    }

    fn checksum(volume: &Ext4, bits: &[u8]) -> u32 {
        let superblock = &volume.superblock;
        let len = superblock.blocks_per_group / superblock.cluster_blocks / 8;
        crc32c(superblock.checksum_seed, &bits[..(len as usize).min(bits.len())])
    }

    /// The block of a group's bitmap, checked or made when first asked for.
    fn bitmap(&mut self, volume: &mut Ext4, group: u32) -> Result<u64> {
        let descriptor = volume.groups.get(group)?.clone();
        if self.ready.contains(&group) {
            return Ok(descriptor.block_bitmap);
        }
        if descriptor.flags & BLOCK_UNINIT != 0 {
            let bits = self.initial(volume, group);
            volume.cache.put(descriptor.block_bitmap, bits)?;
            volume.groups.modify(group)?.flags &= !BLOCK_UNINIT;
            self.changed.insert(group);
        } else if volume.superblock.features.metadata_csum() {
            let actual = Self::checksum(volume, &volume.cache.read(descriptor.block_bitmap)?);
            let mask = if volume.superblock.desc_size >= 64 { u32::MAX } else { 0xffff };
            let expected = descriptor.block_bitmap_csum;
            if (expected ^ actual) & mask != 0 {
                let what = "the block bitmap's checksum";
                return Err(Error::mismatch(Place::Group(group), what, expected.into(), actual.into()));
            }
        }
        self.ready.insert(group);
        Ok(descriptor.block_bitmap)
    }

    fn initial(&self, volume: &Ext4, group: u32) -> Vec<u8> {
        let superblock = &volume.superblock;
        let mut bits = vec![0; superblock.block_size as usize];
        bitmap::fill(&mut bits, Self::clusters(volume, group), superblock.block_size * 8, true);
        let start = superblock.group_start(group);
        let cluster = u64::from(superblock.cluster_blocks);
        for range in self.metadata.within(&(start..start + u64::from(superblock.group_blocks(group)))) {
            let (from, to) = ((range.start - start) / cluster, (range.end - start).div_ceil(cluster));
            bitmap::fill(&mut bits, from as u32, to as u32, true);
        }
        bits
    }

    /// Calls `each` for the part of a range of blocks in every group that it reaches into, in bits.
    fn in_groups(
        volume: &mut Ext4,
        range: &Range<u64>,
        each: &mut dyn FnMut(&mut Ext4, u32, u32, u32) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            // The block before the first group is in no bitmap.
            if at < volume.superblock.first_data_block {
                at += 1;
                continue;
            }
            let index = at - volume.superblock.first_data_block;
            let per_group = u64::from(volume.superblock.blocks_per_group);
            let cluster = u64::from(volume.superblock.cluster_blocks);
            let (group, index) = ((index / per_group) as u32, index % per_group);
            let end = (index + (range.end - at)).min(per_group);
            each(volume, group, (index / cluster) as u32, end.div_ceil(cluster) as u32)?;
            at += end - index;
        }
        Ok(())
    }

    /// Marks every cluster of a range as taken or free, whatever it was.
    pub(crate) fn mark(&mut self, volume: &mut Ext4, range: &Range<u64>, taken: bool) -> Result<()> {
        Self::in_groups(volume, range, &mut |volume, group, from, to| {
            let block = self.bitmap(volume, group)?;
            let to = to.min(Self::clusters(volume, group));
            let bits = volume.cache.modify(block)?;
            let clear = clear_in(bits, from, to);
            bitmap::fill(bits, from, to, taken);
            let descriptor = volume.groups.modify(group)?;
            descriptor.free_blocks = match taken {
                true => descriptor.free_blocks.saturating_sub(clear),
                false => descriptor.free_blocks.saturating_add((to - from) - clear),
            };
            self.changed.insert(group);
            Ok(())
        })
    }

    /// Makes sure that a group has a bitmap.
    pub(crate) fn touch(&mut self, volume: &mut Ext4, group: u32) -> Result<()> {
        self.bitmap(volume, group).map(|_| ())
    }

    /// Begins the next search at a block.
    pub(crate) fn aim(&mut self, block: u64) {
        self.cursor = block;
    }

    /// Takes a run of up to `want` blocks that begins with a cluster, as near behind the last one as there is;
    /// shorter than `want` only where no run is long enough.
    pub(crate) fn take(&mut self, volume: &mut Ext4, want: u64) -> Result<Range<u64>> {
        let cluster = u64::from(volume.superblock.cluster_blocks);
        let want = want.max(1).next_multiple_of(cluster);
        for least in RUNS {
            let least = (least * cluster).min(want);
            if let Some(found) = self.find(volume, least, want)? {
                self.mark(volume, &found, true)?;
                self.cursor = found.end;
                return Ok(found);
            }
            if least == cluster {
                break;
            }
        }
        Err(Error::plain(ErrorKind::NoSpace, "the filesystem has too few free blocks"))
    }

    /// Takes `want` blocks that are neighbours, or none; in one group, where it matters which.
    pub(crate) fn take_whole(
        &mut self,
        volume: &mut Ext4,
        want: u64,
        group: Option<u32>,
    ) -> Result<Option<Range<u64>>> {
        let want = want.next_multiple_of(volume.superblock.cluster_blocks.into());
        let found = match group {
            None => self.find(volume, want, want)?,
            Some(group) => {
                let mut open = None;
                let found = self.find_in(volume, group, 0, want, want, &mut open)?;
                found.or(open.filter(|open| open.end - open.start >= want))
            }
        };
        let found = found.map(|found| found.start..found.start + want);
        if let Some(found) = &found {
            self.mark(volume, found, true)?;
        }
        Ok(found)
    }

    /// Finds a run of free blocks; it may reach over several groups.
    fn find(&mut self, volume: &mut Ext4, least: u64, want: u64) -> Result<Option<Range<u64>>> {
        let groups = volume.superblock.groups;
        let per_group = u64::from(volume.superblock.blocks_per_group);
        let first = self.cursor.saturating_sub(volume.superblock.first_data_block) / per_group;
        let first = (first as u32).min(groups - 1);
        for (groups, from) in [(first..groups, self.cursor), (0..first + 1, 0)] {
            let mut open: Option<Range<u64>> = None;
            for group in groups {
                if let Some(found) = self.find_in(volume, group, from, least, want, &mut open)? {
                    return Ok(Some(found));
                }
            }
            if let Some(found) = open.take_if(|open| open.end - open.start >= least) {
                return Ok(Some(found.start..found.end.min(found.start + want)));
            }
        }
        Ok(None)
    }

    /// Goes through the free runs of one group; `open` is the run that reached the end of the one before.
    fn find_in(
        &mut self,
        volume: &mut Ext4,
        group: u32,
        from: u64,
        least: u64,
        want: u64,
        open: &mut Option<Range<u64>>,
    ) -> Result<Option<Range<u64>>> {
        let start = volume.superblock.group_start(group);
        let end = start + u64::from(volume.superblock.group_blocks(group));
        let usable = !matches!(self.forbidden.step(&(start..end)), (true, len) if len == end - start);
        let empty = volume.groups.get(group)?.free_blocks == 0;
        if !usable || empty {
            return Ok(open.take().filter(|open| open.end - open.start >= least));
        }
        let block = self.bitmap(volume, group)?;
        let bits = volume.cache.read(block)?;
        let (len, cluster) = (Self::clusters(volume, group), u64::from(volume.superblock.cluster_blocks));
        let mut at = (from.saturating_sub(start).div_ceil(cluster)).min(len.into()) as u32;
        loop {
            let free = bitmap::find(&bits, at, len, false);
            let taken = bitmap::find(&bits, free, len, true);
            let run = start + u64::from(free) * cluster..(start + u64::from(taken) * cluster).min(end);
            let mut rest = run.clone();
            while !rest.is_empty() {
                let (forbidden, step) = self.forbidden.step(&rest);
                let part = rest.start..rest.start + step;
                rest.start += step;
                if forbidden {
                    continue;
                }
                let part = match open.take() {
                    Some(before) if before.end == part.start => before.start..part.end,
                    Some(before) if before.end - before.start >= least => return Ok(Some(before)),
                    _ => part,
                };
                if part.end - part.start >= want || (part.end - part.start >= least && part.end < end) {
                    return Ok(Some(part.start..part.end.min(part.start + want)));
                }
                *open = Some(part);
            }
            if taken >= len {
                return Ok(None);
            }
            at = taken;
        }
    }

    /// Forgets a group that is no more.
    pub(crate) fn forget_group(&mut self, group: u32) {
        self.ready.remove(&group);
        self.changed.remove(&group);
    }

    /// Brings counts and checksums of the changed groups up to date.
    pub(crate) fn settle(&mut self, volume: &mut Ext4) -> Result<()> {
        for group in std::mem::take(&mut self.changed) {
            let block = self.bitmap(volume, group)?;
            let bits = volume.cache.read(block)?;
            let free = bitmap::count_clear(&bits, Self::clusters(volume, group));
            let checksum = Self::checksum(volume, &bits);
            let descriptor = volume.groups.modify(group)?;
            descriptor.free_blocks = free;
            if volume.superblock.features.metadata_csum() {
                descriptor.block_bitmap_csum = checksum;
            }
        }
        volume.groups.count_free(&mut volume.superblock);
        volume.changed = true;
        Ok(())
    }
}
