//! The content of directories: every entry of every block.
//!
//! A block is put right in memory as it is walked, so that one thing that is wrong hides nothing behind it.
//! Where the check repairs, that is what is written.

use std::ops::Range;

use super::Checker;
use super::dir_index::Index;
use super::dir_walk::Walk;
use super::facts::{Directory, DirectoryBlock};
use super::tree::Tree;
use super::xattr_entries::Area;
use super::{Place, Problem};
use crate::dir_block::{DirFormat, get_u32};
use crate::error::Result;
use crate::features::{compat, incompat};
use crate::fold;
use crate::inode::flags;
use crate::superblock::Superblock;
use crate::xattr::INLINE_DATA;

/// Where in a record the block map is, and inline content begins.
const I_BLOCK: usize = 0x28;

/// How many blocks of one hole are told apart.
const MAX_HOLES: usize = 1 << 12;

/// The bytes of inline content that are in the block map's place.
const INLINE_HEAD: usize = 60;

/// Checks every block of every directory.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let (groups, per_group) = (checker.superblock.groups, checker.superblock.inodes_per_group);
    checker.tree = Tree::new(groups, per_group, checker.directories.len());
    if let Some(root) = checker.directory_index(crate::inode::ROOT_INODE) {
        checker.tree.parents[root] = crate::inode::ROOT_INODE;
    }
    if checker.repairing {
        checker.repairs.suspects = checker.findings.suspects();
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
        return inline(checker, &mut walk, directory);
    }
    let indexed = directory.flags & flags::INDEX != 0;
    let known = checker.superblock.features.has_compat(compat::DIR_INDEX);
    let count = blocks.last().map_or(0, |last| last.logical.saturating_add(1));
    // A directory of mostly holes is too damaged for its index to matter, and could take any memory.
    let dense = (count as usize) <= blocks.len().saturating_mul(2).saturating_add(MAX_HOLES);
    let mut tree = (indexed && known && dense).then(|| Index::new(count, directory, &checker.superblock));
    for block in blocks {
        let place = Place::Content { inode: directory.inode, block: block.logical.into() };
        if block.block == 0 {
            hole(checker, place, (directory.inode, block.logical.into()));
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
fn hole(checker: &mut Checker, place: Place, at: (u32, u64)) {
    let features = &checker.superblock.features;
    if !features.has_incompat(incompat::LARGEDIR) || features.has_incompat(incompat::INLINE_DATA) {
        checker.findings.add(Problem::DirectoryHole, place);
        checker.repairs.fill(at.0, at.1);
    }
}

/// Looks for blocks that are mapped nowhere, should they not be listed as holes.
fn missing(checker: &mut Checker, directory: &Directory, blocks: &[DirectoryBlock], count: u32) {
    let mut next = 0;
    for block in blocks {
        if block.logical > next {
            let place = Place::Content { inode: directory.inode, block: next.into() };
            let holes = (next..block.logical).take(MAX_HOLES);
            holes.for_each(|at| hole(checker, place.clone(), (directory.inode, at.into())));
        }
        next = block.logical.saturating_add(1);
    }
    if count == 0 {
        checker.findings.add(Problem::DirectoryEmpty, Place::Inode(directory.inode));
    }
}

/// Checks a directory that is in its inode.
fn inline(checker: &mut Checker, walk: &mut Walk, directory: &Directory) -> Result<()> {
    let place = Place::Inode(directory.inode);
    let Ok(mut record) = checker.record(directory.inode) else {
        checker.findings.add(Problem::Unreadable, place);
        return Ok(());
    };
    let before = record.clone();
    let tail = inline_tail(&record);
    let len = tail.clone().map_or(0, |(_, tail)| tail.len());
    if !len.is_multiple_of(4) || (1..12).contains(&len) {
        let found = (INLINE_HEAD + len) as u64;
        checker.findings.field(Problem::InlineDirectory, place, "size", found);
    }
    walk.inline_parent(checker, get_u32(&record, I_BLOCK));
    walk.inline_chain(checker, &mut record[I_BLOCK + 4..I_BLOCK + INLINE_HEAD]);
    if let Some((hash, tail)) = tail {
        walk.inline_chain(checker, &mut record[tail.clone()]);
        if record[tail.clone()] != before[tail] {
            // Zero stands for a hash that nobody has taken.
            record[hash..hash + 4].fill(0);
        }
    }
    if record != before {
        checker.put_record(directory.inode, record)?;
    }
    Ok(())
}

/// Where in a record the part of inline content is that is an attribute, behind the place of its hash.
fn inline_tail(record: &[u8]) -> Option<(usize, Range<usize>)> {
    let extra = record.get(128..130).map(|extra| usize::from(u16::from_le_bytes([extra[0], extra[1]])))?;
    let bytes = record.get(128 + extra..)?;
    if bytes.len() < 8 || get_u32(bytes, 0) != 0xea02_0000 {
        return None;
    }
    let (at, range) = Area { bytes, start: 4, values: 4, in_inode: true }.range(INLINE_DATA)?;
    let start = 128 + extra;
    Some((start + at + 12, start + range.start..start + range.end))
}
