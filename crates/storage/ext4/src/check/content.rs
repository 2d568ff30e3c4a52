//! The content of an inode: the blocks that it maps, their number, and the size that they must fit.

use super::facts::DirectoryBlock;
use super::inodes::{Found, mode};
use super::report::Place;
use super::{Checker, Problem, block_map, extent_tree, inline, inodes, reserved};
use crate::error::{Error, Result};
use crate::features::{incompat, ro_compat};
use crate::inode::{ROOT_INODE, flags};
use crate::layout::EXTENT_MAGIC;

/// The most blocks of directories that are remembered, 16 bytes each.
const MAX_DIRECTORY_BLOCKS: usize = 1 << 23;

/// What is known of an inode's content while its map is walked.
#[derive(Default)]
pub(super) struct Walk {
    /// How many clusters were met, blocks of the map among them.
    pub(super) clusters: u64,
    /// How many logical blocks the content reaches over.
    pub(super) end: u64,
    /// How many of those are more than allocated.
    pub(super) written_end: u64,
    /// The last block met; zero before the first one.
    pub(super) previous: u64,
    pub(super) fragmented: bool,
    /// How many logical blocks of a directory were remembered.
    pub(super) remembered: u64,
}

/// Whether the 60 bytes of `i_block` begin like the root of an extent tree.
pub(super) fn is_root(bytes: &[u8; 60]) -> bool {
    extent_tree::head(bytes).is_ok()
}

/// Whether `i_block` maps blocks at all.
fn has_map(checker: &Checker, found: &Found<'_>) -> bool {
    let wide = checker.superblock.features.has_incompat(incompat::BIT64);
    match found.kind() {
        mode::DIRECTORY | mode::REGULAR => !found.has(flags::INLINE_DATA),
        mode::SYMLINK if found.xattr_block(wide) == 0 => {
            found.raw.i_blocks_lo != 0 && !found.has(flags::INLINE_DATA)
        }
        // With a block of attributes the number of blocks does not tell a short link from a long one.
        mode::SYMLINK => {
            let size = found.raw.i_size_lo.get();
            size >= 60 || (size > 4 && found.word(1) == 0)
        }
        _ => false,
    }
}

/// Checks the content and the attributes of an inode in use, and claims their blocks.
pub(super) fn check(checker: &mut Checker, found: &Found<'_>) -> Result<()> {
    let features = checker.superblock.features;
    let extents = features.has_incompat(incompat::EXTENTS) && found.has(flags::EXTENTS);
    let mut walk = Walk { clusters: inodes::attributes(checker, found), ..Walk::default() };
    if features.has_incompat(incompat::INLINE_DATA) && found.has(flags::INLINE_DATA) {
        if found.is_directory() {
            remember(checker, found, &mut walk, 0, 0, 1)?;
            if inline::size(found).is_some_and(|size| size > inline::IN_BLOCK) {
                remember(checker, found, &mut walk, 1, 0, 1)?;
            }
            walk.end = 0;
        }
    } else if has_map(checker, found) {
        match extents {
            true => extent_tree::check(checker, found, &mut walk)?,
            false => block_map::check(checker, found, &mut walk)?,
        }
    } else if extents && found.kind() == mode::SYMLINK && found.size() >= 60 {
        checker.findings.add_field(Problem::InodeFlags, found.place(), "extents");
    }
    finish(checker, found, &walk, extents);
    Ok(())
}

fn finish(checker: &mut Checker, found: &Found<'_>, walk: &Walk, extents: bool) {
    let superblock = &checker.superblock;
    if walk.fragmented && walk.clusters < u64::from(superblock.blocks_per_group) {
        checker.stats.fragmented += 1;
    }
    if found.has(flags::INDEX) {
        let indexed = superblock.features.has_compat(crate::features::compat::DIR_INDEX);
        if !found.is_directory() || !indexed || found.has(flags::INLINE_DATA) {
            checker.findings.add_field(Problem::InodeFlags, found.place(), "index");
        }
    }
    if walk.clusters == 0 && found.is_directory() && !found.has(flags::INLINE_DATA) {
        checker.findings.add_field(Problem::InodeSize, found.place(), "directory without blocks");
        return;
    }
    inodes::account(checker, found, walk.clusters);
    if found.kind() != mode::SYMLINK {
        check_size(checker, found, walk, extents);
    }
    check_count(checker, found, walk);
    block_mapped_clusters(checker, found, walk);
}

fn check_size(checker: &mut Checker, found: &Found<'_>, walk: &Walk, extents: bool) {
    let superblock = &checker.superblock;
    let (size, block) = (found.size(), u64::from(superblock.block_size));
    let wrong = if found.is_directory() {
        let blocks = size / block;
        let slack = u64::from(superblock.raw().s_prealloc_dir_blocks);
        match found.has(flags::INLINE_DATA) {
            true => inline::size(found) != Some(size),
            false => size % block != 0 || blocks > walk.end || walk.end - blocks > slack,
        }
    } else {
        // Only what was allocated ahead may lie behind the end.
        let behind = walk.written_end > 0
            && size < (walk.written_end - 1).saturating_mul(block)
            && !found.has(flags::VERITY);
        let most = match extents {
            true => block.saturating_mul(1 << 32) - 1,
            false => block_map::most_blocks(block) * block,
        };
        behind || size > most
    };
    if wrong {
        let expected = walk.end.saturating_mul(block);
        checker.findings.mismatch(Problem::InodeSize, found.place(), "at least", expected, size);
    }
}

