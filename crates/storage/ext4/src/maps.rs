//! Whole maps of blocks, taken apart and put together again: for work that changes many places at once.
//!
//! A map is a list of runs, whichever way the inode keeps it, and the blocks that the keeping itself takes.

use std::collections::HashSet;

use crate::error::{Error, ErrorKind, Place, Result};
use crate::extents::{self, Entries, Extent, Index, LOGICAL_LIMIT, MAX_DEPTH, MAX_WRITTEN, Node};
use crate::indirect::{self, DIRECT};
use crate::inode::{Inode, flags};
use crate::volume::Ext4;

/// How many entries the root of an extent tree holds.
const ROOT_CAPACITY: usize = 4;

/// All that an inode's map leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BlockMap {
    /// Runs by logical block.
    pub(crate) runs: Vec<Extent>,
    /// The blocks of nodes or pointers.
    pub(crate) nodes: Vec<u64>,
}

impl BlockMap {
    fn push(&mut self, logical: u64, start: u64) {
        if let Some(last) = self.runs.last_mut()
            && last.end() == logical
            && last.start + u64::from(last.len) == start
        {
            last.len += 1;
            return;
        }
        // Maps of pointers end before that.
        self.runs.push(Extent { logical: logical as u32, len: 1, start, unwritten: false });
    }
}

/// What is known while a map is read: no block may be met twice.
struct Loader<'a> {
    volume: &'a Ext4,
    inode: &'a Inode,
    map: BlockMap,
    seen: HashSet<u64>,
}

/// Reads the whole map of an inode that has one.
pub(crate) fn load(volume: &Ext4, inode: &Inode) -> Result<BlockMap> {
    let mut loader = Loader { volume, inode, map: BlockMap::default(), seen: HashSet::new() };
    if inode.has_flag(flags::EXTENTS) {
        let root = extents::root(&volume.superblock, inode)?;
        loader.tree(root, 0..LOGICAL_LIMIT + 1)?;
    } else {
        loader.pointers()?;
    }
    Ok(loader.map)
}

impl Loader<'_> {
    fn node(&mut self, block: u64) -> Result<()> {
        if !self.seen.insert(block) {
            let place = Place::Inode(self.inode.number.into());
            return Err(Error::corrupt(place, "its map leads to one block twice"));
        }
        self.map.nodes.push(block);
        Ok(())
    }

    fn tree(&mut self, node: Node, range: std::ops::Range<u64>) -> Result<()> {
        match node.entries {
            Entries::Leaf(list) => self.map.runs.extend(list),
            Entries::Inner(children) => {
                let seed = self.inode.checksum_seed(&self.volume.superblock);
                for at in 0..children.len() {
                    let below = extents::child_range(&children, at, &range);
                    let child = children[at].child;
                    self.node(child)?;
                    let (cache, superblock) = (&self.volume.cache, &self.volume.superblock);
                    let depth = node.depth - 1;
                    let child = extents::read_node(cache, superblock, seed, child, depth, below.clone())?;
                    self.tree(child, below)?;
                }
            }
        }
        Ok(())
    }

    fn pointers(&mut self) -> Result<()> {
        let size = self.volume.superblock.block_size;
        let mut logical = 0;
        for slot in 0..15 {
            let level = (slot as u32 + 1).saturating_sub(DIRECT as u32);
            let block = indirect::pointer(&self.inode.block, slot);
            self.branch(block, level, logical)?;
            logical += covered(size, level);
        }
        Ok(())
    }

    fn branch(&mut self, block: u64, level: u32, logical: u64) -> Result<()> {
        let block = indirect::check(&self.volume.superblock, self.inode, block)?;
        if block == 0 {
            return Ok(());
        }
        if level == 0 {
            if logical > u64::from(u32::MAX) {
                let place = Place::Inode(self.inode.number.into());
                return Err(Error::corrupt(place, "its map is longer than any file"));
            }
            self.map.push(logical, block);
            return Ok(());
        }
        self.node(block)?;
        let bytes = self.volume.cache.read(block)?;
        let step = covered(self.volume.superblock.block_size, level - 1);
        for index in 0..bytes.len() / 4 {
            self.branch(indirect::pointer(&bytes, index), level - 1, logical + index as u64 * step)?;
        }
        Ok(())
    }
}

/// How many logical blocks a pointer covers that has `level` levels beneath it.
fn covered(block_size: u32, level: u32) -> u64 {
    indirect::pointers(block_size).pow(level)
}

/// How many blocks of nodes or pointers a map needs.
pub(crate) fn nodes_needed(volume: &Ext4, inode: &Inode, runs: &[Extent]) -> u64 {
    match inode.has_flag(flags::EXTENTS) {
        true => {
            let capacity = extents::capacity(volume.superblock.block_size as usize) as u64;
            let (mut level, mut all) = (count_pieces(runs), 0);
            while level > ROOT_CAPACITY as u64 {
                level = level.div_ceil(capacity);
                all += level;
            }
            all
        }
        false => pointer_nodes(volume.superblock.block_size, runs),
    }
}

/// How many extents the runs make.
fn count_pieces(runs: &[Extent]) -> u64 {
    runs.iter().map(|run| u64::from(run.len.div_ceil(limit(run)))).sum()
}

fn limit(run: &Extent) -> u32 {
    if run.unwritten { MAX_WRITTEN - 1 } else { MAX_WRITTEN }
}

