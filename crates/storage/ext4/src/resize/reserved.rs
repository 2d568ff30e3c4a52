//! The resize inode: it owns the blocks behind the descriptors that are kept for more of them.
//!
//! ```text
//! inode 7, i_block[13] ─▶ block of pointers ─┬▶ reserved block behind the descriptors ─▶ its copies in the
//!                                            ├▶ the next one ─▶ …                        groups with copies
//! ```
//!
//! Where a pointer stands says for which block of descriptors it is kept: the n-th for the n-th.

use super::space::Space;
use crate::error::{Error, Place, Result};
use crate::features::compat;
use crate::indirect::{pointer, pointers};
use crate::inode::Inode;
use crate::volume::Ext4;

/// The inode.
pub(crate) const RESIZE_INODE: u32 = 7;

/// The slot of the inode that leads to the block of pointers.
const SLOT: usize = 13;

/// Whether there is a resize inode.
pub(crate) fn exists(volume: &Ext4) -> bool {
    volume.superblock.features.has_compat(compat::RESIZE_INODE)
}

/// The block of pointers, which is the only one beyond the heads of groups.
pub(crate) fn pointer_block(volume: &Ext4) -> Result<(Inode, u64)> {
    let inode = volume.any_inode(RESIZE_INODE)?;
    let block = pointer(&inode.block, SLOT);
    if !volume.superblock.is_valid_block(block) {
        let problem = "the resize inode does not lead to its block of pointers";
        return Err(Error::corrupt(Place::Inode(RESIZE_INODE.into()), problem));
    }
    Ok((inode, block))
}

/// Makes the inode say what the superblock does; `block` is where its block of pointers shall be.
pub(crate) fn rebuild(volume: &mut Ext4, mut inode: Inode, block: u64) -> Result<()> {
    let superblock = volume.superblock.clone();
    let room = pointers(superblock.block_size);
    let size = superblock.block_size as usize;
    let (first, count) = (superblock.descriptor_blocks(), superblock.reserved_descriptor_blocks());
    // The block of descriptors that would follow the last one.
    let behind = superblock.descriptor_block(first);
    let copies: Vec<u32> = (1..superblock.groups).filter(|group| superblock.has_superblock(*group)).collect();
    let mut top = vec![0; size];
    let put = |bytes: &mut [u8], index: u64, value: u64| -> Result<()> {
        let at = index as usize * 4;
        let value = u32::try_from(value);
        let value = value.map_err(|_| Error::unsupported("a resize inode beyond 2^32 blocks"))?;
        if let Some(slot) = bytes.get_mut(at..at + 4) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    };
    for index in 0..count {
        let primary = behind + index;
        put(&mut top, (first + index) % room, primary)?;
        let mut below = vec![0; size];
        for (group, at) in copies.iter().zip(0..) {
            put(&mut below, at, primary + u64::from(*group) * u64::from(superblock.blocks_per_group))?;
        }
        volume.cache.put(primary, below)?;
    }
    volume.cache.put(block, top)?;
    inode.block[SLOT * 4..SLOT * 4 + 4].copy_from_slice(&(block as u32).to_le_bytes());
    let blocks = 1 + count * (1 + copies.len() as u64);
    inode.sectors = blocks * u64::from(superblock.cluster_blocks) * (u64::from(superblock.block_size) / 512);
    volume.put_inode(&inode)
}

/// Does away with the inode's content; the blocks that it kept are descriptors by now, or free.
pub(crate) fn remove(volume: &mut Ext4, space: &mut Space, block: u64) -> Result<()> {
    space.mark(volume, &(block..block + 1), false)?;
    clear_record(volume, RESIZE_INODE)
}

/// Makes an inode's record zeros.
pub(crate) fn clear_record(volume: &mut Ext4, number: u32) -> Result<()> {
    let (block, at) = volume.inode_location(number)?;
    let len = usize::from(volume.superblock.inode_size);
    volume.cache.modify(block)?[at..at + len].fill(0);
    volume.changed = true;
    Ok(())
}
