//! Repairs of single structures: records of inodes, descriptors, blocks of attributes, indexes.

use std::collections::HashSet;

use super::extents;
use crate::check::dir_index::Kind;
use crate::check::facts::{Directory, DirectoryBlock};
use crate::check::report::Finding;
use crate::check::{Checker, Place, Problem, directories, orphans};
use crate::dir_block::{get_u32, put_u16, put_u32};
use crate::error::Result;
use crate::features::ro_compat;
use crate::group::INODE_UNINIT;
use crate::inode::{ROOT_INODE, flags};
use crate::xattr;

/// Where in a record the fields are that repairs change.
mod field {
    pub(super) const MODE: usize = 0x00;
    pub(super) const SIZE: usize = 0x04;
    pub(super) const CTIME: usize = 0x0c;
    pub(super) const DTIME: usize = 0x14;
    pub(super) const LINKS: usize = 0x1a;
    pub(super) const BLOCKS: usize = 0x1c;
    pub(super) const FLAGS: usize = 0x20;
    pub(super) const VERSION: usize = 0x24;
    pub(super) const BLOCK: usize = 0x28;
    pub(super) const SIZE_HIGH: usize = 0x6c;
    pub(super) const BLOCKS_HIGH: usize = 0x74;
}

/// Repairs whatever does not depend on bitmaps.
pub(super) fn apply(checker: &mut Checker) -> Result<()> {
    let suspects = checker.findings.suspects();
    let found = checker.findings.kept.clone();
    let damaged = damaged_places(&found);
    for finding in &found {
        match finding.place {
            Place::Superblock if finding.kind == Problem::SuperblockChecksum => {
                checker.change_superblock(|_| ())?
            }
            Place::Content { inode, .. }
                if finding.kind == Problem::ExtentChecksum && !suspects.contains(&inode) =>
            {
                extents::seal(checker, inode)?;
            }
            Place::Inode(inode) if !suspects.contains(&inode) => record(checker, inode, finding)?,
            Place::Group(group) if !damaged.contains(&finding.place) => descriptor(checker, group, finding)?,
            Place::Block(block) if !damaged.contains(&finding.place) => attributes(checker, block, finding)?,
            _ => {}
        }
    }
    gathered(checker, &suspects)?;
    orphan_lists(checker, &found)
}

/// Places of which something is wrong that no repair can put right.
fn damaged_places(found: &[Finding]) -> HashSet<&Place> {
    found.iter().filter(|finding| !finding.kind.is_repairable()).map(|finding| &finding.place).collect()
}

/// Repairs one field of a record.
fn record(checker: &mut Checker, inode: u32, finding: &Finding) -> Result<()> {
    let used = checker.facts.is_used(inode);
    let now = checker.superblock.last_used() as u32;
    let huge = checker.superblock.features.has_ro_compat(ro_compat::HUGE_FILE);
    match (finding.kind, finding.expected, finding.found) {
        // Whatever the content is of what is not in use.
        (Problem::InodeChecksum, ..) => checker.change_record(inode, |_| ()),
        // Of what only the volume itself uses nothing tells whether content or count is right.
        (Problem::InodeBlocks, ..) if inode != ROOT_INODE && inode < checker.superblock.first_inode() => {
            Ok(())
        }
        (Problem::DirNlink, ..) => checker.change_superblock(|bytes| {
            let now = get_u32(bytes, 0x64);
            put_u32(bytes, 0x64, now | ro_compat::DIR_NLINK);
        }),
        (Problem::InodeBlocks, Some(expected), _) if huge || expected >> 32 == 0 => {
            checker.change_record(inode, |record| {
                put_u32(record, field::BLOCKS, expected as u32);
                if huge {
                    put_u16(record, field::BLOCKS_HIGH, (expected >> 32) as u16);
                }
            })
        }
        // Content that was written comes to light again; none is cut off.
        (Problem::InodeSize, Some(expected), Some(size)) if expected > size && used => {
            checker.change_record(inode, |record| {
                put_u32(record, field::SIZE, expected as u32);
                put_u32(record, field::SIZE_HIGH, (expected >> 32) as u32);
            })
        }
        (Problem::DeletedTime | Problem::OrphanLink, ..) => checker.change_record(inode, |record| {
            let links = record[field::LINKS] | record[field::LINKS + 1];
            let mode = record[field::MODE] | record[field::MODE + 1];
            let time = if links != 0 || mode == 0 { 0 } else { now };
            put_u32(record, field::DTIME, time);
        }),
        _ => Ok(()),
    }
}

/// Lets a descriptor promise nothing, and be true.
fn descriptor(checker: &mut Checker, number: u32, finding: &Finding) -> Result<()> {
    // Without checksums flags mean nothing; with them bitmaps are put right later, and the flags with them.
    let meaningless = finding.kind == Problem::GroupUninit && !checker.superblock.features.group_csum();
    if !meaningless && !matches!(finding.kind, Problem::GroupChecksum | Problem::GroupUnused) {
        return Ok(());
    }
    let Some(mut group) = checker.groups.get(number as usize).cloned() else { return Ok(()) };
    group.flags &= !INODE_UNINIT;
    group.itable_unused = 0;
    checker.put_group(number, &group)
}

/// Repairs a block of attributes of which no more than the head is wrong.
fn attributes(checker: &mut Checker, block: u64, finding: &Finding) -> Result<()> {
    let references = match (finding.kind, finding.expected) {
        (Problem::AttributeReferences, Some(expected)) => Some(expected as u32),
        (Problem::AttributeChecksum, _) => None,
        _ => return Ok(()),
    };
    let mut content = checker.reader.block(block)?;
    if let Some(references) = references {
        put_u32(&mut content, 4, references);
    }
    let seed = checker.superblock.checksum_seed;
    let seed = checker.superblock.features.metadata_csum().then_some(seed);
    xattr::seal_block(&mut content, block, seed);
    checker.put_block(block, &content)
}

