//! Making a volume larger.
//!
//! Nothing of what is there moves. What is new is written first, so that it is complete when the superblock,
//! which comes last, begins to count it.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::space::{Ranges, Space, metadata};
use super::{Options, finish, placing, reserved};
use crate::block_cache::BlockCache;
use crate::error::{Error, Result};
use crate::features::compat;
use crate::group::Groups;
use crate::superblock::Superblock;
use crate::volume::Ext4;

/// Turns the volume, which nothing is pending in, into the larger one that `new` describes.
pub(crate) fn grow(disk: Arc<dyn Disk>, old: Ext4, new: Superblock, options: &Options) -> Result<Ext4> {
    let Ext4 { cache: mut old_cache, superblock: before, groups, now, .. } = old;
    let placed = placing::place(&new, before.groups..new.groups)?;
    let mut cache = BlockCache::new(disk.clone(), new.block_size, new.blocks, options.metadata_cache, true);
    cache.put_guard(old_cache.take_guard());
    for part in &placed {
        part.write(&mut cache, &new)?;
    }
    let (mut all, raw) = groups.into_parts();
    all.extend(placed.into_iter().flat_map(|part| part.groups));
    let groups = Groups::of(&new, all, raw)?;
    write_table(&mut cache, &new, &groups.table(&new))?;
    cache.flush()?;
    let mut volume = Ext4::assemble(disk, new, options.volume())?;
    volume.now = now;
    volume.cache.put_guard(cache.take_guard());
    let mut space = Space::new(&volume, Ranges::default());
    free_heads(&mut volume, &before, &mut space)?;
    lengthen(&mut volume, &before, &mut space)?;
    if before.features.has_compat(compat::RESIZE_INODE) {
        let (inode, block) = reserved::pointer_block(&volume)?;
        match reserved::exists(&volume) {
            true => reserved::rebuild(&mut volume, inode, block)?,
            false => reserved::remove(&mut volume, &mut space, block)?,
        }
    }
    finish(&mut volume, &mut space)?;
    Ok(volume)
}

/// Writes the descriptors to their places. Those of the groups that were there stay as they are.
fn write_table(cache: &mut BlockCache, superblock: &Superblock, table: &[u8]) -> Result<()> {
    let size = superblock.block_size as usize;
    for (block, index) in table.chunks_exact(size).zip(0..) {
        cache.write_data(block, superblock.descriptor_block(index) * u64::from(superblock.block_size))?;
    }
    Ok(())
}

/// Gives back what groups that were there had at their beginning and need no more.
pub(crate) fn free_heads(volume: &mut Ext4, before: &Superblock, space: &mut Space) -> Result<()> {
    let kept = metadata(volume);
    let cluster = u64::from(before.cluster_blocks);
    for group in 0..before.groups.min(volume.superblock.groups) {
        let (had, has) = (before.head_blocks(group), volume.superblock.head_blocks(group));
        let start = volume.superblock.group_start(group);
        if has > had {
            let claim = start + had.next_multiple_of(cluster)..start + has;
            space.mark(volume, &claim, true)?;
        }
        let mut at = (start + has).next_multiple_of(cluster);
        while at < start + had {
            // A cluster may hold other metadata too.
            if !kept.touches(&(at..at + cluster)) {
                space.mark(volume, &(at..at + cluster), false)?;
            }
            at += cluster;
        }
    }
    Ok(())
}

/// Frees the blocks that the group gets that was the last one.
fn lengthen(volume: &mut Ext4, before: &Superblock, space: &mut Space) -> Result<()> {
    let last = before.groups.checked_sub(1);
    let last = last.ok_or_else(|| Error::unsupported("a volume without groups"))?;
    let start = before.group_start(last);
    let had = u64::from(before.group_blocks(last));
    let has = u64::from(volume.superblock.group_blocks(last));
    // What was no block was marked as taken.
    let from = had.next_multiple_of(before.cluster_blocks.into());
    if from < has {
        space.mark(volume, &(start + from..start + has), false)?;
    }
    if has > had {
        // Its count has to be right even where the bitmap needed no change.
        space.changed.insert(last);
    }
    Ok(())
}
