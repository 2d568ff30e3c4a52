//! The inode of the blocks that are kept for more descriptors.
//!
//! ```text
//! i_block[13] ─▶ one block of pointers ─▶ each block kept in the first group ─▶ its copies in other groups
//! ```

use super::inodes::Found;
use super::report::Place;
use super::{Checker, Problem, reserved};
use crate::error::Result;
use crate::features::{compat, incompat};
use crate::inode::raw_inode;

/// The number of `i_block` that is a tree of two levels.
const TWO_LEVELS: usize = 13;

/// Checks the inode against the feature and against where the blocks are.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let features = checker.superblock.features;
    let enabled = features.has_compat(compat::RESIZE_INODE);
    let kept = checker.superblock.raw().s_reserved_gdt_blocks.get();
    let place = Place::Superblock;
    if enabled && features.has_incompat(incompat::META_BG) {
        checker.findings.add_field(Problem::SuperblockField, place.clone(), "resize_inode with meta_bg");
    }
    if !enabled && kept != 0 {
        checker.findings.field(Problem::SuperblockField, place, "s_reserved_gdt_blocks", kept.into());
    }
    let Some(record) = record(checker) else { return Ok(()) };
    let number = reserved::RESIZE;
    let found = Found { number, raw: raw_inode(&record), record: &record, extra_isize: 0 };
    let sound = match enabled {
        true => is_sound(checker, &found),
        false => found.is_unmapped(),
    };
    if !sound {
        checker.findings.add(Problem::ResizeInode, Place::Inode(number));
    }
    Ok(())
}

/// The inode's record as it is.
fn record(checker: &Checker) -> Option<Vec<u8>> {
    let size = usize::from(checker.superblock.inode_size);
    let at = (reserved::RESIZE as usize - 1) * size;
    let block_size = checker.reader.block_size();
    let table = checker.groups.first()?.inode_table;
    let content = checker.reader.block(table.checked_add((at / block_size) as u64)?).ok()?;
    content.get(at % block_size..at % block_size + size).map(<[u8]>::to_vec)
}

fn pointer(block: &[u8], at: u64) -> u64 {
    let at = at as usize * 4;
    let bytes = block.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes).into()
}

fn is_sound(checker: &Checker, found: &Found<'_>) -> bool {
    let superblock = &checker.superblock;
    let root = u64::from(found.word(TWO_LEVELS));
    let alone = (0..15).all(|at| at == TWO_LEVELS || found.word(at) == 0);
    let possible = root >= superblock.first_data_block && root < superblock.blocks && root != 0;
    if !alone || !possible || found.links() == 0 || found.raw.i_mode.get() & 0x8000 == 0 {
        return false;
    }
    let Ok(pointers) = checker.reader.block(root) else { return false };
    let per_block = u64::from(superblock.block_size) / 4;
    let descriptors = superblock.descriptor_blocks();
    let adjust = u64::from(superblock.block_size == 1024 && superblock.first_data_block == 0);
    let first = superblock.first_data_block + 1 + descriptors + adjust;
    // e2fsck looks at a quarter of them.
    let count = superblock.reserved_descriptor_blocks() / 4;
    (0..count).all(|at| {
        let expected = first + at;
        if pointer(&pointers, (descriptors + at) % per_block) != expected {
            return false;
        }
        let Ok(copies) = checker.reader.block(expected) else { return false };
        let groups = (1..superblock.groups).filter(|group| superblock.has_superblock(*group));
        groups.zip(0..per_block).all(|(group, copy)| {
            let there = u64::from(group) * u64::from(superblock.blocks_per_group);
            pointer(&copies, copy) == expected + there
        })
    })
}
