//! Changing extent trees: inserting, converting and cutting, with splits, growth and shrinking.
//!
//! A change reads the nodes on one path, changes them as lists and writes them back. All blocks that new
//! nodes will need are taken before anything changes, so that a full volume is found in time.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::extents::{
    self, Entries, Extent, Index, LOGICAL_LIMIT, MAX_DEPTH, MAX_UNWRITTEN, MAX_WRITTEN, Node, child_for,
    child_range,
};
use crate::inode::Inode;
use crate::volume::Ext4;

/// The logical blocks that the root is responsible for.
const ALL: Range<u64> = 0..LOGICAL_LIMIT + 1;

/// How many entries the root holds.
const ROOT_CAPACITY: usize = 4;

/// How many entries one change of a leaf adds at most.
const ADDED: usize = 2;

/// What stays the same during one change of a tree.
struct Edit {
    /// The seed of the nodes' checksums.
    seed: Option<u32>,
    /// How many entries a node in a block holds.
    capacity: usize,
    /// Blocks taken for new nodes.
    spare: Vec<u64>,
    /// Blocks of nodes that are no longer there.
    dropped: Vec<u64>,
}

/// Changes the extents of one leaf.
type Change<'a> = &'a mut dyn FnMut(&mut Vec<Extent>);

impl Ext4 {
    fn edit(&self, inode: &Inode) -> Edit {
        let seed = inode.checksum_seed(&self.superblock);
        let capacity = extents::capacity(self.superblock.block_size as usize);
        Edit { seed, capacity, spare: Vec::new(), dropped: Vec::new() }
    }

    fn read_child(&self, edit: &Edit, index: Index, depth: u16, range: Range<u64>) -> Result<Node> {
        extents::read_node(&self.cache, &self.superblock, edit.seed, index.child, depth, range)
    }

    fn write_node(&mut self, edit: &Edit, block: u64, node: &Node) -> Result<()> {
        let bytes = extents::encode_block(node, self.superblock.block_size as usize, edit.seed);
        self.cache.put(block, bytes)
    }

    /// Maps logical blocks that are a hole. Changes nothing where it fails.
    pub(crate) fn insert_extent(&mut self, inode: &mut Inode, extent: Extent) -> Result<()> {
        self.change_leaf(inode, extent.logical, extent.start, &mut |list| {
            let at = list.partition_point(|other| other.logical < extent.logical);
            list.insert(at, extent);
            merge_around(list, at);
        })
    }

    /// Makes a part of an unwritten extent a written one.
    pub(crate) fn mark_written(&mut self, inode: &mut Inode, part: Range<u64>) -> Result<()> {
        let Some(extent) = self.extent_around(inode, part.start)? else { return Ok(()) };
        let written = Extent { unwritten: false, ..extent.part(part) };
        self.change_leaf(inode, extent.logical, extent.start, &mut |list| {
            if let Some(at) = replace(list, extent, written) {
                merge_around(list, at);
            }
        })
    }

    /// Applies a change to the leaf that is responsible for a logical block.
    fn change_leaf(&mut self, inode: &mut Inode, logical: u32, goal: u64, change: Change<'_>) -> Result<()> {
        let mut root = extents::root(&self.superblock, inode)?;
        let mut edit = self.edit(inode);
        for _ in 0..self.full_nodes(&edit, &root, logical)? {
            match self.allocate_blocks(goal, 1) {
                Ok((block, _)) => edit.spare.push(block),
                Err(error) => {
                    self.return_spares(edit)?;
                    return Err(error);
                }
            }
        }
        let taken = edit.spare.len();
        // The root is never split: it grows.
        self.change_below(&mut edit, &mut root, ALL, usize::MAX, logical, change)?;
        if root.len() > ROOT_CAPACITY {
            self.grow(&mut edit, &mut root)?;
        }
        root.encode(&mut inode.block);
        inode.sectors += self.sectors_of((taken - edit.spare.len()) as u64);
        self.return_spares(edit)
    }

    fn sectors_of(&self, blocks: u64) -> u64 {
        blocks * (self.block_size() / 512)
    }

    /// How many nodes, from the leaf upwards, might have no room.
    fn full_nodes(&self, edit: &Edit, root: &Node, logical: u32) -> Result<usize> {
        let mut full = usize::from(root.len() + ADDED > ROOT_CAPACITY);
        let (mut node, mut range) = (root.clone(), ALL);
        while let Entries::Inner(children) = &node.entries {
            let at = child_for(children, logical.into());
            let (index, depth) = (children[at], node.depth - 1);
            range = child_range(children, at, &range);
            node = self.read_child(edit, index, depth, range.clone())?;
            full = if node.len() + ADDED > edit.capacity { full + 1 } else { 0 };
        }
        Ok(full)
    }

