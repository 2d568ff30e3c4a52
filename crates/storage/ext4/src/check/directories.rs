//! The content of directories: every entry of every block.
//!
//! A block is put right in memory as it is walked, so that one thing that is wrong hides nothing behind it.
//! Where the check repairs, that is what is written.

use super::Checker;
use super::dir_index::Index;
use super::dir_walk::Walk;
use super::facts::{Directory, DirectoryBlock};
use super::tree::Tree;
use super::{Place, Problem};
use crate::dir_block::{DirFormat, get_u32};
use crate::error::Result;
use crate::features::{compat, incompat};
use crate::fold;
use crate::inode::flags;
use crate::superblock::Superblock;
use crate::xattr::INLINE_DATA;

/// The bytes of inline content that are in the block map's place.
const INLINE_HEAD: usize = 60;

/// Checks every block of every directory.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let (groups, per_group) = (checker.superblock.groups, checker.superblock.inodes_per_group);
    checker.tree = Tree::new(groups, per_group, checker.directories.len());
    if let Some(root) = checker.directory_index(crate::inode::ROOT_INODE) {
        checker.tree.parents[root] = crate::inode::ROOT_INODE;
    }
    let blocks = std::mem::take(&mut checker.directory_blocks);
    let mut rest = blocks.as_slice();
    for index in 0..checker.directories.len() {
        let directory = checker.directories[index];
        // Blocks of what is no directory after all are passed over.
        let before = rest.iter().take_while(|block| block.inode < directory.inode).count();
        let own = rest[before..].iter().take_while(|block| block.inode == directory.inode).count();
        one(checker, index, &directory, &rest[before..before + own])?;
        rest = &rest[before + own..];
    }
    checker.directory_blocks = blocks;
    Ok(())
}

/// How a directory keeps its names.
pub(super) fn format(checker: &Checker, directory: &Directory) -> DirFormat {
    let superblock = &checker.superblock;
    DirFormat {
        inode: directory.inode,
        seed: superblock
            .features
            .metadata_csum()
            .then(|| crate::inode::seed(superblock, directory.inode, directory.generation)),
        file_types: superblock.features.has_incompat(incompat::FILETYPE),
        folding: folds(superblock, directory.flags),
    }
}

/// Whether the names of a directory fold in a way that is known.
pub(super) fn folds(superblock: &Superblock, flags: u32) -> bool {
    superblock.features.has_incompat(incompat::CASEFOLD)
        && flags & (flags::CASEFOLD | flags::ENCRYPT) == flags::CASEFOLD
        && superblock.encoding().0 == fold::UTF8_12_1
}

fn one(checker: &mut Checker, index: usize, directory: &Directory, blocks: &[DirectoryBlock]) -> Result<()> {
    let mut walk = Walk::new(checker, index, directory);
    if directory.flags & flags::INLINE_DATA != 0 {
        inline(checker, &mut walk, directory);
        return Ok(());
    }
    let indexed = directory.flags & flags::INDEX != 0;
    let known = checker.superblock.features.has_compat(compat::DIR_INDEX);
    let count = blocks.last().map_or(0, |last| last.logical.saturating_add(1));
    let mut tree = (indexed && known).then(|| Index::new(count, directory, &checker.superblock));
    for block in blocks {
        let place = Place::Content { inode: directory.inode, block: block.logical.into() };
        if block.block == 0 {
            hole(checker, place);
            continue;
        }
        match checker.reader.block(block.block) {
            Ok(content) => walk.block(checker, block, content, tree.as_mut())?,
            Err(_) => checker.findings.add(Problem::Unreadable, place),
        }
    }
    missing(checker, directory, blocks, count);
    if let Some(tree) = tree {
        tree.finish(checker);
    }
    Ok(())
}

/// Holes are read as blocks without names in volumes of large directories, and in no others.
fn hole(checker: &mut Checker, place: Place) {
    let features = &checker.superblock.features;
    if !features.has_incompat(incompat::LARGEDIR) || features.has_incompat(incompat::INLINE_DATA) {
        checker.findings.add(Problem::DirectoryHole, place);
    }
}

/// Looks for blocks that are mapped nowhere, should they not be listed as holes.
fn missing(checker: &mut Checker, directory: &Directory, blocks: &[DirectoryBlock], count: u32) {
    let mut next = 0;
    for block in blocks {
        if block.logical > next {
            let place = Place::Content { inode: directory.inode, block: next.into() };
            hole(checker, place);
        }
        next = block.logical.saturating_add(1);
    }
    if count == 0 {
        checker.findings.add(Problem::DirectoryEmpty, Place::Inode(directory.inode));
    }
}

/// Checks a directory that is in its inode.
fn inline(checker: &mut Checker, walk: &mut Walk, directory: &Directory) {
    let place = Place::Inode(directory.inode);
    let Ok(record) = checker.record(directory.inode) else {
        checker.findings.add(Problem::Unreadable, place);
        return;
    };
    let head = &record[0x28..0x28 + INLINE_HEAD];
    let tail = inline_tail(&record).unwrap_or_default();
    if !tail.len().is_multiple_of(4) || (1..12).contains(&tail.len()) {
        let found = (INLINE_HEAD + tail.len()) as u64;
        checker.findings.field(Problem::InlineDirectory, place, "size", found);
    }
    walk.inline_parent(checker, get_u32(head, 0));
    walk.inline_chain(checker, &head[4..]);
    walk.inline_chain(checker, &tail);
}

/// The part of inline content that is an attribute.
pub(super) fn inline_tail(record: &[u8]) -> Option<Vec<u8>> {
    if record.len() <= 132 {
        return None;
    }
    let extra = usize::from(u16::from_le_bytes([record[128], record[129]]));
    let bytes = record.get(128 + extra..)?;
    if bytes.len() < 8 || get_u32(bytes, 0) != 0xea02_0000 {
        return None;
    }
    super::xattr_entries::Area { bytes, start: 4, values: 4, in_inode: true }.find(INLINE_DATA)
}
