//! The block of the multiple mount protection.

use super::report::Place;
use super::{Checker, Problem};
use crate::checksum::crc32c;
use crate::features::incompat;

/// `mmp_magic`.
const MAGIC: u32 = 0x004d_4d50;
/// `mmp_seq` of a volume that nobody uses.
const CLEAN: u32 = 0xff4d_4d50;
/// The largest `mmp_seq` of one in use.
const MOST: u32 = 0xe24d_4d4f;
/// Where the checksum stands.
const CHECKSUM: usize = 1020;

/// Checks the block that hosts tell one another in who uses the volume.
pub(super) fn check(checker: &mut Checker) {
    if !checker.superblock.features.has_incompat(incompat::MMP) {
        return;
    }
    let block = checker.superblock.raw().s_mmp_block.get();
    let content = match checker.superblock.is_valid_block(block) {
        true => checker.reader.block(block).ok(),
        false => None,
    };
    let Some(content) = content else {
        checker.findings.field(Problem::Mmp, Place::Superblock, "s_mmp_block", block);
        return;
    };
    let word =
        |at: usize| u32::from_le_bytes([content[at], content[at + 1], content[at + 2], content[at + 3]]);
    let wrong = if word(0) != MAGIC {
        Some("magic")
    } else if checker.superblock.features.metadata_csum()
        && word(CHECKSUM) != crc32c(checker.superblock.checksum_seed, &content[..CHECKSUM])
    {
        Some("checksum")
    } else if word(4) > MOST && word(4) != CLEAN {
        Some("sequence")
    } else {
        None
    };
    if let Some(field) = wrong {
        checker.findings.add_field(Problem::Mmp, Place::Block(block), field);
    }
}
