//! Links, devices, pipes and sockets: what they may and may not hold.

use super::inodes::{Found, mode};
use super::{Checker, Problem, content, inline};
use crate::inode::flags;

/// The bytes of `i_block`: shorter targets are kept there.
const IN_INODE: u64 = 60;

/// Checks what is neither file nor directory; answers whether it cannot be what it says.
pub(super) fn check(checker: &mut Checker, found: &Found<'_>) -> bool {
    match found.kind() {
        mode::REGULAR | mode::DIRECTORY => return false,
        mode::SYMLINK if is_link(checker, found) => return false,
        mode::CHARACTER | mode::BLOCK | mode::FIFO | mode::SOCKET if is_device(found) => {
            if found.has(flags::EXTENTS | flags::INLINE_DATA) {
                checker.findings.add_field(Problem::Special, found.place(), "flags");
            }
            if found.size() != 0 {
                checker.findings.field(Problem::Special, found.place(), "size", found.size());
            }
            if is_really_directory(checker, found) {
                checker.findings.add_field(Problem::Special, found.place(), "a directory's content");
            }
            return false;
        }
        mode::SYMLINK => checker.findings.add_field(Problem::Special, found.place(), "target"),
        mode::CHARACTER | mode::BLOCK | mode::FIFO | mode::SOCKET => {
            checker.findings.add_field(Problem::Special, found.place(), "flags");
        }
        _ => {
            let mode = found.raw.i_mode.get().into();
            checker.findings.field(Problem::InodeMode, found.place(), "", mode);
        }
    }
    true
}

fn is_device(found: &Found<'_>) -> bool {
    // Kernels may leave something behind the device's number, but never on what cannot be changed.
    let fixed = found.has(flags::IMMUTABLE | flags::APPEND) && (4..15).any(|at| found.word(at) != 0);
    !found.has(flags::INDEX | flags::EXTENTS) && !fixed
}

/// Whether what is called a device begins like a directory of its own number.
fn is_really_directory(checker: &Checker, found: &Found<'_>) -> bool {
    let superblock = &checker.superblock;
    if found.word(0) == 0 || found.has(flags::INLINE_DATA) {
        return false;
    }
    for at in 0..15 {
        let block = u64::from(found.word(at));
        let valid = block >= superblock.first_data_block && block < superblock.blocks;
        if block != 0 && (!valid || checker.claims.is_used(block)) {
            return false;
        }
    }
    let device = [mode::CHARACTER, mode::BLOCK].contains(&found.kind());
    if device && found.links() == 1 && (4..15).all(|at| found.word(at) == 0) {
        return false;
    }
    let Ok(content) = checker.reader.block(found.word(0).into()) else { return false };
    let word = |at: usize| u16::from_le_bytes([content[at], content[at + 1]]);
    let number = u32::from_le_bytes([content[0], content[1], content[2], content[3]]);
    let first = usize::from(word(4));
    let dot = number == found.number && content[6] == 1 && content[8] == b'.';
    if !dot || first < 12 || !first.is_multiple_of(4) || first >= content.len() - 12 {
        return false;
    }
    let second = word(first + 4);
    content[first + 6] == 2 && &content[first + 8..first + 10] == b".." && second >= 12 && second % 4 == 0
}

fn is_link(checker: &Checker, found: &Found<'_>) -> bool {
    let size = found.size();
    if found.raw.i_size_high != 0 || size == 0 || found.has(flags::INDEX) {
        return false;
    }
    if found.has(flags::INLINE_DATA) {
        return !found.has(flags::EXTENTS) && inline::size(found) == Some(size);
    }
    if size < IN_INODE {
        return !found.has(flags::EXTENTS) && is_target(found, &found.raw.i_block, size);
    }
    let Some(block) = content::single_block(checker, found) else { return false };
    match checker.reader.block(block) {
        Ok(content) => is_target(found, &content, size),
        Err(_) => false,
    }
}

/// Whether a target ends where the size says, within its room.
fn is_target(found: &Found<'_>, room: &[u8], size: u64) -> bool {
    let len = match found.has(flags::ENCRYPT) {
        true => usize::from(u16::from_le_bytes([room[0], room[1]])) + 2,
        false => room.iter().position(|byte| *byte == 0).unwrap_or(room.len()),
    };
    len < room.len() && len as u64 == size
}
