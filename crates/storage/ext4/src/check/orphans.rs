//! Inodes whose removal was under way: the list that begins in the superblock, and the file.

use std::collections::HashSet;

use super::{Checker, Place, Problem};
use crate::block_cache::BlockCache;
use crate::checksum::crc32c;
use crate::dir_block::{get_u32, put_u32};
use crate::error::Result;
use crate::features::{compat, ro_compat};
use crate::inode::Inode;

/// What stands at the end of each block of the file, before its checksum.
const MAGIC: u32 = 0x0b10_ca04;

/// The size of that and the checksum.
const TAIL: usize = 8;

/// The longest file in blocks; mke2fs makes at most 512.
const MAX_BLOCKS: u64 = 1 << 16;

/// Checks the list and the file of orphans.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    list(checker);
    let features = checker.superblock.features;
    let present = features.has_ro_compat(ro_compat::ORPHAN_PRESENT);
    if !features.has_compat(compat::ORPHAN_FILE) {
        if present {
            checker.findings.add(Problem::OrphanPresent, Place::Superblock);
        }
        return Ok(());
    }
    if !features.has_compat(compat::HAS_JOURNAL) {
        checker.findings.field(Problem::OrphanFile, Place::Superblock, "has_journal", 0);
    }
    let dirty = file(checker);
    if present && !dirty {
        checker.findings.add(Problem::OrphanPresent, Place::Superblock);
    }
    Ok(())
}

/// Follows the list.
fn list(checker: &mut Checker) {
    let mut seen = HashSet::new();
    let mut next = checker.superblock.last_orphan();
    while next != 0 {
        let place = Place::Inode(next);
        let (first, last) = (checker.superblock.first_inode(), checker.superblock.inodes);
        if next < first || next > last || !seen.insert(next) {
            checker.findings.field(Problem::OrphanList, Place::Superblock, "inode", next.into());
            return;
        }
        checker.findings.add(Problem::Orphan, place);
        next = match checker.record(next) {
            Ok(record) => get_u32(&record, 0x14),
            Err(_) => 0,
        };
    }
}

/// Looks at every block of the file; answers whether any names an orphan or is damaged.
fn file(checker: &mut Checker) -> bool {
    let number = checker.superblock.orphan_file_inode();
    let place = Place::Inode(number);
    let Ok(inode) = checker.fields(number) else {
        checker.findings.add(Problem::OrphanFile, place);
        return true;
    };
    let block_size = u64::from(checker.superblock.block_size);
    let blocks = inode.size / block_size;
    if !inode.size.is_multiple_of(block_size) || blocks > MAX_BLOCKS {
        checker.findings.field(Problem::OrphanFile, place, "size", inode.size);
        return true;
    }
    let cache = checker.reader.cache();
    (0..blocks).fold(false, |dirty, logical| dirty | !file_block(checker, &cache, &inode, logical))
}

/// Whether a block of the file is there, and empty.
fn file_block(checker: &mut Checker, cache: &BlockCache, inode: &Inode, logical: u64) -> bool {
    let place = Place::Content { inode: inode.number, block: logical };
    let Ok(Some(block)) = checker.content_block(cache, inode, logical) else {
        checker.findings.field(Problem::OrphanFile, place, "hole", logical);
        return false;
    };
    let Ok(content) = checker.reader.block(block) else {
        checker.findings.add(Problem::Unreadable, place);
        return false;
    };
    let names = (0..(content.len() - TAIL) / 4).filter(|index| get_u32(&content, index * 4) != 0).count();
    if names > 0 {
        checker.findings.field(Problem::OrphanInFile, place, "entries", names as u64);
        return false;
    }
    if content != empty_block(checker, inode, block) {
        checker.findings.field(Problem::OrphanFile, place, "block", block);
        return false;
    }
    true
}

/// What a block of the file is where no orphan is in it.
pub(super) fn empty_block(checker: &Checker, inode: &Inode, block: u64) -> Vec<u8> {
    let mut empty = vec![0; checker.superblock.block_size as usize];
    let at = empty.len() - TAIL;
    put_u32(&mut empty, at, MAGIC);
    if let Some(seed) = inode.checksum_seed(&checker.superblock) {
        let checksum = crc32c(crc32c(seed, &block.to_le_bytes()), &empty[..at]);
        put_u32(&mut empty, at + 4, checksum);
    }
    empty
}
