//! Bitmaps and counts: what is in use, held against what the volume says is.

use super::bits::Bits;
use super::facts::mark;
use super::report::Place;
use super::{Checker, Problem};
use crate::checksum::crc32c;
use crate::error::Result;
use crate::group::{BLOCK_UNINIT, INODE_UNINIT};

/// Compares bitmaps and counts with the facts.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let uninit = never_written(checker);
    let (mut free_blocks, mut free_inodes) = (0_u64, 0_u64);
    for group in 0..checker.superblock.groups {
        free_blocks += u64::from(blocks(checker, group, &uninit));
        free_inodes += u64::from(inodes(checker, group));
    }
    free_blocks *= u64::from(checker.superblock.cluster_blocks);
    let superblock = &checker.superblock;
    checker.stats.blocks = superblock.blocks;
    checker.stats.blocks_used = superblock.blocks.saturating_sub(free_blocks);
    checker.stats.inodes_used = checker.stats.inodes.saturating_sub(free_inodes);
    let (blocks, inodes) = (superblock.recorded_free_blocks(), u64::from(superblock.free_inodes));
    let place = Place::Superblock;
    if blocks != free_blocks {
        checker.findings.mismatch(Problem::FreeBlocksTotal, place.clone(), "", free_blocks, blocks);
    }
    if inodes != free_inodes {
        checker.findings.mismatch(Problem::FreeInodesTotal, place, "", free_inodes, inodes);
    }
    Ok(())
}

/// The metadata of groups whose bitmaps were never written: what those bitmaps would say.
fn never_written(checker: &Checker) -> Bits {
    let superblock = &checker.superblock;
    let mut bits = Bits::new(superblock.blocks);
    let table = superblock.inode_table_blocks();
    for (number, group) in (0..).zip(&checker.groups) {
        if group.flags & BLOCK_UNINIT != 0 {
            bits.set_range(superblock.group_start(number), superblock.head_blocks(number));
            bits.set_range(group.inode_table, table);
            bits.set(group.block_bitmap);
            bits.set(group.inode_bitmap);
        }
    }
    bits
}

/// Reads a bitmap; where it cannot be read, or is nowhere, nothing is set in it.
fn read(checker: &mut Checker, block: u64) -> Vec<u8> {
    let empty = vec![0; checker.reader.block_size()];
    if block == 0 || block >= checker.superblock.blocks {
        return empty;
    }
    checker.reader.block(block).unwrap_or_else(|_| {
        checker.findings.add(Problem::Unreadable, Place::Block(block));
        empty
    })
}

/// The first bit in which two bitmaps differ.
fn compare(actual: &[u8], found: &[u8], len: u32) -> Option<u32> {
    let whole = len as usize / 8;
    let differs = |bit: &u32| crate::bitmap::is_set(actual, *bit) != crate::bitmap::is_set(found, *bit);
    let byte = match actual[..whole] == found[..whole] {
        true => None,
        false => actual[..whole].iter().zip(&found[..whole]).position(|(a, b)| a != b),
    };
    let from = byte.unwrap_or(whole) as u32 * 8;
    (from..len).find(differs)
}

/// Checks the block bitmap of a group and its count; answers how many clusters are free.
fn blocks(checker: &mut Checker, number: u32, uninit: &Bits) -> u32 {
    let superblock = &checker.superblock;
    let ratio = superblock.cluster_blocks;
    let per_group = superblock.blocks_per_group / ratio;
    let len = superblock.group_blocks(number).div_ceil(ratio);
    let start = checker.claims.cluster(superblock.group_start(number));
    let group = checker.groups[number as usize].clone();
    let mut actual = vec![0; checker.reader.block_size()];
    checker.claims.used.copy(start, len.into(), &mut actual);
    let unwritten = group.flags & BLOCK_UNINIT != 0;
    let mut found = match unwritten {
        true => vec![0; checker.reader.block_size()],
        false => read(checker, group.block_bitmap),
    };
    if !unwritten && group.block_bitmap != 0 && group.block_bitmap < checker.superblock.blocks {
        let expected = crc32c(checker.superblock.checksum_seed, &found[..per_group as usize / 8]);
        let what = (Problem::BlockBitmapChecksum, Place::Group(number));
        checksum(checker, what, expected, group.block_bitmap_csum);
        padding(checker, number, "block bitmap", &found, len);
    }
    overlay(checker, number, uninit, &mut found);
    let free = crate::bitmap::count_clear(&actual, len);
    if let Some(first) = compare(&actual, &found, len) {
        let kind = if unwritten { Problem::GroupUninit } else { Problem::BlockBitmap };
        let block = (start + u64::from(first)) * u64::from(ratio);
        checker.findings.field(kind, Place::Group(number), "first block that differs", block);
    } else if free != group.free_blocks {
        let (expected, found) = (free.into(), group.free_blocks.into());
        checker.findings.mismatch(Problem::GroupFreeBlocks, Place::Group(number), "", expected, found);
    }
    free
}

