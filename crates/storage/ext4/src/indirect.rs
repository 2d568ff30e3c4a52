//! Block maps of ext2 and ext3: twelve direct blocks, then trees of pointers of one to three levels.
//!
//! ```text
//! inode.i_block: 0 … 11 │ 12: block of pointers │ 13: two levels │ 14: three levels
//! ```

use crate::block_cache::BlockCache;
use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::mapping::{Run, RunPlace};
use crate::superblock::Superblock;

/// How many blocks the inode points to by itself.
pub(crate) const DIRECT: u64 = 12;

/// How many pointers a block holds.
pub(crate) fn pointers(block_size: u32) -> u64 {
    u64::from(block_size) / 4
}

/// One more than the largest logical block that a map can hold.
pub(crate) fn logical_limit(block_size: u32) -> u64 {
    let p = pointers(block_size);
    // `i_blocks` counts 512-byte units in 32 bits, which ends large maps earlier; so does the logical number.
    (DIRECT + p + p * p + p * p * p).min(u64::from(u32::MAX))
}

/// The slot of the inode that leads to a logical block, the levels beneath it, and the number within.
pub(crate) fn slot(block_size: u32, logical: u64) -> Option<(usize, u32, u64)> {
    if logical < DIRECT {
        return Some((logical as usize, 0, 0));
    }
    let p = pointers(block_size);
    let mut rest = logical - DIRECT;
    let mut span = p;
    for level in 1..=3 {
        if rest < span {
            return Some((DIRECT as usize + level as usize - 1, level, rest));
        }
        rest -= span;
        span *= p;
    }
    None
}

/// How many logical blocks one pointer of a block at this level (1 being the lowest) covers.
pub(crate) fn span(block_size: u32, level: u32) -> u64 {
    pointers(block_size).pow(level - 1)
}

/// Reads the n-th pointer of some bytes.
pub(crate) fn pointer(bytes: &[u8], index: usize) -> u64 {
    let at = index * 4;
    u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// Checks that a pointer, where it is not a hole, leads into the volume.
pub(crate) fn check(superblock: &Superblock, inode: &Inode, block: u64) -> Result<u64> {
    if block != 0 && !superblock.is_valid_block(block) {
        let place = Place::Inode(inode.number.into());
        return Err(Error::corrupt(place, "a block pointer lies outside the volume"));
    }
    Ok(block)
}

/// Finds the run that begins at a logical block.
pub(crate) fn run_at(
    cache: &BlockCache,
    superblock: &Superblock,
    inode: &Inode,
    logical: u64,
) -> Result<Run> {
    let size = superblock.block_size;
    let Some((slot, level, rest)) = slot(size, logical) else {
        return Ok(Run { logical, len: u64::MAX - logical, place: RunPlace::Hole });
    };
    if level == 0 {
        return run_among(superblock, inode, &inode.block[..DIRECT as usize * 4], slot, logical, 1);
    }
    let mut block = check(superblock, inode, pointer(&inode.block, slot))?;
    let mut rest = rest;
    for level in (1..=level).rev() {
        let span = span(size, level);
        if block == 0 {
            // Nothing is mapped until the end of what this pointer would have covered.
            let covered = span * pointers(size);
            return Ok(Run { logical, len: covered - rest % covered, place: RunPlace::Hole });
        }
        let bytes = cache.read(block)?;
        let index = (rest / span) as usize;
        if level == 1 {
            return run_among(superblock, inode, &bytes, index, logical, 1);
        }
        block = check(superblock, inode, pointer(&bytes, index))?;
        rest %= span;
    }
    Err(Error::corrupt(Place::Inode(inode.number.into()), "its block map has no end"))
}

/// Joins pointers from `index` on that continue each other, or are all holes.
fn run_among(
    superblock: &Superblock,
    inode: &Inode,
    bytes: &[u8],
    index: usize,
    logical: u64,
    len: u64,
) -> Result<Run> {
    let count = bytes.len() / 4;
    let first = check(superblock, inode, pointer(bytes, index))?;
    let mut len = len;
    for next in index + 1..count {
        let block = pointer(bytes, next);
        let continues = if first == 0 { block == 0 } else { block == first + len };
        if !continues || (block != 0 && block >= superblock.blocks) {
            break;
        }
        len += 1;
    }
    let place = if first == 0 { RunPlace::Hole } else { RunPlace::Written(first) };
    Ok(Run { logical, len, place })
}
