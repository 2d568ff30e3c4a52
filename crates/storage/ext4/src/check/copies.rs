//! Copies of the superblock, found where the superblock itself is of no use.

use std::collections::BTreeSet;

use vmwright_disk::Disk;
use zerocopy::IntoBytes;

use crate::checksum::crc32c;
use crate::dir_block::get_u32;
use crate::layout::SUPERBLOCK_OFFSET;
use crate::superblock::Superblock;

/// The length of a superblock.
const LEN: usize = 1024;

/// How much of a disk is searched for groups of unusual size, and in what pieces: those of blocks of up to 4 KiB
/// are not longer.
const SEARCHED: u64 = 129 << 20;
const PIECE: usize = 1 << 20;

/// How many volumes are told apart: copies of a former one may have survived that it was made anew.
const VOLUMES: usize = 4;

/// Finds the volumes of which copies of a superblock are where they usually are, each by the first copy that stands
/// where it says that it does.
pub(super) fn find(disk: &dyn Disk) -> Vec<Superblock> {
    let mut found = Vec::new();
    for offset in usual(disk) {
        let mut bytes = [0; LEN];
        if disk.read_at(&mut bytes, offset).is_ok() {
            consider(&bytes, offset, disk.len(), &mut found);
        }
    }
    found
}

/// Whether the checksum of a superblock is right, or there is none.
pub(super) fn is_sealed(superblock: &Superblock) -> bool {
    let raw = superblock.raw();
    !superblock.features.metadata_csum() || raw.s_checksum.get() == crc32c(!0, &raw.as_bytes()[..1020])
}

/// Where copies are of volumes with usual sizes of blocks, clusters and groups, and where the superblock says that
/// they are, as far as it can be read.
fn usual(disk: &dyn Disk) -> BTreeSet<u64> {
    let mut offsets = BTreeSet::new();
    for log in 0..=6 {
        let size = 1024_u64 << log;
        for ratio in 0..=12 {
            let per_group = (size * 8) << ratio;
            add(&mut offsets, disk.len(), size, u64::from(log == 0), per_group);
            // Volumes of clusters begin with block 0.
            if log == 0 && ratio > 0 {
                add(&mut offsets, disk.len(), size, 0, per_group);
            }
        }
    }
    let mut bytes = [0; LEN];
    if disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).is_ok() && get_u32(&bytes, 0x18) <= 6 {
        let (size, per_group) = (1024_u64 << get_u32(&bytes, 0x18), u64::from(get_u32(&bytes, 0x20)));
        if per_group > 0 {
            add(&mut offsets, disk.len(), size, u64::from(get_u32(&bytes, 0x14) & 1), per_group);
        }
    }
    offsets
}

/// Adds the places of copies on a disk of some length: groups that are powers of 3, 5 and 7, and the last one.
fn add(offsets: &mut BTreeSet<u64>, len: u64, size: u64, first: u64, per_group: u64) {
    let last = (len / size).saturating_sub(first + 1) / per_group;
    let mut group = |number: u64| {
        let offset = (number.saturating_mul(per_group)).saturating_add(first).saturating_mul(size);
        let within = number > 0 && offset.checked_add(LEN as u64).is_some_and(|end| end <= len);
        if within {
            offsets.insert(offset);
        }
        within
    };
    group(last);
    for base in [3, 5, 7] {
        let mut power = 1_u64;
        while group(power) {
            power = power.saturating_mul(base);
        }
    }
}

/// Looks at every kibibyte of a disk's beginning, for groups of unusual sizes.
pub(super) fn search(disk: &dyn Disk) -> Vec<Superblock> {
    let mut found = Vec::new();
    let end = disk.len().min(SEARCHED);
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < end {
        let len = (end - at).min(PIECE as u64) as usize;
        if disk.read_at(&mut piece[..len], at).is_ok() {
            for (bytes, number) in piece[..len].chunks_exact(LEN).zip(0_u64..) {
                consider(bytes, at + number * LEN as u64, disk.len(), &mut found);
            }
        }
        at += PIECE as u64;
    }
    found
}

/// Takes a copy that is sound, of a volume of which there is none yet.
fn consider(bytes: &[u8], offset: u64, len: u64, found: &mut Vec<Superblock>) {
    if let Some(copy) = sound(bytes, offset, len) {
        let same = |other: &Superblock| {
            other.uuid() == copy.uuid() && other.raw().s_mkfs_time == copy.raw().s_mkfs_time
        };
        if found.len() < VOLUMES && !found.iter().any(same) {
            found.push(copy);
        }
    }
}

/// A copy that stands at the beginning of the group that it says, in a volume that the disk can hold.
fn sound(bytes: &[u8], offset: u64, len: u64) -> Option<Superblock> {
    let bytes: &[u8; LEN] = bytes.try_into().ok()?;
    // Most places are ruled out by this alone.
    if bytes[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let copy = Superblock::for_check(bytes).ok()?;
    let size = u64::from(copy.block_size);
    let distance = (offset / size).checked_sub(copy.first_data_block)?;
    let group = u32::try_from(distance / u64::from(copy.blocks_per_group)).ok()?;
    let raw = copy.raw();
    let placed = group > 0
        && group < copy.groups
        && copy.has_superblock(group)
        && copy.group_start(group).checked_mul(size) == Some(offset)
        // Kernels number groups with 16 bits here, and those of the first revision did not at all.
        && (raw.s_rev_level.get() == 0 || raw.s_block_group_nr.get() == group as u16);
    let fits = u128::from(copy.blocks) * u128::from(size) <= u128::from(len);
    let known = copy.features.check_readable().and_then(|()| copy.features.check_known()).is_ok();
    (placed && fits && known && is_sealed(&copy)).then_some(copy)
}
