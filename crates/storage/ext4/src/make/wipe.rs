//! What stood on the disk before: nothing shall take it for something else than the new volume.

use std::ops::Range;

use vmwright_disk::Disk;

use super::write::zero;
use crate::error::{Error, Result};
use crate::layout::SUPERBLOCK_MAGIC;

/// How much of the disk's beginning and end becomes zeros: signatures of filesystems, partition tables, RAID sets and
/// volume managers stand there.
const EDGE: u64 = 1 << 20;

/// Where btrfs keeps copies of its superblock, and what these hold at byte 64.
const BTRFS_COPIES: [u64; 2] = [64 << 20, 256 << 30];
const BTRFS_MAGIC: &[u8] = b"_BHRfS_M";

/// The groups at whose beginning ext4 keeps copies of its superblock.
const COPY_GROUPS: [u64; 12] = [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343];

/// Makes the edges of the disk zeros, and copies of superblocks further in.
pub(super) fn wipe(disk: &dyn Disk, assume_zeroed: bool) -> Result<()> {
    let len = disk.len();
    if assume_zeroed {
        return zero(disk, 0..EDGE.min(len).min(8192));
    }
    zero(disk, 0..EDGE.min(len))?;
    zero(disk, len.saturating_sub(EDGE)..len)?;
    for offset in BTRFS_COPIES {
        if holds(disk, offset + 64, BTRFS_MAGIC)? {
            zero(disk, within(offset..offset + 4096, len))?;
        }
    }
    for block_size in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let (group, first) = (block_size * 8 * block_size, if block_size == 1024 { 1024 } else { 0 });
        for number in COPY_GROUPS {
            let offset = number * group + first;
            if holds(disk, offset + 56, &SUPERBLOCK_MAGIC.to_le_bytes())? {
                zero(disk, within(offset..offset + 1024, len))?;
            }
        }
    }
    Ok(())
}

fn within(range: Range<u64>, len: u64) -> Range<u64> {
    range.start.min(len)..range.end.min(len)
}

fn holds(disk: &dyn Disk, offset: u64, magic: &[u8]) -> Result<bool> {
    let len = magic.len() as u64;
    if offset.checked_add(len).is_none_or(|end| end > disk.len()) {
        return Ok(false);
    }
    let extent = disk.extent_at(offset).map_err(|source| Error::disk("read", source))?;
    if extent.is_zero() && extent.end() >= offset + len {
        return Ok(false);
    }
    let mut found = vec![0; magic.len()];
    disk.read_at(&mut found, offset).map_err(|source| Error::disk("read", source))?;
    Ok(found == magic)
}
