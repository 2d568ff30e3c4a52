//! Maps of files whose blocks are laid out at once: an extent tree built from its leaves, or a block map.

use std::ops::Range;

use super::no_room;
use super::space::Space;
use crate::error::Result;
use crate::extents::{self, Entries, Extent, Index, MAX_WRITTEN, Node};

/// How many blocks an inode points to by itself.
const DIRECT: u64 = 12;

/// A file's blocks, and the blocks that say so.
pub(super) struct Laid {
    /// The content, in order.
    pub(super) runs: Vec<Range<u64>>,
    /// The inode's own part of the map.
    pub(super) root: [u8; 60],
    /// Its further blocks.
    pub(super) map: Vec<(u64, Vec<u8>)>,
}

/// Allocates `blocks` blocks from `goal` on and maps them by extents.
pub(super) fn by_extents(
    space: &mut Space,
    (goal, blocks): (u64, u64),
    block_size: usize,
    seed: Option<u32>,
) -> Result<Laid> {
    let runs = space.allocate(goal, blocks)?;
    let mut leaf = Vec::new();
    let mut logical = 0;
    for run in &runs {
        let mut start = run.start;
        while start < run.end {
            let len = (run.end - start).min(MAX_WRITTEN.into()) as u32;
            leaf.push(Extent { logical, len, start, unwritten: false });
            logical = logical.checked_add(len).ok_or_else(no_room)?;
            start += u64::from(len);
        }
    }
    let mut root = [0; 60];
    let room = extents::capacity(root.len());
    let (mut depth, mut map) = (0, Vec::new());
    let mut entries = Entries::Leaf(leaf);
    loop {
        let node = Node { depth, entries };
        if node.len() <= room {
            node.encode(&mut root);
            return Ok(Laid { runs, root, map });
        }
        let mut children = Vec::new();
        for part in split(node.entries, extents::capacity(block_size)) {
            let node = Node { depth, entries: part };
            let run = space.allocate(runs.first().map_or(goal, |run| run.start.saturating_sub(1)), 1)?;
            let (Some(run), Some(logical)) = (run.first(), node.first()) else { return Err(no_room()) };
            children.push(Index { logical, child: run.start });
            map.push((run.start, extents::encode_block(&node, block_size, seed)));
        }
        (depth, entries) = (depth + 1, Entries::Inner(children));
    }
}

fn split(entries: Entries, most: usize) -> Vec<Entries> {
    match entries {
        Entries::Leaf(all) => all.chunks(most).map(|part| Entries::Leaf(part.to_vec())).collect(),
        Entries::Inner(all) => all.chunks(most).map(|part| Entries::Inner(part.to_vec())).collect(),
    }
}

struct BlockMap<'a> {
    space: &'a mut Space,
    goal: u64,
    rest: u64,
    block_size: usize,
    laid: Laid,
}

/// Allocates `blocks` blocks from `goal` on and maps them one by one; blocks of pointers stand before what they
/// point to.
pub(super) fn by_blocks(space: &mut Space, (goal, blocks): (u64, u64), block_size: usize) -> Result<Laid> {
    let laid = Laid { runs: Vec::new(), root: [0; 60], map: Vec::new() };
    let mut map = BlockMap { space, goal, rest: blocks, block_size, laid };
    let mut pointers = map.content(DIRECT)?;
    pointers.resize(DIRECT as usize, 0);
    for level in 1..=3 {
        let block = if map.rest > 0 { map.tree(level)? } else { 0 };
        pointers.push(block);
    }
    if map.rest > 0 {
        return Err(no_room());
    }
    let bytes = pointers.iter().flat_map(|pointer| pointer.to_le_bytes());
    map.laid.root.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    Ok(map.laid)
}

impl BlockMap<'_> {
    fn allocate(&mut self, len: u64) -> Result<Vec<Range<u64>>> {
        let runs = self.space.allocate(self.goal, len)?;
        self.goal = runs.last().map_or(self.goal, |run| run.end);
        Ok(runs)
    }

    /// Allocates at most `most` blocks of content; answers pointers to them.
    fn content(&mut self, most: u64) -> Result<Vec<u32>> {
        let len = self.rest.min(most);
        let runs = self.allocate(len)?;
        self.rest -= len;
        let mut pointers = Vec::with_capacity(len as usize);
        for run in runs {
            for block in run.clone() {
                pointers.push(u32::try_from(block).map_err(|_| no_room())?);
            }
            match self.laid.runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => self.laid.runs.push(run),
            }
        }
        Ok(pointers)
    }

    /// Allocates a block of pointers and what it points to, over so many levels.
    fn tree(&mut self, level: u32) -> Result<u32> {
        let own = self.allocate(1)?.first().map_or(0, |run| run.start);
        let most = self.block_size as u64 / 4;
        let pointers = if level == 1 {
            self.content(most)?
        } else {
            let mut children = Vec::new();
            while self.rest > 0 && (children.len() as u64) < most {
                children.push(self.tree(level - 1)?);
            }
            children
        };
        let mut bytes: Vec<u8> = pointers.iter().flat_map(|pointer| pointer.to_le_bytes()).collect();
        bytes.resize(self.block_size, 0);
        self.laid.map.push((own, bytes));
        u32::try_from(own).map_err(|_| no_room())
    }
}
