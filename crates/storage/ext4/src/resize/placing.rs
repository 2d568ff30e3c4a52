//! Where the bitmaps and inode tables of new groups go.

use std::ops::Range;

use super::space::Ranges;
use crate::bitmap;
use crate::block_cache::BlockCache;
use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Result};
use crate::features::incompat;
use crate::group::{BLOCK_UNINIT, Group, INODE_UNINIT, INODE_ZEROED};
use crate::superblock::Superblock;

/// Groups whose metadata lies together, and what of their blocks is taken.
pub(crate) struct Placed {
    pub(crate) groups: Vec<Group>,
    /// The first group.
    first: u32,
    taken: Ranges,
}

/// Places the metadata of new groups, those of one flex group together at the beginning of the first of them.
pub(crate) fn place(superblock: &Superblock, new: Range<u32>) -> Result<Vec<Placed>> {
    let flex = match superblock.features.has_incompat(incompat::FLEX_BG) {
        true => 1_u32.checked_shl(superblock.raw().s_log_groups_per_flex.into()).unwrap_or(1),
        false => 1,
    };
    let mut placed = Vec::new();
    let mut at = new.start;
    while at < new.end {
        let end = ((at / flex).saturating_add(1).saturating_mul(flex)).min(new.end);
        match place_together(superblock, at..end) {
            Some(together) => placed.push(together),
            // A short last group may leave too little room in one piece.
            None => {
                for group in at..end {
                    let alone = place_together(superblock, group..group + 1);
                    placed.push(alone.ok_or_else(|| {
                        let problem = "a new block group has no room for its own metadata";
                        Error::plain(ErrorKind::NoSpace, problem)
                    })?);
                }
            }
        }
        at = end;
    }
    Ok(placed)
}

/// The blocks of groups behind their heads, neighbours joined, beginning with whole clusters.
fn room(superblock: &Superblock, groups: &Range<u32>) -> Vec<Range<u64>> {
    let cluster = u64::from(superblock.cluster_blocks);
    let ranges = groups.clone().map(|group| {
        let start = superblock.group_start(group);
        let head = superblock.head_blocks(group).next_multiple_of(cluster);
        start + head..(start + u64::from(superblock.group_blocks(group))).max(start + head)
    });
    Ranges::new(ranges.collect()).into_vec()
}

fn place_together(superblock: &Superblock, groups: Range<u32>) -> Option<Placed> {
    let mut room = room(superblock, &groups);
    let mut take = |len: u64| -> Option<u64> {
        let range = room.iter_mut().find(|range| range.end - range.start >= len)?;
        let start = range.start;
        range.start += len;
        Some(start)
    };
    let table = superblock.inode_table_blocks();
    let block_bitmaps = groups.clone().map(|_| take(1)).collect::<Option<Vec<u64>>>()?;
    let inode_bitmaps = groups.clone().map(|_| take(1)).collect::<Option<Vec<u64>>>()?;
    let tables = groups.clone().map(|_| take(table)).collect::<Option<Vec<u64>>>()?;
    let single = block_bitmaps.iter().chain(&inode_bitmaps).map(|block| *block..block + 1);
    let heads = groups.clone().map(|group| {
        let start = superblock.group_start(group);
        start..start + superblock.head_blocks(group)
    });
    let taken = single.chain(tables.iter().map(|start| *start..start + table)).chain(heads);
    let taken = Ranges::new(taken.collect());
    let places = block_bitmaps.into_iter().zip(inode_bitmaps).zip(tables);
    let make = |(number, ((block_bitmap, inode_bitmap), inode_table))| {
        new_group(superblock, number, block_bitmap, inode_bitmap, inode_table)
    };
    let first = groups.start;
    let mut placed = Placed { groups: groups.zip(places).map(make).collect(), first, taken };
    placed.count(superblock);
    Some(placed)
}

fn new_group(
    superblock: &Superblock,
    number: u32,
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
) -> Group {
    let trusted = superblock.features.group_csum();
    // Whoever makes the bitmap of the last group up would have to know how long it is.
    let lazy = if number + 1 < superblock.groups { BLOCK_UNINIT } else { 0 };
    Group {
        block_bitmap,
        inode_bitmap,
        inode_table,
        free_blocks: 0,
        free_inodes: superblock.inodes_per_group,
        used_dirs: 0,
        itable_unused: if trusted { superblock.inodes_per_group } else { 0 },
        flags: if trusted { INODE_UNINIT | INODE_ZEROED | lazy } else { 0 },
        block_bitmap_csum: 0,
        inode_bitmap_csum: 0,
    }
}

impl Placed {
    /// The bitmap of a group, its end filled up.
    fn bits(&self, superblock: &Superblock, number: u32) -> Vec<u8> {
        let mut bits = vec![0; superblock.block_size as usize];
        let cluster = u64::from(superblock.cluster_blocks);
        let (start, len) = (superblock.group_start(number), superblock.group_blocks(number));
        bitmap::fill(&mut bits, len.div_ceil(superblock.cluster_blocks), superblock.block_size * 8, true);
        for range in self.taken.within(&(start..start + u64::from(len))) {
            let (from, to) = ((range.start - start) / cluster, (range.end - start).div_ceil(cluster));
            bitmap::fill(&mut bits, from as u32, to as u32, true);
        }
        bits
    }

    /// Counts what is free, and decides which bitmaps must be written: those of groups with the metadata of others.
    fn count(&mut self, superblock: &Superblock) {
        let own: Vec<u32> = (self.first..).take(self.groups.len()).collect();
        for (index, number) in own.iter().enumerate() {
            let start = superblock.group_start(*number);
            let len = superblock.group_blocks(*number);
            let bits = self.bits(superblock, *number);
            let clusters = len.div_ceil(superblock.cluster_blocks);
            let inside = start..start + u64::from(len);
            let foreign = self.groups.iter().enumerate().any(|(other, group)| {
                let places = [group.block_bitmap, group.inode_bitmap, group.inode_table];
                other != index
                    && places.iter().any(|place| {
                        *place < inside.end && place + superblock.inode_table_blocks() > inside.start
                    })
            });
            let group = &mut self.groups[index];
            group.free_blocks = bitmap::count_clear(&bits, clusters);
            if foreign {
                group.flags &= !BLOCK_UNINIT;
            }
            let covered = superblock.blocks_per_group / superblock.cluster_blocks / 8;
            group.block_bitmap_csum =
                crc32c(superblock.checksum_seed, &bits[..(covered as usize).min(bits.len())]);
        }
    }

    /// Writes the bitmaps that must be, and makes the inode tables zeros.
    pub(crate) fn write(&self, cache: &mut BlockCache, superblock: &Superblock) -> Result<()> {
        let size = u64::from(superblock.block_size);
        let mut tables = Vec::new();
        for (group, number) in self.groups.iter().zip(self.first..) {
            if group.flags & BLOCK_UNINIT == 0 {
                cache.put(group.block_bitmap, self.bits(superblock, number))?;
            }
            if group.flags & INODE_UNINIT == 0 {
                let mut bits = vec![0; superblock.block_size as usize];
                bitmap::fill(&mut bits, superblock.inodes_per_group, superblock.block_size * 8, true);
                cache.put(group.inode_bitmap, bits)?;
            }
            tables.push(group.inode_table..group.inode_table + superblock.inode_table_blocks());
        }
        for range in Ranges::new(tables).into_vec() {
            cache.zero_data(range.start * size, (range.end - range.start) * size)?;
        }
        Ok(())
    }
}
