//! The superblock held against its copies, and the copies made anew.

use std::ops::Range;
use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::IntoBytes;

use crate::copies;
use crate::dir_block::get_u32;
use crate::error::Result;
use crate::superblock::Superblock;
use crate::volume::{Ext4, Options};

/// The bytes in which every copy is the same: the geometry, who made it, and the volume's identity. Features
/// are compared without those that come and go.
const CONSTANT: [Range<usize>; 8] =
    [0x00..0x0c, 0x14..0x2c, 0x38..0x3a, 0x48..0x5a, 0x68..0x78, 0xce..0xd0, 0xec..0x100, 0x104..0x10c];
const FEATURES: [(usize, u32); 3] = [(0x5c, !0), (0x60, !0x4), (0x64, !0x1_0000)];

/// Whether a copy of the superblock agrees with what its checksum covers.
pub(in crate::check) fn agrees(disk: &dyn Disk, superblock: &Superblock) -> bool {
    let Some(group) = (1..superblock.groups).find(|group| superblock.has_superblock(*group)) else {
        return false;
    };
    let offset = superblock.group_start(group).checked_mul(superblock.block_size.into());
    let mut copy = [0; 1024];
    if offset.is_none_or(|offset| disk.read_at(&mut copy, offset).is_err()) {
        return false;
    }
    let own = superblock.raw().as_bytes();
    CONSTANT.into_iter().all(|range| own[range.clone()] == copy[range])
        && FEATURES.into_iter().all(|(at, mask)| get_u32(own, at) & mask == get_u32(&copy, at) & mask)
}

/// Writes every copy of the superblock and of the descriptors anew.
pub(super) fn refresh_copies(disk: &Arc<dyn Disk>) -> Result<()> {
    let superblock = Superblock::read(&**disk)?;
    superblock.check_writable()?;
    let mut volume = Ext4::assemble(disk.clone(), superblock, Options::writable())?;
    let table = volume.groups.table(&volume.superblock);
    copies::write(&mut volume.cache, &volume.superblock, &table)
}
