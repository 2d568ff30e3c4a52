//! The superblock's checksum, where a copy says that nothing but the checksum is wrong.

use std::ops::Range;

use zerocopy::IntoBytes;

use crate::check::Checker;
use crate::dir_block::get_u32;
use crate::error::Result;

/// The bytes in which every copy is the same: the geometry, who made it, and the volume's identity. Features
/// are compared without those that come and go.
const CONSTANT: [Range<usize>; 5] = [0x00..0x0c, 0x14..0x2c, 0x38..0x3a, 0x48..0x5a, 0x68..0x78];
const FEATURES: [(usize, u32); 3] = [(0x5c, !0), (0x60, !0x4), (0x64, !0x1_0000)];

/// Whether a copy of the superblock agrees with what its checksum covers.
pub(super) fn agrees(checker: &Checker) -> Result<bool> {
    let superblock = &checker.superblock;
    let Some(group) = (1..superblock.groups).find(|group| superblock.has_superblock(*group)) else {
        return Ok(false);
    };
    let copy = checker.reader.block(superblock.group_start(group))?;
    let own = superblock.raw().as_bytes();
    Ok(CONSTANT.into_iter().all(|range| own[range.clone()] == copy[range])
        && FEATURES.into_iter().all(|(at, mask)| get_u32(own, at) & mask == get_u32(&copy, at) & mask))
}
