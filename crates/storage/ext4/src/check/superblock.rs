//! The superblock: found, believed as far as it must be, and held against what it may say.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::facts::{Claims, Facts};
use super::reader::Reader;
use super::report::{Findings, Place, Stats};
use super::{CheckOptions, Checker, Problem, groups, mmp, quota, repair, tree, xattrs};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::features::{Features, compat, incompat, ro_compat};
use crate::layout::SUPERBLOCK_OFFSET;
use crate::superblock::Superblock;

/// `s_state`: unmounted cleanly.
const VALID: u16 = 0x1;
/// `s_state`: the kernel met errors.
const ERRORS: u16 = 0x2;
/// `s_checksum_type`: CRC-32C.
const CHECKSUM_TYPE: u8 = 1;

/// Reads the superblock as it is on a disk.
pub(super) fn read(disk: &dyn Disk) -> Result<Superblock> {
    let corrupt = |problem| Error::corrupt(crate::error::Place::Superblock, problem);
    let mut bytes = [0; 1024];
    if disk.len() < SUPERBLOCK_OFFSET + 1024 {
        return Err(corrupt("the disk is too small to hold one"));
    }
    disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("read", source))?;
    Superblock::for_check(&bytes)
}

/// Begins a check: reads the superblock and the descriptors.
pub(super) fn open(disk: Arc<dyn Disk>, options: &CheckOptions) -> Result<Checker> {
    let superblock = read(&*disk)?;
    superblock.features.check_readable()?;
    superblock.features.check_known()?;
    let reader = Reader::new(disk, superblock.block_size, superblock.blocks);
    let mut checker = Checker {
        findings: Findings { limit: options.max_findings, ..Findings::default() },
        facts: Facts::new(superblock.groups, superblock.inodes_per_group),
        claims: Claims::new(superblock.blocks, superblock.cluster_blocks),
        directories: Vec::new(),
        directory_blocks: Vec::new(),
        stats: Stats::default(),
        journal_replayed: false,
        has_large_files: false,
        xattrs: xattrs::Attributes::default(),
        quota: quota::Usage::default(),
        tree: tree::Tree::default(),
        repairs: repair::Repairs::default(),
        repairing: false,
        written: 0,
        groups: Vec::new(),
        reader,
        superblock,
    };
    groups::load(&mut checker)?;
    Ok(checker)
}

/// Reads the superblock and the descriptors again, now as the journal has them.
pub(super) fn reload(checker: &mut Checker) -> Result<()> {
    let block_size = checker.reader.block_size();
    let (block, at) = (SUPERBLOCK_OFFSET as usize / block_size, SUPERBLOCK_OFFSET as usize % block_size);
    let content = checker.reader.block(block as u64)?;
    let mut bytes = [0; 1024];
    bytes.copy_from_slice(&content[at..at + 1024]);
    let superblock = Superblock::for_check(&bytes)?;
    let size = |superblock: &Superblock| (superblock.block_size, superblock.blocks, superblock.inodes);
    if size(&superblock) != size(&checker.superblock) {
        let place = crate::error::Place::Superblock;
        return Err(Error::corrupt(place, "the journal gives the volume another size"));
    }
    checker.superblock = superblock;
    groups::load(checker)
}

/// Checks what the superblock says beyond the geometry.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    checksum(checker);
    let superblock = &checker.superblock;
    let bytes = u128::from(superblock.blocks) * u128::from(superblock.block_size);
    let len = checker.reader.disk().len();
    if bytes > u128::from(len) {
        let (blocks, most) = (superblock.blocks, len / u64::from(superblock.block_size));
        checker.findings.mismatch(Problem::VolumeTooLong, Place::Superblock, "blocks", most, blocks);
    }
    for field in impossible_fields(checker) {
        checker.findings.add_field(Problem::SuperblockField, Place::Superblock, field);
    }
    let state = checker.superblock.raw().s_state.get();
    if state & (VALID | ERRORS) != VALID {
        checker.findings.field(Problem::StateNotClean, Place::Superblock, "s_state", state.into());
    }
    mmp::check(checker);
    Ok(())
}

