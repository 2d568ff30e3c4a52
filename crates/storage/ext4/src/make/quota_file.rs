//! Quota files of a volume in which there is almost nothing.
//!
//! Their blocks have 1 KiB, whatever the volume's have:
//!
//! ```text
//! 0: magic, version, grace times, counts │ 1: tree, a pointer for each value of a byte of the id │ … │ data
//! ```

/// The size of a block.
const BLOCK: usize = 1024;

/// The block that the tree begins in.
const ROOT: usize = 1;

/// Where entries begin in a block of data.
const DATA_HEADER: usize = 16;

/// The size of an entry.
const ENTRY: usize = 72;

/// Grace times, in seconds: a week.
const GRACE: u32 = 7 * 24 * 60 * 60;

/// What one owner, group or project uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) id: u32,
    pub(super) inodes: u64,
    pub(super) bytes: u64,
}

/// Sorts of quotas, with the magic of their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Sort {
    User = 0xd9c0_1f11,
    Group = 0xd9c0_1927,
    Project = 0xd9c0_3f14,
}

/// The file that lists what at most 14 use.
pub(super) fn quota_file(sort: Sort, usages: &[Usage]) -> Vec<u8> {
    let mut blocks = vec![[0; BLOCK]; ROOT + 1];
    let mut data = 0;
    for (index, usage) in usages.iter().enumerate() {
        let mut at = ROOT;
        for (depth, byte) in usage.id.to_be_bytes().into_iter().enumerate() {
            let slot = usize::from(byte) * 4;
            if depth == 3 {
                if data == 0 {
                    data = blocks.len();
                    blocks.push([0; BLOCK]);
                }
                put(&mut blocks[at], slot, data as u32);
                break;
            }
            let next = u32::from_le_bytes([0, 1, 2, 3].map(|byte| blocks[at][slot + byte])) as usize;
            at = match next {
                0 => {
                    let new = blocks.len();
                    put(&mut blocks[at], slot, new as u32);
                    blocks.push([0; BLOCK]);
                    new
                }
                next => next,
            };
        }
        let block = &mut blocks[data];
        block[8..10].copy_from_slice(&(index as u16 + 1).to_le_bytes());
        let entry = DATA_HEADER + index * ENTRY;
        put(block, entry, usage.id);
        block[entry + 24..entry + 32].copy_from_slice(&usage.inodes.to_le_bytes());
        block[entry + 48..entry + 56].copy_from_slice(&usage.bytes.to_le_bytes());
    }
    let count = blocks.len() as u32;
    let head = [sort as u32, 1, GRACE, GRACE, 0, count, 0, data as u32];
    for (index, word) in head.into_iter().enumerate() {
        put(&mut blocks[0], index * 4, word);
    }
    blocks.concat()
}

fn put(block: &mut [u8; BLOCK], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
