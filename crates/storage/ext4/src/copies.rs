//! The copies of the superblock and of the descriptors that groups begin with.

use crate::block_cache::BlockCache;
use crate::error::Result;
use crate::features::incompat;
use crate::layout::SUPERBLOCK_OFFSET;
use crate::superblock::Superblock;

/// Writes every descriptor to its place and to its copies, then the copies of the superblock; that itself is
/// left to the caller. `table` has all descriptors, in whole blocks.
pub(crate) fn write(cache: &mut BlockCache, superblock: &Superblock, table: &[u8]) -> Result<()> {
    let size = u64::from(superblock.block_size);
    let spread = superblock.features.has_incompat(incompat::META_BG);
    let all = superblock.descriptor_blocks();
    let first = if spread { superblock.first_meta_group().min(all) } else { all };
    let (together, _) = table.split_at((first * size) as usize);
    let per_block = superblock.block_size / u32::from(superblock.desc_size);
    for group in 0..superblock.groups {
        let start = superblock.group_start(group);
        let copy = superblock.has_superblock(group);
        let index = u64::from(group / per_block);
        if index < first {
            if copy && !together.is_empty() {
                let at = if group == 0 { superblock.descriptor_block(0) } else { start + 1 };
                put(cache, together, at * size)?;
            }
        } else if [0, 1, per_block - 1].contains(&(group % per_block)) {
            let at = match group % per_block {
                0 => superblock.descriptor_block(index),
                _ => start + u64::from(copy),
            };
            let bytes = (index * size) as usize..((index + 1) * size) as usize;
            put(cache, &table[bytes], at * size)?;
        } else {
            continue;
        }
    }
    write_superblocks(cache, superblock)
}

/// Writes the copies of the superblock. They say that the volume is not clean, so that whoever falls back on
/// one checks it.
pub(crate) fn write_superblocks(cache: &mut BlockCache, superblock: &Superblock) -> Result<()> {
    for group in (1..superblock.groups).filter(|group| superblock.has_superblock(*group)) {
        let at = superblock.group_start(group) * u64::from(superblock.block_size);
        cache.write_data(&superblock.copy_for(group), at)?;
    }
    Ok(())
}

/// Writes the superblock itself.
pub(crate) fn write_superblock(cache: &mut BlockCache, superblock: &Superblock) -> Result<()> {
    cache.write_data(&superblock.encode(), SUPERBLOCK_OFFSET)
}

fn put(cache: &mut BlockCache, bytes: &[u8], offset: u64) -> Result<()> {
    let block = bytes.len() as u64;
    cache.forget(offset / cache.block_size(), block / cache.block_size());
    cache.write_data(bytes, offset)
}
