//! Inline content: its rest is the attribute `system.data` behind the inode's fields.

use super::inodes::Found;
use crate::layout::CLASSIC_INODE_SIZE;

/// How much of the content is in `i_block`.
pub(super) const IN_BLOCK: u64 = 60;

/// The magic of attributes in an inode.
const MAGIC: u32 = 0xea02_0000;
/// The index of `system.` among prefixes of names.
const SYSTEM: u8 = 7;
/// The size of the head of an entry.
const ENTRY: usize = 16;

/// How long inline content may be: what is in `i_block` and the attribute; nothing where that is missing.
pub(super) fn size(found: &Found<'_>) -> Option<u64> {
    let area = found.record.get(CLASSIC_INODE_SIZE + usize::from(found.extra_isize)..)?;
    let number = |at: usize| Some(u32::from_le_bytes(area.get(at..at + 4)?.try_into().ok()?));
    if number(0)? != MAGIC {
        return None;
    }
    let (mut at, mut found, mut first_value) = (4, None, area.len());
    while number(at)? != 0 {
        let name_len = usize::from(*area.get(at)?);
        let name = area.get(at + ENTRY..at + ENTRY + name_len)?;
        let offset = usize::from(u16::from_le_bytes([area[at + 2], area[at + 3]]));
        let (inode, len) = (number(at + 4)?, number(at + 8)?);
        if inode == 0 {
            // One entry that cannot be keeps all others from being found.
            (4 + offset).checked_add(len as usize).filter(|end| *end <= area.len())?;
            first_value = if len > 0 { first_value.min(4 + offset) } else { first_value };
        }
        if area.get(at + 1) == Some(&SYSTEM) && name == b"data" && found.is_none() {
            found = (inode == 0).then_some(IN_BLOCK + u64::from(len));
        }
        at += ENTRY + name_len.next_multiple_of(4);
    }
    found.filter(|_| at + 4 <= first_value)
}
