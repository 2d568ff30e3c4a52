//! The table of mke2fs.conf: what a volume is like by its length or its usage.

use super::options::{MakeOptions, Usage};

/// What usage decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preset {
    pub(super) block_size: u32,
    pub(super) inode_ratio: u32,
    pub(super) inode_size: u16,
}

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// The usage that a volume's length suggests.
fn by_length(len: u64) -> Usage {
    match len {
        _ if len < 3 * MIB => Usage::Floppy,
        _ if len < 512 * MIB => Usage::Small,
        _ if len < 4 * TIB => Usage::Default,
        _ if len < 16 * TIB => Usage::Big,
        _ => Usage::Huge,
    }
}

/// What a volume of some length is like.
pub(super) fn preset(options: &MakeOptions, len: u64) -> Preset {
    let (block_size, inode_ratio, inode_size) = match options.usage.unwrap_or_else(|| by_length(len)) {
        Usage::Default => (4096, 16384, 256),
        Usage::Small => (1024, 4096, 256),
        Usage::Floppy => (1024, 8192, 256),
        Usage::Big => (4096, 32768, 256),
        Usage::Huge => (4096, 65536, 256),
        Usage::News => (4096, 4096, 256),
        Usage::LargeFile => (4096, 1 << 20, 256),
        Usage::LargeFile4 => (4096, 4 << 20, 256),
        Usage::Hurd => (4096, 16384, 128),
    };
    Preset { block_size, inode_ratio, inode_size }
}