fn check_count(checker: &mut Checker, found: &Found<'_>, walk: &Walk) {
    let superblock = &checker.superblock;
    if superblock.raw().s_creator_os == 1 {
        return;
    }
    let huge = superblock.features.has_ro_compat(ro_compat::HUGE_FILE);
    let high = u64::from(found.raw.l_i_blocks_high.get());
    let recorded = u64::from(found.raw.i_blocks_lo.get()) | if huge { high << 32 } else { 0 };
    let in_blocks = huge && found.has(flags::HUGE_FILE);
    let unit = if in_blocks { 1 } else { u64::from(superblock.block_size) / 512 };
    let expected = walk.clusters.saturating_mul(unit).saturating_mul(superblock.cluster_blocks.into());
    if expected != recorded || (in_blocks && high != 0) {
        checker.findings.mismatch(Problem::InodeBlocks, found.place(), "", expected, recorded);
    }
}

/// Kernels do not allocate clusters to block maps.
fn block_mapped_clusters(checker: &mut Checker, found: &Found<'_>, walk: &Walk) {
    let bigalloc = checker.superblock.features.has_ro_compat(ro_compat::BIGALLOC);
    let mapped = found.is_regular() || found.is_directory();
    let ours = found.number == ROOT_INODE || found.number >= checker.superblock.first_inode();
    let blocks = walk.clusters > 0 && found.raw.i_blocks_lo != 0;
    if bigalloc && mapped && ours && blocks && !found.has(flags::EXTENTS | flags::INLINE_DATA) {
        checker.findings.add_field(Problem::InodeFlags, found.place(), "block map in a volume of clusters");
    }
}

/// Whether a block can belong to an inode.
pub(super) fn is_possible(checker: &Checker, block: u64) -> bool {
    block >= checker.superblock.first_data_block && block < checker.superblock.blocks && block != 0
}

/// Claims a range of blocks for an inode; answers whether they were free until now.
pub(super) fn claim(checker: &mut Checker, found: &Found<'_>, block: u64, len: u64) -> bool {
    let free = checker.claims.claim(block, len);
    if !free && !checker.superblock.features.has_ro_compat(ro_compat::SHARED_BLOCKS) {
        checker.findings.field(Problem::SharedBlock, found.place(), "from block", block);
    }
    free
}

/// Remembers blocks of a directory's content, and the holes before them.
pub(super) fn remember(
    checker: &mut Checker,
    found: &Found<'_>,
    walk: &mut Walk,
    logical: u64,
    block: u64,
    len: u64,
) -> Result<()> {
    if !found.is_directory() {
        return Ok(());
    }
    if walk.remembered < logical {
        // One hole stands for all: what is wrong with it is wrong with the others.
        let hole = DirectoryBlock { block: 0, inode: found.number, logical: walk.remembered as u32 };
        checker.directory_blocks.push(hole);
    }
    let known = checker.directory_blocks.len() as u64;
    if known.saturating_add(len) > MAX_DIRECTORY_BLOCKS as u64 {
        return Err(Error::unsupported("the directories have more blocks than can be checked"));
    }
    for at in 0..len {
        let (inode, logical) = (found.number, (logical + at) as u32);
        let block = if block == 0 { 0 } else { block + at };
        checker.directory_blocks.push(DirectoryBlock { block, inode, logical });
    }
    walk.remembered = logical + len;
    Ok(())
}

/// The one block of a long link, if its map has just that.
pub(super) fn single_block(checker: &Checker, found: &Found<'_>) -> Option<u64> {
    let block = match found.has(flags::EXTENTS) {
        true => extent_tree::single(&found.raw.i_block)?,
        false => (1..15).all(|at| found.word(at) == 0).then(|| found.word(0).into())?,
    };
    is_possible(checker, block).then_some(block)
}

/// Claims what the list of bad blocks names.
pub(super) fn check_bad_blocks(checker: &mut Checker, found: &Found<'_>) -> Result<()> {
    if found.is_unmapped() || found.has(flags::INLINE_DATA) {
        return Ok(());
    }
    block_map::for_each(checker, found, &mut |checker, block, _| {
        if !is_possible(checker, block) {
            checker.findings.field(Problem::BadBlocks, found.place(), "block", block);
        } else if !checker.claims.claim(block, 1) && !in_table(checker, block) {
            checker.findings.field(Problem::BadBlocks, found.place(), "block in use", block);
        }
    });
    Ok(())
}

/// Whether a block is part of an inode table, where bad ones are lived with.
fn in_table(checker: &Checker, block: u64) -> bool {
    let len = checker.superblock.inode_table_blocks();
    checker
        .groups
        .iter()
        .any(|group| (group.inode_table..group.inode_table.saturating_add(len)).contains(&block))
}

/// Whether the reserved inode for growing is meant, whose blocks are descriptors to be.
pub(super) fn is_resize(found: &Found<'_>) -> bool {
    found.number == reserved::RESIZE
}

/// Where in an inode's content something is.
pub(super) fn place(found: &Found<'_>, block: u64) -> Place {
    Place::Content { inode: found.number, block }
}

/// The magic of the nodes of extent trees.
pub(super) const MAGIC: u16 = EXTENT_MAGIC;