fn checksum(checker: &mut Checker) {
    let raw = checker.superblock.raw();
    if !checker.superblock.features.metadata_csum() {
        return;
    }
    let bytes = zerocopy::IntoBytes::as_bytes(raw);
    let (expected, found) = (crc32c(!0, &bytes[..1020]), raw.s_checksum.get());
    if expected != found {
        let (expected, found) = (expected.into(), found.into());
        checker.findings.mismatch(Problem::SuperblockChecksum, Place::Superblock, "", expected, found);
    }
}

/// The names of all fields whose values are not possible.
fn impossible_fields(checker: &Checker) -> Vec<&'static str> {
    let superblock = &checker.superblock;
    let (raw, features) = (superblock.raw(), superblock.features);
    let room = superblock.inode_size - 128;
    let bad_extra =
        |extra: u16| room != 0 && extra != 0 && (extra < 4 || extra > room || !extra.is_multiple_of(4));
    let in_block = superblock.block_size / u32::from(superblock.inode_size);
    let most_inodes = (in_block.saturating_mul(superblock.blocks_per_group.saturating_sub(4)))
        .min(superblock.block_size * 8);
    let meta_bg = features.has_incompat(incompat::META_BG);
    let dynamic = raw.s_rev_level.get() > 0;
    let first = raw.s_first_ino.get();
    let quotas = [raw.s_usr_quota_inum.get(), raw.s_grp_quota_inum.get(), raw.s_prj_quota_inum.get()];
    // Every reserved inode is for something else, but for those of quotas.
    let bad_quota = |inode: u32| [1, 2, 5, 6, 7, 8, 9, 10].contains(&inode) || inode > superblock.inodes;
    let size = raw.s_desc_size.get();
    let fields = [
        ("inode of a quota", quotas.into_iter().any(bad_quota)),
        ("s_desc_size", size > 1024 || (size != 0 && !size.is_power_of_two())),
        ("s_rev_level", raw.s_rev_level.get() > 1),
        ("s_checksum_type", features.metadata_csum() && raw.s_checksum_type != CHECKSUM_TYPE),
        ("s_r_blocks_count", superblock.reserved_blocks() > superblock.blocks / 2),
        (
            "s_reserved_gdt_blocks",
            superblock.reserved_descriptor_blocks() > u64::from(superblock.block_size / 4),
        ),
        ("s_first_ino", dynamic && !(11..=superblock.inodes).contains(&first)),
        ("s_inodes_per_group", superblock.inodes_per_group > most_inodes),
        (
            "s_clusters_per_group",
            raw.s_clusters_per_group.get() != superblock.blocks_per_group / superblock.cluster_blocks,
        ),
        (
            "s_log_cluster_size",
            !features.has_ro_compat(ro_compat::BIGALLOC) && raw.s_log_cluster_size != raw.s_log_block_size,
        ),
        ("s_log_groups_per_flex", raw.s_log_groups_per_flex > 31),
        ("s_min_extra_isize", bad_extra(raw.s_min_extra_isize.get())),
        ("s_want_extra_isize", bad_extra(raw.s_want_extra_isize.get())),
        ("s_first_meta_bg", meta_bg && u64::from(raw.s_first_meta_bg.get()) > superblock.descriptor_blocks()),
    ];
    let contradictions = contradictions(features);
    fields.into_iter().chain(contradictions).filter_map(|(name, wrong)| wrong.then_some(name)).collect()
}

/// Features that need or exclude one another, and whether they are together.
fn contradictions(features: Features) -> [(&'static str, bool); 4] {
    [
        (
            "metadata_csum and uninit_bg",
            features.metadata_csum() && features.has_ro_compat(ro_compat::GDT_CSUM),
        ),
        (
            "metadata_csum_seed without metadata_csum",
            !features.metadata_csum() && features.has_incompat(incompat::CSUM_SEED),
        ),
        (
            "64bit without extents",
            features.has_incompat(incompat::BIT64) && !features.has_incompat(incompat::EXTENTS),
        ),
        (
            "orphan_file without journal",
            features.has_compat(compat::ORPHAN_FILE) && !features.has_compat(compat::HAS_JOURNAL),
        ),
    ]
}
