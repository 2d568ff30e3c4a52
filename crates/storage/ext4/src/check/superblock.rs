//! The superblock: found, believed as far as it must be, and held against what it may say.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::facts::{Claims, Facts};
use super::reader::Reader;
use super::report::{Findings, Place, Stats};
use super::{CheckOptions, Checker, Problem, quota, xattrs};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::group::{self, Group};
use crate::layout::SUPERBLOCK_OFFSET;
use crate::superblock::Superblock;

/// Begins a check: reads the superblock and the descriptors.
pub(super) fn open(disk: Arc<dyn Disk>, options: &CheckOptions) -> Result<Checker> {
    let corrupt = |problem| Error::corrupt(crate::error::Place::Superblock, problem);
    let mut bytes = [0; 1024];
    if disk.len() < SUPERBLOCK_OFFSET + 1024 {
        return Err(corrupt("the disk is too small to hold one"));
    }
    disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("read", source))?;
    let superblock = Superblock::for_check(&bytes)?;
    superblock.features.check_readable()?;
    let mut findings = Findings { limit: options.max_findings, ..Findings::default() };
    if superblock.features.metadata_csum() {
        let (expected, found) = (crc32c(!0, &bytes[..1020]), superblock.raw().s_checksum.get());
        if expected != found {
            let (expected, found) = (expected.into(), found.into());
            findings.mismatch(Problem::SuperblockChecksum, Place::Superblock, "", expected, found);
        }
    }
    let reader = Reader::new(disk, superblock.block_size, superblock.blocks);
    let mut checker = Checker {
        options: *options,
        findings,
        facts: Facts::new(superblock.groups, superblock.inodes_per_group),
        claims: Claims::new(superblock.blocks, superblock.cluster_blocks),
        directories: Vec::new(),
        directory_blocks: Vec::new(),
        stats: Stats::default(),
        journal_replayed: false,
        xattrs: xattrs::Attributes::default(),
        quota: quota::Usage::default(),
        groups: Vec::new(),
        reader,
        superblock,
    };
    checker.groups = read_groups(&checker.reader, &checker.superblock)?;
    Ok(checker)
}

/// Reads every descriptor as it is.
fn read_groups(reader: &Reader, superblock: &Superblock) -> Result<Vec<Group>> {
    let (size, groups) = (usize::from(superblock.desc_size), superblock.groups as usize);
    let mut decoded = Vec::with_capacity(groups);
    for index in 0..superblock.descriptor_blocks() {
        let content = reader.block(superblock.descriptor_block(index))?;
        let here = content.chunks_exact(size).take(groups - decoded.len());
        decoded.extend(here.map(|bytes| group::decode(superblock, bytes)));
    }
    Ok(decoded)
}
