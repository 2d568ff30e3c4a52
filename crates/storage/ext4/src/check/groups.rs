//! Group descriptors: where each group's bitmaps and inode table are, and what they declare unused.

use super::report::Place;
use super::{Checker, Problem};
use crate::error::Result;
use crate::features::incompat;
use crate::group::{self, BLOCK_UNINIT, Group, INODE_UNINIT};
use crate::superblock::Superblock;

/// Reads every descriptor as it is.
pub(super) fn load(checker: &mut Checker) -> Result<()> {
    let mut groups = Vec::with_capacity(checker.superblock.groups as usize);
    for_each(checker, &mut |superblock, _, bytes| groups.push(group::decode(superblock, bytes)))?;
    checker.groups = groups;
    Ok(())
}

/// Calls `visit` for the bytes of each descriptor.
fn for_each(checker: &Checker, visit: &mut dyn FnMut(&Superblock, u32, &[u8])) -> Result<()> {
    let superblock = &checker.superblock;
    let size = usize::from(superblock.desc_size);
    let mut number = 0;
    for index in 0..superblock.descriptor_blocks() {
        let content = checker.reader.block(superblock.descriptor_block(index))?;
        for bytes in content.chunks_exact(size) {
            if number < superblock.groups {
                visit(superblock, number, bytes);
                number += 1;
            }
        }
    }
    Ok(())
}

/// Checks the checksum of each descriptor, and that what only they make trustworthy is not there without.
fn seals(checker: &mut Checker) -> Result<()> {
    let mut wrong = Vec::new();
    for_each(checker, &mut |superblock, number, bytes| {
        let (expected, found) = group::checksums(superblock, number, bytes);
        if expected != found {
            wrong.push((number, expected, found));
        }
        if !superblock.features.group_csum() && group::has_flags(bytes) {
            wrong.push((number, 0, 0));
        }
    })?;
    for (number, expected, found) in wrong {
        let place = Place::Group(number);
        match expected == found {
            true => checker.findings.add_field(Problem::GroupUninit, place, "flags without checksum"),
            false => {
                let (expected, found) = (expected.into(), found.into());
                checker.findings.mismatch(Problem::GroupChecksum, place, "", expected, found);
            }
        }
    }
    Ok(())
}

/// Checks every descriptor and claims what it names.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    seals(checker)?;
    for number in 0..checker.superblock.groups {
        let start = checker.superblock.group_start(number);
        let head = checker.superblock.head_blocks(number);
        checker.claims.metadata.set_range(start, head);
    }
    for number in 0..checker.superblock.groups {
        let group = checker.groups[number as usize].clone();
        places(checker, number, &group);
        flags(checker, number, &group);
    }
    let mmp = checker.superblock.raw().s_mmp_block.get();
    if checker.superblock.features.has_incompat(incompat::MMP) && checker.superblock.is_valid_block(mmp) {
        checker.claims.metadata.set(mmp);
    }
    checker.claims.take_metadata();
    Ok(())
}

/// The blocks in which a group's tables must lie: anywhere with `flex_bg`, in the group without.
fn bounds(checker: &Checker, number: u32) -> (u64, u64) {
    let superblock = &checker.superblock;
    match superblock.features.has_incompat(incompat::FLEX_BG) {
        true => (superblock.first_data_block, superblock.blocks),
        false => {
            let start = superblock.group_start(number);
            (start, start + u64::from(superblock.group_blocks(number)))
        }
    }
}

fn places(checker: &mut Checker, number: u32, group: &Group) {
    let (first, end) = bounds(checker, number);
    let table = checker.superblock.inode_table_blocks();
    let parts = [
        ("inode table", group.inode_table, table),
        ("block bitmap", group.block_bitmap, 1),
        ("inode bitmap", group.inode_bitmap, 1),
    ];
    for (what, block, len) in parts {
        let outside = block == 0 || block < first || block.checked_add(len).is_none_or(|last| last > end);
        if outside {
            checker.findings.field(Problem::GroupPlace, Place::Group(number), what, block);
        }
        // What lies within the volume is in use all the same.
        let within = block != 0 && block < checker.superblock.blocks;
        if within && !checker.claims.metadata.set_range(block, len) && !outside {
            checker.findings.field(Problem::GroupOverlap, Place::Group(number), what, block);
        }
    }
}

fn flags(checker: &mut Checker, number: u32, group: &Group) {
    let place = Place::Group(number);
    let superblock = &checker.superblock;
    let per_group = superblock.inodes_per_group;
    let clusters = superblock.blocks_per_group / superblock.cluster_blocks;
    if group.free_blocks > clusters {
        let (expected, found) = (clusters.into(), group.free_blocks.into());
        checker.findings.mismatch(
            Problem::GroupCount,
            place.clone(),
            "free blocks, at most",
            expected,
            found,
        );
    }
    for (what, found) in
        [("free inodes, at most", group.free_inodes), ("directories, at most", group.used_dirs)]
    {
        if found > per_group {
            checker.findings.mismatch(
                Problem::GroupCount,
                place.clone(),
                what,
                per_group.into(),
                found.into(),
            );
        }
    }
    if number + 1 == superblock.groups && group.flags & BLOCK_UNINIT != 0 {
        let flags = (group.flags & (BLOCK_UNINIT | INODE_UNINIT)).into();
        checker.findings.field(Problem::GroupUninit, place.clone(), "flags of the last group", flags);
    }
    if group.itable_unused > group.free_inodes || group.itable_unused > per_group {
        let (expected, found) = (group.free_inodes.into(), group.itable_unused.into());
        checker.findings.mismatch(Problem::GroupUnused, place, "at most", expected, found);
    }
}
