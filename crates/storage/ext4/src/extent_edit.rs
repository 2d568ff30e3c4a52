//! Changing extent trees: inserting, converting and cutting, with splits, growth and shrinking.
//!
//! A change reads the nodes on one path, changes them as lists and writes them back. All blocks that new
//! nodes will need are taken before anything changes, so that a full volume is found in time.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Place, Result};
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
    /// The clusters of the file at the ends of a cut that stay in use.
    kept: [Option<u64>; 2],
    /// The last cluster of the file that was given back.
    released: Option<u64>,
    /// What is given back once nothing leads to it any more: the first block, and how many.
    freed: Vec<(u64, u64)>,
}

/// Changes the extents of one leaf.
type Change<'a> = &'a mut dyn FnMut(&mut Vec<Extent>);

impl Ext4 {
    fn edit(&self, inode: &Inode) -> Edit {
        let seed = inode.checksum_seed(&self.superblock);
        let capacity = extents::capacity(self.superblock.block_size as usize);
        let (spare, dropped) = (Vec::new(), Vec::new());
        Edit { seed, capacity, spare, dropped, kept: [None; 2], released: None, freed: Vec::new() }
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
        self.change_leaf(inode, extent.logical, &mut |list| {
            let at = list.partition_point(|other| other.logical < extent.logical);
            list.insert(at, extent);
            merge_around(list, at);
        })
    }

    /// Makes a part of an unwritten extent a written one.
    pub(crate) fn mark_written(&mut self, inode: &mut Inode, part: Range<u64>) -> Result<()> {
        let Some(extent) = self.extent_around(inode, part.start)? else { return Ok(()) };
        let written = Extent { unwritten: false, ..extent.part(part) };
        self.change_leaf(inode, extent.logical, &mut |list| {
            if let Some(at) = replace(list, extent, written) {
                merge_around(list, at);
            }
        })
    }

    /// Applies a change to the leaf that is responsible for a logical block.
    fn change_leaf(&mut self, inode: &mut Inode, logical: u32, change: Change<'_>) -> Result<()> {
        let mut root = extents::root(&self.superblock, inode)?;
        let mut edit = self.edit(inode);
        let goal = self.metadata_goal(inode);
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
        inode.sectors += (taken - edit.spare.len()) as u64 * self.superblock.cluster_sectors();
        self.return_spares(edit)
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
        let mut edit = self.edit(inode);
        edit.kept = self.clusters_kept(inode, &cut)?;
        let around = self.extent_around(inode, cut.start)?;
        let splits = |extent: &Extent| u64::from(extent.logical) < cut.start && cut.end < extent.end();
        if let Some(extent) = around.filter(splits) {
            self.change_leaf(inode, extent.logical, &mut |list| {
                if let Some(at) = replace(list, extent, extent.part(cut.clone())) {
                    list.remove(at);
                }
            })?;
            self.release(&mut edit, inode, extent.part(cut))?;
            return self.free_released(&edit);
        }
        let mut root = extents::root(&self.superblock, inode)?;
        self.cut_below(&mut edit, inode, &mut root, ALL, &cut)?;
        self.shrink(&mut edit, &mut root)?;
        root.encode(&mut inode.block);
        for block in &edit.dropped {
            self.free_blocks(*block, 1)?;
            inode.sectors = inode.sectors.saturating_sub(self.superblock.cluster_sectors());
        }
        self.free_released(&edit)
    }

    /// Gives back what was cut. Not before the map is whole again: where a damaged node ends a cut too early, blocks are
    /// lost, but none belongs to two files.
    fn free_released(&mut self, edit: &Edit) -> Result<()> {
        edit.freed.iter().try_for_each(|(start, len)| self.free_blocks(*start, *len))
    }

