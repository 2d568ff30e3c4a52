//! Checksums of the nodes of an extent tree of which nothing else is wrong.

use crate::check::Checker;
use crate::checksum::crc32c;
use crate::dir_block::{get_u16, get_u32, put_u32};
use crate::error::Result;
use crate::layout::EXTENT_MAGIC;

/// The size of a node's head and of each entry.
const ENTRY: usize = 12;

/// The most levels of a tree, and the most nodes that are looked at.
const DEPTH: u16 = 5;
const NODES: usize = 1 << 20;

/// The blocks that a node leads to; none for a leaf.
fn children(node: &[u8]) -> Vec<u64> {
    let (magic, count, depth) = (get_u16(node, 0), usize::from(get_u16(node, 2)), get_u16(node, 6));
    let entries = node[ENTRY..].chunks_exact(ENTRY).take(count);
    match magic == EXTENT_MAGIC && (1..=DEPTH).contains(&depth) {
        true => entries.map(|at| u64::from(get_u32(at, 4)) | u64::from(get_u16(at, 8)) << 32).collect(),
        false => Vec::new(),
    }
}

/// Sets the checksums of all nodes of an inode.
pub(super) fn seal(checker: &mut Checker, inode: u32) -> Result<()> {
    let fields = checker.fields(inode)?;
    let Some(seed) = fields.checksum_seed(&checker.superblock) else { return Ok(()) };
    let mut waiting = children(&fields.block);
    let mut seen = 0;
    while let Some(block) = waiting.pop() {
        let mut node = checker.reader.block(block)?;
        let at = ENTRY + usize::from(get_u16(&node, 4)) * ENTRY;
        seen += 1;
        if get_u16(&node, 0) != EXTENT_MAGIC || at + 4 > node.len() || seen > NODES {
            continue;
        }
        let checksum = crc32c(seed, &node[..at]);
        if get_u32(&node, at) != checksum {
            put_u32(&mut node, at, checksum);
            checker.put_block(block, &node)?;
        }
        waiting.extend(children(&node));
    }
    Ok(())
}