/// Adds to a bitmap what groups whose own were never written have in this group.
fn overlay(checker: &Checker, number: u32, uninit: &Bits, found: &mut [u8]) {
    let start = checker.superblock.group_start(number);
    let end = start + u64::from(checker.superblock.group_blocks(number));
    let first = checker.claims.cluster(start);
    let mut at = start;
    while let Some(block) = uninit.next(at).filter(|block| *block < end) {
        let bit = (checker.claims.cluster(block) - first) as u32;
        crate::bitmap::fill(found, bit, bit + 1, true);
        at = block + 1;
    }
}

/// Compares a checksum, of which short descriptors keep only the lower half.
fn checksum(checker: &mut Checker, (kind, place): (Problem, Place), expected: u32, found: u32) {
    let expected = if checker.superblock.desc_size >= 64 { expected } else { expected & 0xffff };
    if checker.superblock.features.metadata_csum() && expected != found {
        checker.findings.mismatch(kind, place, "", expected.into(), found.into());
    }
}

/// The bits behind the last block or inode of a group are set.
fn padding(checker: &mut Checker, number: u32, what: &'static str, bits: &[u8], len: u32) {
    let end = bits.len() as u32 * 8;
    let clear = crate::bitmap::find(bits, len, end, false);
    if clear != end {
        checker.findings.field(Problem::BitmapPadding, Place::Group(number), what, clear.into());
    }
}

/// Checks the inode bitmap of a group and its counts; answers how many inodes are free.
fn inodes(checker: &mut Checker, number: u32) -> u32 {
    let per_group = checker.superblock.inodes_per_group;
    let group = checker.groups[number as usize].clone();
    let mut actual = vec![0; checker.reader.block_size()];
    let mut directories = 0;
    if let Some(facts) = checker.facts.group(number) {
        for (bit, fact) in (0..).zip(facts) {
            if fact.marks & mark::USED != 0 {
                crate::bitmap::fill(&mut actual, bit, bit + 1, true);
                directories += u32::from(fact.kind == 2);
            }
        }
    }
    let unwritten = group.flags & INODE_UNINIT != 0;
    let found = match unwritten {
        true => vec![0; checker.reader.block_size()],
        false => read(checker, group.inode_bitmap),
    };
    if !unwritten && group.inode_bitmap != 0 && group.inode_bitmap < checker.superblock.blocks {
        let expected = crc32c(checker.superblock.checksum_seed, &found[..per_group as usize / 8]);
        let what = (Problem::InodeBitmapChecksum, Place::Group(number));
        checksum(checker, what, expected, group.inode_bitmap_csum);
        padding(checker, number, "inode bitmap", &found, per_group);
    }
    let free = crate::bitmap::count_clear(&actual, per_group);
    if let Some(first) = compare(&actual, &found, per_group) {
        let kind = if unwritten { Problem::GroupUninit } else { Problem::InodeBitmap };
        let inode = u64::from(number) * u64::from(per_group) + u64::from(first) + 1;
        checker.findings.field(kind, Place::Group(number), "first inode that differs", inode);
        return free;
    }
    let counts = [
        (Problem::GroupFreeInodes, free, group.free_inodes),
        (Problem::GroupDirectories, directories, group.used_dirs),
    ];
    for (kind, expected, found) in counts {
        if expected != found {
            checker.findings.mismatch(kind, Place::Group(number), "", expected.into(), found.into());
        }
    }
    free
}
