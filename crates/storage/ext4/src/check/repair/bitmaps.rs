//! Bitmaps and counts, written anew from what is in use.

use std::collections::HashSet;

use crate::bitmap;
use crate::check::{Checker, Place, Problem};
use crate::checksum::crc32c;
use crate::dir_block::{TYPE_DIRECTORY, get_u16, put_u16, put_u32};
use crate::error::Result;
use crate::features::incompat;
use crate::group::{BLOCK_UNINIT, Group, INODE_UNINIT};

/// Bits of `s_state`.
const VALID: u16 = 0x1;
const ERROR: u16 = 0x2;

/// Writes what is wrong of bitmaps and counts. Where something is damaged that cannot be put right, what
/// seems free may be in use: nothing is freed then.
pub(super) fn apply(checker: &mut Checker) -> Result<()> {
    let concerned = |kind: Problem| {
        use Problem::{
            BitmapPadding, BlockBitmap, BlockBitmapChecksum, FreeBlocksTotal, FreeInodesTotal,
            GroupDirectories, GroupFreeBlocks, GroupFreeInodes, GroupUninit, InodeBitmap,
            InodeBitmapChecksum,
        };
        matches!(
            kind,
            BitmapPadding
                | BlockBitmap
                | BlockBitmapChecksum
                | FreeBlocksTotal
                | FreeInodesTotal
                | GroupDirectories
                | GroupFreeBlocks
                | GroupFreeInodes
                | GroupUninit
                | InodeBitmap
                | InodeBitmapChecksum
        )
    };
    if !checker.findings.kept.iter().any(|finding| concerned(finding.kind)) {
        return Ok(());
    }
    let freeing = checker.findings.are_certain();
    let wrong = checker.findings.kept.iter().filter(|finding| {
        matches!(finding.kind, Problem::GroupUninit | Problem::BlockBitmap | Problem::InodeBitmap)
    });
    let uninit: HashSet<u32> = wrong
        .filter_map(|finding| match finding.place {
            Place::Group(group) => Some(group),
            _ => None,
        })
        .collect();
    let (mut free_blocks, mut free_inodes) = (0_u64, 0_u32);
    for number in 0..checker.superblock.groups {
        let mut group = checker.groups[number as usize].clone();
        if !is_placed(checker, &group) {
            return Ok(());
        }
        blocks(checker, number, &mut group, (freeing, uninit.contains(&number)))?;
        inodes(checker, number, &mut group, freeing)?;
        free_blocks += u64::from(group.free_blocks);
        free_inodes = free_inodes.saturating_add(group.free_inodes);
        checker.put_group(number, &group)?;
    }
    free_blocks *= u64::from(checker.superblock.cluster_blocks);
    let wide = checker.superblock.features.has_incompat(incompat::BIT64);
    checker.change_superblock(|bytes| {
        put_u32(bytes, 0x0c, free_blocks as u32);
        if wide {
            put_u32(bytes, 0x158, (free_blocks >> 32) as u32);
        }
        put_u32(bytes, 0x10, free_inodes);
    })
}

fn is_placed(checker: &Checker, group: &Group) -> bool {
    [group.block_bitmap, group.inode_bitmap].iter().all(|block| checker.superblock.is_valid_block(*block))
}

/// Writes the bitmap of a group's clusters, and its count.
fn blocks(
    checker: &mut Checker,
    number: u32,
    group: &mut Group,
    (freeing, wrong): (bool, bool),
) -> Result<()> {
    let superblock = &checker.superblock;
    let clusters = superblock.blocks_per_group / superblock.cluster_blocks;
    let here = superblock.group_blocks(number).div_ceil(superblock.cluster_blocks);
    let first = checker.claims.cluster(superblock.group_start(number));
    let size = superblock.block_size as usize;
    let unwritten = group.flags & BLOCK_UNINIT != 0;
    let mut actual = vec![0; size];
    checker.claims.used.copy(first, here.into(), &mut actual);
    let found = checker.reader.block(group.block_bitmap)?;
    if !freeing && !unwritten {
        actual.iter_mut().zip(&found).for_each(|(actual, found)| *actual |= found);
    }
    bitmap::fill(&mut actual, here, (size * 8) as u32, true);
    group.free_blocks = bitmap::count_clear(&actual, here);
    if unwritten && !wrong {
        return Ok(());
    }
    group.flags &= !BLOCK_UNINIT;
    if checker.superblock.features.metadata_csum() {
        group.block_bitmap_csum = crc32c(checker.superblock.checksum_seed, &actual[..clusters as usize / 8]);
    }
    if actual != found {
        checker.put_block(group.block_bitmap, &actual)?;
    }
    Ok(())
}

/// Writes the bitmap of a group's inodes, and its counts.
fn inodes(checker: &mut Checker, number: u32, group: &mut Group, freeing: bool) -> Result<()> {
    let per_group = checker.superblock.inodes_per_group;
    let size = checker.superblock.block_size as usize;
    let mut actual = vec![0; size];
    let (mut directories, mut last) = (0, 0);
    let first = number * per_group;
    for index in 0..per_group {
        let fact = checker.facts.get(first + index + 1);
        let reserved = first + index + 1 < checker.superblock.first_inode();
        if fact.marks & crate::check::facts::mark::USED != 0 || reserved {
            bitmap::fill(&mut actual, index, index + 1, true);
            directories += u32::from(fact.kind == TYPE_DIRECTORY);
            last = index + 1;
        }
    }
    let found = checker.reader.block(group.inode_bitmap)?;
    if !freeing && group.flags & INODE_UNINIT == 0 {
        actual.iter_mut().zip(&found).for_each(|(actual, found)| *actual |= found);
    }
    bitmap::fill(&mut actual, per_group, (size * 8) as u32, true);
    group.free_inodes = bitmap::count_clear(&actual, per_group);
    group.used_dirs = directories;
    if group.flags & INODE_UNINIT != 0 && last == 0 {
        return Ok(());
    }
    group.flags &= !INODE_UNINIT;
    group.itable_unused = group.itable_unused.min(per_group - last);
    if checker.superblock.features.metadata_csum() {
        group.inode_bitmap_csum = crc32c(checker.superblock.checksum_seed, &actual[..per_group as usize / 8]);
    }
    if actual != found {
        checker.put_block(group.inode_bitmap, &actual)?;
    }
    Ok(())
}

/// Marks a volume as clean of which nothing else is wrong.
pub(super) fn mark_clean(checker: &mut Checker) -> Result<()> {
    let only_state = checker.findings.kept.iter().all(|finding| finding.kind == Problem::StateNotClean);
    if !only_state || checker.findings.total == 0 {
        return Ok(());
    }
    checker.change_superblock(|bytes| {
        let now = get_u16(bytes, 0x3a);
        put_u16(bytes, 0x3a, now & !ERROR | VALID);
    })
}