    fn return_spares(&mut self, edit: Edit) -> Result<()> {
        edit.spare.into_iter().try_for_each(|block| self.free_blocks(block, 1))
    }

    /// Applies a change under `node`; answers the node's right half where it had to be split.
    fn change_below(
        &mut self,
        edit: &mut Edit,
        node: &mut Node,
        range: Range<u64>,
        capacity: usize,
        logical: u32,
        change: Change<'_>,
    ) -> Result<Option<Node>> {
        let last = node.last();
        match &mut node.entries {
            Entries::Leaf(list) => change(list),
            Entries::Inner(children) => {
                let at = child_for(children, logical.into());
                let (index, below) = (children[at], child_range(children, at, &range));
                let mut child = self.read_child(edit, index, node.depth - 1, below.clone())?;
                let right = self.change_below(edit, &mut child, below, edit.capacity, logical, change)?;
                self.write_node(edit, index.child, &child)?;
                // A key always equals the first block that it leads to.
                children[at].logical = child.first().unwrap_or(index.logical);
                if let Some(right) = right {
                    children.insert(at + 1, self.place_node(edit, &right)?);
                }
            }
        }
        let appended = node.last() > last;
        Ok((node.len() > capacity).then(|| split(node, if appended { capacity } else { capacity / 2 })))
    }

    /// Writes a new node into one of the spare blocks; answers the entry that leads to it.
    fn place_node(&mut self, edit: &mut Edit, node: &Node) -> Result<Index> {
        let block = edit.spare.pop();
        let block =
            block.ok_or_else(|| Error::plain(ErrorKind::NoSpace, "no block was kept for an extent node"))?;
        self.write_node(edit, block, node)?;
        Ok(Index { logical: node.first().unwrap_or(0), child: block })
    }

    /// Moves what the root holds one level down.
    fn grow(&mut self, edit: &mut Edit, root: &mut Node) -> Result<()> {
        if root.depth >= MAX_DEPTH {
            return Err(Error::plain(ErrorKind::NoSpace, "the file's extent tree is as deep as it can be"));
        }
        let index = self.place_node(edit, root)?;
        *root = Node { depth: root.depth + 1, entries: Entries::Inner(vec![index]) };
        Ok(())
    }

    /// The whole extent that holds a logical block.
    fn extent_around(&self, inode: &Inode, logical: u64) -> Result<Option<Extent>> {
        let edit = self.edit(inode);
        let (mut node, mut range) = (extents::root(&self.superblock, inode)?, ALL);
        loop {
            match &node.entries {
                Entries::Leaf(list) => {
                    let holds =
                        |extent: &&Extent| (u64::from(extent.logical)..extent.end()).contains(&logical);
                    return Ok(list.iter().find(holds).copied());
                }
                Entries::Inner(children) => {
                    let at = child_for(children, logical);
                    let (index, depth) = (children[at], node.depth - 1);
                    range = child_range(children, at, &range);
                    node = self.read_child(&edit, index, depth, range.clone())?;
                }
            }
        }
    }

    /// Unmaps a range of logical blocks and gives back what it took.
    pub(crate) fn cut_extents(&mut self, inode: &mut Inode, cut: Range<u64>) -> Result<()> {
        if cut.is_empty() {
            return Ok(());
        }
        let around = self.extent_around(inode, cut.start)?;
        let splits = |extent: &Extent| u64::from(extent.logical) < cut.start && cut.end < extent.end();
        if let Some(extent) = around.filter(splits) {
            self.change_leaf(inode, extent.logical, extent.start, &mut |list| {
                if let Some(at) = replace(list, extent, extent.part(cut.clone())) {
                    list.remove(at);
                }
            })?;
            return self.release(inode, extent.part(cut));
        }
        let mut root = extents::root(&self.superblock, inode)?;
        let mut edit = self.edit(inode);
        self.cut_below(&mut edit, inode, &mut root, ALL, &cut)?;
        self.shrink(&mut edit, &mut root)?;
        root.encode(&mut inode.block);
        for block in edit.dropped {
            self.free_blocks(block, 1)?;
            inode.sectors = inode.sectors.saturating_sub(self.sectors_of(1));
        }
        Ok(())
    }