fn pointer_nodes(block_size: u32, runs: &[Extent]) -> u64 {
    let mut count = 0;
    let mut first = DIRECT;
    for top in 1..=3 {
        let span = covered(block_size, top);
        // One node at each level for every part of its reach that any run touches.
        for level in 1..=top {
            let reach = covered(block_size, level);
            let mut last = None;
            for run in runs {
                let (from, to) = (u64::from(run.logical).max(first), run.end().min(first + span));
                if from >= to {
                    continue;
                }
                let (mut a, b) = ((from - first) / reach, (to - 1 - first) / reach);
                if last == Some(a) {
                    a += 1;
                }
                count += (b + 1).saturating_sub(a);
                last = Some(b);
            }
        }
        first += span;
    }
    count
}

/// Writes a whole map into an inode, into `nodes`, of which there must be [`nodes_needed`]. The inode itself is
/// left to the caller to write.
pub(crate) fn store(volume: &mut Ext4, inode: &mut Inode, runs: &[Extent], nodes: &[u64]) -> Result<()> {
    let mut nodes = nodes.iter().copied();
    match inode.has_flag(flags::EXTENTS) {
        true => store_tree(volume, inode, runs, &mut nodes),
        false => store_pointers(volume, inode, runs, &mut nodes),
    }
}

fn next_node(nodes: &mut dyn Iterator<Item = u64>) -> Result<u64> {
    nodes.next().ok_or_else(|| Error::plain(ErrorKind::NoSpace, "no block was kept for a node of a map"))
}

fn store_tree(
    volume: &mut Ext4,
    inode: &mut Inode,
    runs: &[Extent],
    nodes: &mut dyn Iterator<Item = u64>,
) -> Result<()> {
    let size = volume.superblock.block_size as usize;
    let (seed, capacity) = (inode.checksum_seed(&volume.superblock), extents::capacity(size));
    let mut pieces = Vec::with_capacity(runs.len());
    for run in runs {
        let (mut logical, limit) = (u64::from(run.logical), u64::from(limit(run)));
        while logical < run.end() {
            let end = (logical + limit).min(run.end());
            pieces.push(run.part(logical..end));
            logical = end;
        }
    }
    let mut write = |volume: &mut Ext4, node: &Node| -> Result<Index> {
        let block = next_node(nodes)?;
        volume.cache.put(block, extents::encode_block(node, size, seed))?;
        Ok(Index { logical: node.first().unwrap_or(0), child: block })
    };
    let mut root = Node { depth: 0, entries: Entries::Leaf(pieces) };
    while root.len() > ROOT_CAPACITY {
        let depth = root.depth;
        let level = match root.entries {
            Entries::Leaf(list) => list
                .chunks(capacity)
                .map(|part| write(volume, &Node { depth, entries: Entries::Leaf(part.to_vec()) }))
                .collect::<Result<Vec<_>>>()?,
            Entries::Inner(list) => list
                .chunks(capacity)
                .map(|part| write(volume, &Node { depth, entries: Entries::Inner(part.to_vec()) }))
                .collect::<Result<Vec<_>>>()?,
        };
        if depth >= MAX_DEPTH {
            return Err(Error::plain(ErrorKind::NoSpace, "the file's extent tree is as deep as it can be"));
        }
        root = Node { depth: depth + 1, entries: Entries::Inner(level) };
    }
    root.encode(&mut inode.block);
    Ok(())
}

fn store_pointers(
    volume: &mut Ext4,
    inode: &mut Inode,
    runs: &[Extent],
    nodes: &mut dyn Iterator<Item = u64>,
) -> Result<()> {
    let size = volume.superblock.block_size;
    let mut first = 0;
    let mut block = [0; 60];
    for slot in 0..15_usize {
        let level = (slot as u32 + 1).saturating_sub(DIRECT as u32);
        let top = store_branch(volume, runs, level, first, nodes)?;
        block[slot * 4..slot * 4 + 4].copy_from_slice(&top.to_le_bytes());
        first += covered(size, level);
    }
    inode.block = block;
    Ok(())
}

/// Writes what a pointer leads to that covers logical blocks from `first` on; answers the pointer.
fn store_branch(
    volume: &mut Ext4,
    runs: &[Extent],
    level: u32,
    first: u64,
    nodes: &mut dyn Iterator<Item = u64>,
) -> Result<u32> {
    let end = first + covered(volume.superblock.block_size, level);
    let from = runs.partition_point(|run| run.end() <= first);
    let Some(run) = runs.get(from).filter(|run| u64::from(run.logical) < end) else { return Ok(0) };
    let narrow = |block: u64| {
        u32::try_from(block).map_err(|_| Error::unsupported("a map of pointers beyond 2^32 blocks"))
    };
    if level == 0 {
        return narrow(run.start + (first - u64::from(run.logical)));
    }
    let block = next_node(nodes)?;
    let mut bytes = vec![0; volume.superblock.block_size as usize];
    let step = covered(volume.superblock.block_size, level - 1);
    for (slot, index) in bytes.chunks_exact_mut(4).zip(0..) {
        let below = store_branch(volume, &runs[from..], level - 1, first + index * step, nodes)?;
        slot.copy_from_slice(&below.to_le_bytes());
    }
    volume.cache.put(block, bytes)?;
    narrow(block)
}
