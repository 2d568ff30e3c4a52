//! How small a volume can become.
//!
//! What files use has to fit beside the metadata of the groups that are left, and a part more: blocks that move
//! may end up in pieces, and each piece is one extent more to keep.

use super::geometry;
use super::space::metadata;
use crate::error::Result;
use crate::extents;
use crate::superblock::Superblock;
use crate::volume::Ext4;

/// What is known of a volume's use, in clusters.
struct Use {
    /// What files have in each group.
    files: Vec<u64>,
    total: u64,
    inodes: u64,
    cluster: u64,
}

/// The number of clusters that ranges of blocks touch.
fn touched(ranges: impl Iterator<Item = std::ops::Range<u64>>, cluster: u64) -> u64 {
    let (mut count, mut last) = (0, None);
    for range in ranges.filter(|range| !range.is_empty()) {
        let (mut first, end) = (range.start / cluster, (range.end - 1) / cluster);
        if last == Some(first) {
            first += 1;
        }
        count += (end + 1).saturating_sub(first);
        last = Some(end);
    }
    count
}

fn usage(volume: &Ext4) -> Result<Use> {
    let superblock = &volume.superblock;
    let cluster = u64::from(superblock.cluster_blocks);
    let taken = metadata(volume);
    let mut files = Vec::with_capacity(superblock.groups as usize);
    for number in 0..superblock.groups {
        let start = superblock.group_start(number);
        let len = u64::from(superblock.group_blocks(number));
        let own = touched(taken.within(&(start..start + len)), cluster);
        let free = u64::from(volume.groups.get(number)?.free_blocks);
        files.push(len.div_ceil(cluster).saturating_sub(own).saturating_sub(free));
    }
    let total = files.iter().sum();
    let inodes = u64::from(superblock.inodes.saturating_sub(superblock.free_inodes));
    Ok(Use { files, total, inodes, cluster })
}

impl Use {
    /// The clusters that a volume of the same content with these groups needs, the last one full or not.
    fn needed(&self, new: &Superblock) -> u64 {
        let table = new.inode_table_blocks();
        let rounded = |blocks: u64| blocks.div_ceil(self.cluster);
        let groups = u64::from(new.groups);
        let heads: u64 = (0..new.groups).map(|group| rounded(new.head_blocks(group))).sum();
        // Clusters may be shared by the metadata of neighbours; that is not counted on.
        let own = match self.cluster {
            1 => 2 + table,
            _ => rounded(table + 2) + 2,
        };
        let moving: u64 = self.files.iter().skip(new.groups.saturating_sub(1) as usize).sum();
        let blocks = moving * self.cluster;
        let nodes = blocks / extents::capacity(new.block_size as usize) as u64 * 2 + blocks / 64 + 8;
        self.total + heads + groups * own + rounded(nodes.min(blocks)).max(2)
    }
}

/// The fewest blocks that the volume can be shrunk to.
pub(super) fn blocks(volume: &Ext4) -> Result<u64> {
    let old = &volume.superblock;
    let used = usage(volume)?;
    let disk_len = volume.cache.disk().len();
    let per_group = u64::from(old.blocks_per_group);
    let full = |groups: u64| (old.first_data_block + groups * per_group).min(old.blocks);
    let least = used.inodes.div_ceil(old.inodes_per_group.into()).max(1);
    let (mut low, mut high) = (least.min(old.groups.into()), u64::from(old.groups));
    let fits = |groups: u64| -> Result<Option<u64>> {
        let Ok(new) = geometry::resized(old, full(groups), disk_len) else { return Ok(None) };
        let needed = used.needed(&new) * used.cluster;
        Ok((needed <= full(groups) - old.first_data_block).then_some(needed))
    };
    while low < high {
        let middle = low + (high - low) / 2;
        match fits(middle)? {
            Some(_) => high = middle,
            None => low = middle + 1,
        }
    }
    let Some(needed) = fits(low)? else { return Ok(old.blocks) };
    // The last group holds the rest, its own metadata at least.
    let new = geometry::resized(old, full(low), disk_len)?;
    let before = (low - 1) * per_group;
    let last = new.head_blocks(new.groups - 1) + 2 + new.inode_table_blocks() + geometry::WORTH;
    let last = if low == 1 { needed } else { needed.saturating_sub(before).max(last) };
    let end = old.first_data_block + before + last.next_multiple_of(used.cluster);
    let end = end.max(last_metadata(volume, low as u32 - 1)?);
    Ok(end.min(full(low)).min(old.blocks))
}

/// Where the metadata of a group that is to be the last one ends within it, so that it can stay.
pub(super) fn last_metadata(volume: &Ext4, number: u32) -> Result<u64> {
    let superblock = &volume.superblock;
    let start = superblock.group_start(number);
    let end = start + u64::from(superblock.group_blocks(number));
    let group = volume.groups.get(number)?;
    let places = [
        (group.block_bitmap, 1),
        (group.inode_bitmap, 1),
        (group.inode_table, superblock.inode_table_blocks()),
    ];
    let inside = places.into_iter().filter(|(first, _)| (start..end).contains(first));
    let last = inside.map(|(first, len)| first + len).max().unwrap_or(start);
    Ok(last.next_multiple_of(superblock.cluster_blocks.into()).min(end))
}