    fn release(&mut self, inode: &mut Inode, extent: Extent) -> Result<()> {
        self.free_blocks(extent.start, extent.len.into())?;
        inode.sectors = inode.sectors.saturating_sub(self.sectors_of(extent.len.into()));
        Ok(())
    }

    /// Cuts a range out of everything under `node`; nodes that end up empty are dropped.
    fn cut_below(
        &mut self,
        edit: &mut Edit,
        inode: &mut Inode,
        node: &mut Node,
        range: Range<u64>,
        cut: &Range<u64>,
    ) -> Result<()> {
        let children = match &mut node.entries {
            Entries::Leaf(list) => {
                for extent in list.iter().filter(|extent| overlaps(extent, cut)) {
                    self.release(inode, extent.part(cut.clone()))?;
                }
                *list = list.iter().flat_map(|extent| outside(extent, cut)).collect();
                return Ok(());
            }
            Entries::Inner(children) => children,
        };
        let mut kept = Vec::with_capacity(children.len());
        for at in 0..children.len() {
            let (mut index, below) = (children[at], child_range(children, at, &range));
            if below.end <= cut.start || cut.end <= below.start {
                kept.push(index);
                continue;
            }
            let mut child = self.read_child(edit, index, node.depth - 1, below.clone())?;
            let before = child.clone();
            self.cut_below(edit, inode, &mut child, below, cut)?;
            let Some(first) = child.first() else {
                edit.dropped.push(index.child);
                continue;
            };
            if child != before {
                self.write_node(edit, index.child, &child)?;
            }
            index.logical = first;
            kept.push(index);
        }
        *children = kept;
        Ok(())
    }

    /// Moves what the only child of the root holds into the root, where it fits.
    fn shrink(&mut self, edit: &mut Edit, root: &mut Node) -> Result<()> {
        loop {
            let Entries::Inner(children) = &root.entries else { return Ok(()) };
            let index = match children.as_slice() {
                [] => {
                    *root = Node::empty();
                    return Ok(());
                }
                [index] => *index,
                _ => return Ok(()),
            };
            let child = self.read_child(edit, index, root.depth - 1, ALL)?;
            if child.len() > ROOT_CAPACITY {
                return Ok(());
            }
            edit.dropped.push(index.child);
            *root = child;
        }
    }
}

fn overlaps(extent: &Extent, range: &Range<u64>) -> bool {
    u64::from(extent.logical) < range.end && range.start < extent.end()
}

/// The parts of an extent before and after a range.
fn outside(extent: &Extent, range: &Range<u64>) -> impl Iterator<Item = Extent> {
    let logical = u64::from(extent.logical);
    let before = (logical < range.start).then(|| extent.part(logical..range.start.min(extent.end())));
    let after = (range.end < extent.end()).then(|| extent.part(range.end.max(logical)..extent.end()));
    if overlaps(extent, range) { [before, after] } else { [Some(*extent), None] }.into_iter().flatten()
}

/// Puts `part`, which lies within `old`, and what is left of `old` around it in its place; answers where.
fn replace(list: &mut Vec<Extent>, old: Extent, part: Extent) -> Option<usize> {
    let at = list.iter().position(|extent| *extent == old)?;
    let mut pieces: Vec<Extent> = outside(&old, &(part.logical.into()..part.end())).chain([part]).collect();
    pieces.sort_by_key(|piece| piece.logical);
    let new = pieces.iter().position(|piece| *piece == part)?;
    list.splice(at..=at, pieces);
    Some(at + new)
}

/// Joins the extent at `at` with its neighbours where they continue it.
fn merge_around(list: &mut Vec<Extent>, at: usize) {
    for left in [at, at.wrapping_sub(1)] {
        let (Some(a), Some(b)) = (list.get(left), list.get(left.wrapping_add(1))) else { continue };
        let limit = if a.unwritten { MAX_UNWRITTEN } else { MAX_WRITTEN };
        let continues = a.end() == u64::from(b.logical) && a.start + u64::from(a.len) == b.start;
        if continues && a.unwritten == b.unwritten && a.len + b.len <= limit {
            list[left].len += b.len;
            list.remove(left + 1);
        }
    }
}

/// Keeps the first `len` entries of a node and answers the rest as a node of its own.
fn split(node: &mut Node, len: usize) -> Node {
    let entries = match &mut node.entries {
        Entries::Leaf(list) => Entries::Leaf(list.split_off(len)),
        Entries::Inner(children) => Entries::Inner(children.split_off(len)),
    };
    Node { depth: node.depth, entries }
}