    /// Gives back the clusters of an extent, or of a part of one, that nothing else of the file is in.
    fn release(&self, edit: &mut Edit, inode: &mut Inode, extent: Extent) -> Result<()> {
        let cluster = u64::from(self.superblock.cluster_blocks);
        let within = u64::from(extent.logical) % cluster;
        if extent.start % cluster != within && cluster > 1 {
            let problem = "an extent does not lie in its clusters as it does in the file";
            return Err(Error::corrupt(Place::Inode(inode.number.into()), problem));
        }
        let first = u64::from(extent.logical) / cluster;
        let last = (extent.end() - 1) / cluster;
        let stays =
            |number| cluster > 1 && (edit.kept.contains(&Some(number)) || edit.released == Some(number));
        let from = first + u64::from(stays(first));
        let to = last + 1 - u64::from(stays(last));
        edit.released = Some(last);
        if from < to {
            let start = extent.start - within + (from - first) * cluster;
            let len = (to - from) * cluster;
            match edit.freed.last_mut() {
                Some((before, count)) if *before + *count == start => *count += len,
                _ => edit.freed.push((start, len)),
            }
            let sectors = (to - from) * self.superblock.cluster_sectors();
            inode.sectors = inode.sectors.saturating_sub(sectors);
        }
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
                    self.release(edit, inode, extent.part(cut.clone()))?;
                }
                *list = list.iter().flat_map(|extent| outside(extent, cut)).collect();
                return Ok(());
            }
            Entries::Inner(children) => children,
        };
        let mut kept = Vec::with_capacity(children.len());
        let mut changed = Vec::with_capacity(children.len());
        for at in 0..children.len() {
            let (mut index, below) = (children[at], child_range(children, at, &range));
            if below.end <= cut.start || cut.end <= below.start {
                kept.push(index);
                changed.push(false);
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
            changed.push(child != before);
        }
        self.join_children(edit, &mut kept, changed, node.depth - 1, &range)?;
        *children = kept;
        Ok(())
    }

    /// Joins changed children with those beside them, where both fit into one.
    fn join_children(
        &mut self,
        edit: &mut Edit,
        children: &mut Vec<Index>,
        mut changed: Vec<bool>,
        depth: u16,
        range: &Range<u64>,
    ) -> Result<()> {
        let mut at = 1;
        while at < children.len() {
            if !changed[at - 1] && !changed[at] {
                at += 1;
                continue;
            }
            let read =
                |at: usize| self.read_child(edit, children[at], depth, child_range(children, at, range));
            let (mut left, right) = (read(at - 1)?, read(at)?);
            if left.len() + right.len() > edit.capacity {
                at += 1;
                continue;
            }
            left.append(right);
            self.write_node(edit, children[at - 1].child, &left)?;
            edit.dropped.push(children.remove(at).child);
            changed.remove(at);
            changed[at - 1] = true;
        }
        Ok(())
    }

    /// Cuts the extent around a logical block into two there.
    pub(crate) fn split_extent(&mut self, inode: &mut Inode, at: u64) -> Result<()> {
        let Some(extent) = self.extent_around(inode, at)?.filter(|extent| u64::from(extent.logical) < at)
        else {
            return Ok(());
        };
        self.change_leaf(inode, extent.logical, &mut |list| {
            replace(list, extent, extent.part(at..extent.end()));
        })
    }

    /// Joins the extent that begins at a logical block with the one before it, where they continue each other.
    pub(crate) fn join_extents(&mut self, inode: &mut Inode, at: u64) -> Result<()> {
        let Some(extent) = self.extent_around(inode, at)? else { return Ok(()) };
        self.change_leaf(inode, extent.logical, &mut |list| {
            if let Some(at) = list.iter().position(|other| *other == extent) {
                merge_around(list, at);
            }
        })
    }

    /// Moves every extent from a logical block on by some blocks; none lies across it, or where they go.
    pub(crate) fn shift_extents(&mut self, inode: &mut Inode, from: u64, by: i64) -> Result<()> {
        let mut root = extents::root(&self.superblock, inode)?;
        let edit = self.edit(inode);
        self.shift_below(&edit, &mut root, ALL, from, by)?;
        root.encode(&mut inode.block);
        Ok(())
    }

    fn shift_below(
        &mut self,
        edit: &Edit,
        node: &mut Node,
        range: Range<u64>,
        from: u64,
        by: i64,
    ) -> Result<()> {
        let place = |logical: u32| {
            let moved = u64::from(logical).checked_add_signed(by).and_then(|moved| u32::try_from(moved).ok());
            moved.ok_or_else(|| {
                Error::plain(ErrorKind::InvalidInput, "the file would be larger than it can be")
            })
        };
        let children = match &mut node.entries {
            Entries::Leaf(list) => {
                for extent in list.iter_mut().filter(|extent| u64::from(extent.logical) >= from) {
                    extent.logical = place(extent.logical)?;
                }
                return Ok(());
            }
            Entries::Inner(children) => children,
        };
        for at in 0..children.len() {
            let (index, below) = (children[at], child_range(children, at, &range));
            if below.end > from {
                let mut child = self.read_child(edit, index, node.depth - 1, below.clone())?;
                self.shift_below(edit, &mut child, below, from, by)?;
                self.write_node(edit, index.child, &child)?;
                children[at].logical = child.first().unwrap_or(index.logical);
            }
        }
        Ok(())
    }

    /// One more than the last logical block that the tree maps.
    pub(crate) fn extents_end(&self, inode: &Inode) -> Result<u64> {
        let edit = self.edit(inode);
        let (mut node, mut range) = (extents::root(&self.superblock, inode)?, ALL);
        loop {
            match &node.entries {
                Entries::Leaf(list) => return Ok(list.last().map_or(0, Extent::end)),
                Entries::Inner(children) => {
                    let at = children.len() - 1;
                    range = child_range(children, at, &range);
                    node = self.read_child(&edit, children[at], node.depth - 1, range.clone())?;
                }
            }
        }
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