/// Repairs what the passes gathered.
fn gathered(checker: &mut Checker, suspects: &HashSet<u32>) -> Result<()> {
    let wanted = std::mem::take(&mut checker.repairs);
    // A count that is too low loses content with the next name that goes: names may be where nobody can read.
    let certain = checker.findings.are_certain();
    for (inode, links) in &wanted.links {
        if !certain && *links < u32::from(checker.facts.get(*inode).links) {
            continue;
        }
        checker.change_record(*inode, |record| put_u16(record, field::LINKS, *links as u16))?;
    }
    for (inode, references) in &wanted.references {
        checker.change_record(*inode, |record| {
            put_u32(record, field::CTIME, (*references >> 32) as u32);
            put_u32(record, field::VERSION, *references as u32);
        })?;
    }
    for group in &wanted.initialised {
        if let Some(mut group_now) = checker.groups.get(*group as usize).cloned() {
            group_now.flags &= !INODE_UNINIT;
            group_now.itable_unused = 0;
            checker.put_group(*group, &group_now)?;
        }
    }
    let known = |checker: &Checker, inode: u32| {
        checker
            .directory_index(inode)
            .map(|index| checker.directories[index])
            .filter(|_| !suspects.contains(&inode))
    };
    for (inode, parent) in &wanted.parents {
        if let Some(directory) = known(checker, *inode) {
            lead_up(checker, &directory, *parent)?;
        }
    }
    for inode in &wanted.rebuilt {
        if let Some(directory) = known(checker, *inode).filter(|found| found.flags & flags::INDEX != 0) {
            drop_index(checker, &directory)?;
        }
    }
    checker.repairs = wanted;
    Ok(())
}

/// The blocks of a directory, with their logical numbers.
fn blocks(checker: &Checker, directory: &Directory) -> Vec<(u32, u64)> {
    let first = checker.directory_blocks.partition_point(|block| block.inode < directory.inode);
    let own = checker.directory_blocks[first..].iter().take_while(|block| block.inode == directory.inode);
    own.filter(|block| block.block != 0).map(|block| (block.logical, block.block)).collect()
}

/// Lets the `..` of a directory lead to its parent.
fn lead_up(checker: &mut Checker, directory: &Directory, parent: u32) -> Result<()> {
    if directory.flags & flags::INLINE_DATA != 0 {
        return checker.change_record(directory.inode, |record| put_u32(record, field::BLOCK, parent));
    }
    let Some((_, block)) = blocks(checker, directory).into_iter().find(|(logical, _)| *logical == 0) else {
        return Ok(());
    };
    let mut content = checker.reader.block(block)?;
    if content[4..6] != [12, 0] || content[18] != 2 || content[20..22] != *b".." {
        return Ok(());
    }
    put_u32(&mut content, 12, parent);
    let format = directories::format(checker, directory);
    let indexed = directory.flags & flags::INDEX != 0;
    let kind = if indexed { Kind::Root } else { Kind::Leaf };
    let at = DirectoryBlock { block, inode: directory.inode, logical: 0 };
    checker.put_directory_block(&format, &at, kind, content)
}

/// Makes a directory without index of one whose index is damaged: its nodes become blocks without names.
fn drop_index(checker: &mut Checker, directory: &Directory) -> Result<()> {
    let format = directories::format(checker, directory);
    for (logical, block) in blocks(checker, directory) {
        let content = checker.reader.block(block)?;
        let size = content.len();
        let covering = crate::htree::looks_like_node(&content);
        let (parent, named) = (get_u32(&content, 12), content[20..22] == *b"..");
        let next = match logical {
            0 if named => format.first_block(size, directory.inode, parent),
            0 => format.first_block(size, directory.inode, ROOT_INODE),
            _ if covering => format.empty_block(size),
            _ => continue,
        };
        checker.put_block(block, &next)?;
    }
    checker.change_record(directory.inode, |record| {
        let now = get_u32(record, field::FLAGS);
        put_u32(record, field::FLAGS, now & !flags::INDEX);
    })
}

/// Forgets orphans that could not be done away with when the volume was recovered.
fn orphan_lists(checker: &mut Checker, all: &[Finding]) -> Result<()> {
    let has = |kind: Problem| all.iter().any(|finding| finding.kind == kind);
    if has(Problem::Orphan) || has(Problem::OrphanList) {
        checker.change_superblock(|bytes| put_u32(bytes, 0xe8, 0))?;
    }
    if has(Problem::OrphanInFile) || has(Problem::OrphanFile) {
        empty_file(checker)?;
    }
    if has(Problem::OrphanPresent) {
        checker.change_superblock(|bytes| {
            let now = get_u32(bytes, 0x64);
            put_u32(bytes, 0x64, now & !ro_compat::ORPHAN_PRESENT);
        })?;
    }
    Ok(())
}

/// Empties the blocks of the orphan file that are there.
fn empty_file(checker: &mut Checker) -> Result<()> {
    let Ok(inode) = checker.fields(checker.superblock.orphan_file_inode()) else { return Ok(()) };
    let cache = checker.reader.cache();
    let blocks = (inode.size / u64::from(checker.superblock.block_size)).min(1 << 16);
    for logical in 0..blocks {
        let Ok(Some(block)) = checker.content_block(&cache, &inode, logical) else { continue };
        let empty = orphans::empty_block(checker, &inode, block);
        if checker.reader.block(block)? != empty {
            checker.put_block(block, &empty)?;
        }
    }
    Ok(())
}
