//! What the superblock of the volume says once it has another size.

use crate::error::{Error, ErrorKind, Result};
use crate::features::{compat, incompat};
use crate::layout::RawSuperblock;
use crate::superblock::Superblock;

/// How many blocks beside its metadata a last group must have to be worth it.
pub(super) const WORTH: u64 = 50;

/// The largest number of blocks without `64bit`.
const NARROW: u64 = 1 << 32;

/// The superblock of the same volume with about `blocks` blocks: a last group that would be too small for its
/// metadata is left out.
pub(crate) fn resized(old: &Superblock, blocks: u64, disk_len: u64) -> Result<Superblock> {
    let cluster = u64::from(old.cluster_blocks);
    let mut blocks = blocks / cluster * cluster;
    let wide = old.features.has_incompat(incompat::BIT64);
    if !wide && blocks > NARROW - 1 {
        return Err(Error::unsupported("more than 2^32 blocks without the feature 64bit"));
    }
    loop {
        if blocks <= old.first_data_block + 1 {
            return Err(Error::plain(ErrorKind::NoSpace, "no filesystem has so few blocks"));
        }
        let new = with_blocks(old, blocks, disk_len)?;
        let last = new.groups - 1;
        let len = u64::from(new.group_blocks(last));
        let metadata = new.head_blocks(last) + 2 + new.inode_table_blocks();
        let short = len < u64::from(new.blocks_per_group);
        match short {
            true if last == 0 && len < metadata => {
                return Err(Error::plain(ErrorKind::NoSpace, "no filesystem has so few blocks"));
            }
            true if last > 0 && len < metadata + WORTH => blocks -= len,
            _ => return Ok(new),
        }
    }
}

fn with_blocks(old: &Superblock, blocks: u64, disk_len: u64) -> Result<Superblock> {
    let groups = (blocks - old.first_data_block).div_ceil(old.blocks_per_group.into());
    let inodes =
        groups.checked_mul(old.inodes_per_group.into()).and_then(|inodes| u32::try_from(inodes).ok());
    let Some(inodes) = inodes else {
        return Err(Error::unsupported("more than 2^32 inodes"));
    };
    let reserved = u128::from(old.reserved_blocks()) * u128::from(blocks) / u128::from(old.blocks.max(1));
    old.edited(disk_len, |raw| {
        raw.s_blocks_count_lo.set(blocks as u32);
        raw.s_r_blocks_count_lo.set(reserved as u32);
        if old.features.has_incompat(incompat::BIT64) {
            raw.s_blocks_count_hi.set((blocks >> 32) as u32);
            raw.s_r_blocks_count_hi.set((reserved >> 32) as u32);
        }
        raw.s_inodes_count.set(inodes);
        // Kernels count it again.
        raw.s_overhead_blocks.set(0);
        descriptors(old, raw, groups);
        if old.features.has_compat(compat::SPARSE_SUPER2) {
            backups(raw, u64::from(old.groups), groups);
        }
    })
}

/// Where the descriptors of `groups` groups go: to blocks that are kept for them, and from then on into the
/// groups themselves (`meta_bg`), so that nothing stands in their way.
fn descriptors(old: &Superblock, raw: &mut RawSuperblock, groups: u64) {
    let needed = (groups * u64::from(old.desc_size)).div_ceil(old.block_size.into());
    let had = old.descriptor_blocks();
    let meta_bg = old.features.has_incompat(incompat::META_BG);
    let kept = old.reserved_descriptor_blocks();
    if meta_bg {
        // With descriptors for less than that there are none elsewhere.
        if u64::from(raw.s_first_meta_bg.get()) > needed {
            raw.s_feature_incompat.set(raw.s_feature_incompat.get() & !incompat::META_BG);
            raw.s_first_meta_bg.set(0);
        }
        return;
    }
    if needed > had {
        let used = kept.min(needed - had);
        raw.s_reserved_gdt_blocks.set((kept - used) as u16);
        if needed > had + used {
            raw.s_first_meta_bg.set((had + used) as u32);
            raw.s_feature_incompat.set(raw.s_feature_incompat.get() | incompat::META_BG);
            raw.s_feature_compat.set(raw.s_feature_compat.get() & !compat::RESIZE_INODE);
        }
    } else if needed < had && old.features.has_compat(compat::RESIZE_INODE) {
        // One block of pointers leads to all of them.
        let most = u64::from(old.block_size / 4);
        raw.s_reserved_gdt_blocks.set((kept + (had - needed)).min(most) as u16);
    }
}

/// With `sparse_super2` the last group has a copy, whichever that is.
fn backups(raw: &mut RawSuperblock, old: u64, new: u64) {
    let (last, old_last) = ((new - 1) as u32, (old - 1) as u32);
    let [first, second] = raw.s_backup_bgs.map(|group| group.get());
    let had_last = second == old_last && second != 0;
    let [mut first, mut second] = [first, second];
    if last > old_last {
        if old == 1 {
            first = 1;
        }
        if (old < 3 && new > 2) || second != 0 {
            second = last;
        }
    } else if last < old_last {
        if first > last {
            first = 0;
        }
        if second > last {
            second = 0;
        }
        if last > 1 && had_last {
            second = last;
        }
    }
    raw.s_backup_bgs[0].set(first);
    raw.s_backup_bgs[1].set(second);
}
