//! Telling ext2, ext3 and ext4 from other things on a disk.

use vmwright_disk::Disk;

use crate::layout::{SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET};

/// Whether a disk holds what calls itself an ext2, ext3 or ext4 filesystem; sound or not.
pub fn is_ext(disk: &dyn Disk) -> bool {
    let mut magic = [0; 2];
    let offset = SUPERBLOCK_OFFSET + 0x38;
    disk.read_at(&mut magic, offset).is_ok() && u16::from_le_bytes(magic) == SUPERBLOCK_MAGIC
}
