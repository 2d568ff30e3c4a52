//! Extent trees: nodes, validated and encoded, and finding a block.
//!
//! ```text
//! inode.i_block: header │ index │ index │ …             depth 2
//!                           │
//!        block: header │ index │ index │ … │ crc32c     depth 1
//!                           │
//!        block: header │ extent │ extent │ … │ crc32c   depth 0: logical, length, start
//! ```

use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use crate::block_cache::BlockCache;
use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::layout::{EXTENT_MAGIC, RawExtent, RawExtentHeader, RawExtentIndex};
use crate::mapping::{Run, RunPlace};
use crate::superblock::Superblock;

/// One more than the largest logical block that an extent can map.
pub(crate) const LOGICAL_LIMIT: u64 = u32::MAX as u64;

/// The longest extent; lengths above it mark unwritten ones.
pub(crate) const MAX_WRITTEN: u32 = 0x8000;
/// The longest extent of unwritten blocks.
pub(crate) const MAX_UNWRITTEN: u32 = MAX_WRITTEN - 1;

/// The deepest tree that kernels make, the root's level counted as zero.
pub(crate) const MAX_DEPTH: u16 = 5;

/// The size of a header and of each entry.
const ENTRY: usize = 12;

/// Blocks that are neighbours in the file and on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) logical: u32,
    pub(crate) len: u32,
    pub(crate) start: u64,
    /// Allocated, but what stands there is not content.
    pub(crate) unwritten: bool,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.logical) + u64::from(self.len)
    }

    /// The part of this extent within a range of logical blocks, which must overlap it.
    pub(crate) fn part(&self, range: Range<u64>) -> Self {
        let logical = range.start.max(self.logical.into());
        let end = range.end.min(self.end());
        let skip = logical - u64::from(self.logical);
        // Both lie within the extent, so they fit where its own numbers do.
        Self { logical: logical as u32, len: (end - logical) as u32, start: self.start + skip, ..*self }
    }
}

/// An entry of an inner node: a child that maps logical blocks from this one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) logical: u32,
    pub(crate) child: u64,
}

/// The entries of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entries {
    Leaf(Vec<Extent>),
    Inner(Vec<Index>),
}

/// A validated node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Levels beneath this node.
    pub(crate) depth: u16,
    pub(crate) entries: Entries,
}

/// What a node is checked against.
#[derive(Debug, Clone)]
pub(crate) struct Expect {
    pub(crate) place: Place,
    /// `None` for the root, which sets the depth.
    pub(crate) depth: Option<u16>,
    /// The logical blocks that the node's parent gives to it.
    pub(crate) range: Range<u64>,
}

/// How many entries a node of this many bytes holds.
pub(crate) fn capacity(bytes: usize) -> usize {
    bytes.saturating_sub(ENTRY) / ENTRY
}

impl Node {
    /// A tree without extents.
    pub(crate) fn empty() -> Self {
        Self { depth: 0, entries: Entries::Leaf(Vec::new()) }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.entries {
            Entries::Leaf(extents) => extents.len(),
            Entries::Inner(children) => children.len(),
        }
    }

    /// The first logical block mapped, where any is.
    pub(crate) fn first(&self) -> Option<u32> {
        match &self.entries {
            Entries::Leaf(extents) => extents.first().map(|extent| extent.logical),
            Entries::Inner(children) => children.first().map(|child| child.logical),
        }
    }

    /// Where the last entry begins, where there is any.
    pub(crate) fn last(&self) -> Option<u32> {
        match &self.entries {
            Entries::Leaf(extents) => extents.last().map(|extent| extent.logical),
            Entries::Inner(children) => children.last().map(|child| child.logical),
        }
    }

    /// Adds the entries of the node behind this one.
    pub(crate) fn append(&mut self, other: Self) {
        match (&mut self.entries, other.entries) {
            (Entries::Leaf(left), Entries::Leaf(right)) => left.extend(right),
            (Entries::Inner(left), Entries::Inner(right)) => left.extend(right),
            // Both are of one depth.
            _ => {}
        }
    }

    /// Validates the bytes of a node, checksum left aside.
    pub(crate) fn parse(superblock: &Superblock, bytes: &[u8], expect: &Expect) -> Result<Self> {
        let corrupt = |problem| Err(Error::corrupt(expect.place, problem));
        let Ok((header, _)) = RawExtentHeader::read_from_prefix(bytes) else {
            return corrupt("the header of an extent node is cut short");
        };
        if header.eh_magic != EXTENT_MAGIC {
            let (expected, actual) = (EXTENT_MAGIC.into(), header.eh_magic.get().into());
            return Err(Error::mismatch(expect.place, "the magic of an extent node", expected, actual));
        }
        let (count, max, depth) = (header.eh_entries.get(), header.eh_max.get(), header.eh_depth.get());
        if usize::from(max) > capacity(bytes.len()) || count > max {
            return corrupt("an extent node has more entries than it can hold");
        }
        if depth > MAX_DEPTH || expect.depth.is_some_and(|expected| expected != depth) {
            return corrupt("the depth of an extent node is not what its parent says");
        }
        let entries = bytes[ENTRY..].chunks_exact(ENTRY).take(count.into());
        let entries = match depth {
            0 => Entries::Leaf(parse_extents(superblock, entries, expect)?),
            _ => Entries::Inner(parse_children(superblock, entries, expect)?),
        };
        Ok(Self { depth, entries })
    }

    /// Encodes the node into the whole of `bytes`; what it does not use becomes zeros, a checksum's place too.
    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let header = RawExtentHeader {
            eh_magic: EXTENT_MAGIC.into(),
            eh_entries: (self.len() as u16).into(),
            eh_max: (capacity(bytes.len()) as u16).into(),
            eh_depth: self.depth.into(),
            eh_generation: 0.into(),
        };
        let (head, rest) = bytes.split_at_mut(ENTRY);
        head.copy_from_slice(header.as_bytes());
        let slots = rest.chunks_exact_mut(ENTRY);
        match &self.entries {
            Entries::Leaf(extents) => slots.zip(extents).for_each(|(slot, extent)| {
                let len = if extent.unwritten { extent.len + MAX_WRITTEN } else { extent.len };
                let raw = RawExtent {
                    ee_block: extent.logical.into(),
                    ee_len: (len as u16).into(),
                    ee_start_hi: ((extent.start >> 32) as u16).into(),
                    ee_start_lo: (extent.start as u32).into(),
                };
                slot.copy_from_slice(raw.as_bytes());
            }),
            Entries::Inner(children) => slots.zip(children).for_each(|(slot, index)| {
                let raw = RawExtentIndex {
                    ei_block: index.logical.into(),
                    ei_leaf_lo: (index.child as u32).into(),
                    ei_leaf_hi: ((index.child >> 32) as u16).into(),
                    ei_unused: 0.into(),
                };
                slot.copy_from_slice(raw.as_bytes());
            }),
        }
    }
}

fn parse_extents<'a>(
    superblock: &Superblock,
    entries: impl Iterator<Item = &'a [u8]>,
    expect: &Expect,
) -> Result<Vec<Extent>> {
    let corrupt = |problem| Err(Error::corrupt(expect.place, problem));
    let mut extents = Vec::new();
    let mut next = expect.range.start;
    for entry in entries {
        let Ok(raw) = RawExtent::read_from_bytes(entry) else { return corrupt("an extent is cut short") };
        let field = u32::from(raw.ee_len.get());
        let unwritten = field > MAX_WRITTEN;
        let extent = Extent {
            logical: raw.ee_block.get(),
            len: if unwritten { field - MAX_WRITTEN } else { field },
            start: u64::from(raw.ee_start_lo.get()) | u64::from(raw.ee_start_hi.get()) << 32,
            unwritten,
        };
        if extent.len == 0 || u64::from(extent.logical) < next || extent.end() > expect.range.end {
            return corrupt("extents are out of order or overlap");
        }
        if !superblock.is_valid_block(extent.start)
            || extent.start + u64::from(extent.len) > superblock.blocks
        {
            return corrupt("an extent lies outside the volume");
        }
        next = extent.end();
        extents.push(extent);
    }
    Ok(extents)
}

fn parse_children<'a>(
    superblock: &Superblock,
    entries: impl Iterator<Item = &'a [u8]>,
    expect: &Expect,
) -> Result<Vec<Index>> {
    let corrupt = |problem| Err(Error::corrupt(expect.place, problem));
    let mut children: Vec<Index> = Vec::new();
    for entry in entries {
        let Ok(raw) = RawExtentIndex::read_from_bytes(entry) else { return corrupt("an index is cut short") };
        let index = Index {
            logical: raw.ei_block.get(),
            child: u64::from(raw.ei_leaf_lo.get()) | u64::from(raw.ei_leaf_hi.get()) << 32,
        };
        let after = children.last().is_none_or(|last| last.logical < index.logical);
        if !after || !expect.range.contains(&index.logical.into()) {
            return corrupt("the indexes of an extent node are out of order");
        }
        if !superblock.is_valid_block(index.child) {
            return corrupt("a child of an extent node lies outside the volume");
        }
        children.push(index);
    }
    if children.is_empty() {
        return corrupt("an inner extent node has no children");
    }
    Ok(children)
}

/// The logical blocks that the `at`-th child of a node is responsible for.
pub(crate) fn child_range(children: &[Index], at: usize, parent: &Range<u64>) -> Range<u64> {
    let end = children.get(at + 1).map_or(parent.end, |next| next.logical.into());
    children[at].logical.into()..end
}

/// Which child is responsible for a logical block; the first one for those before it.
pub(crate) fn child_for(children: &[Index], logical: u64) -> usize {
    children.partition_point(|index| u64::from(index.logical) <= logical).saturating_sub(1)
}

/// The root of an inode's tree, and what it was checked against.
pub(crate) fn root(superblock: &Superblock, inode: &Inode) -> Result<Node> {
    let place = Place::Inode(inode.number.into());
    let expect = Expect { place, depth: None, range: 0..LOGICAL_LIMIT + 1 };
    Node::parse(superblock, &inode.block, &expect)
}

/// Reads a node that is not the root.
pub(crate) fn read_node(
    cache: &BlockCache,
    superblock: &Superblock,
    seed: Option<u32>,
    block: u64,
    depth: u16,
    range: Range<u64>,
) -> Result<Node> {
    let bytes = cache.read(block)?;
    let expect = Expect { place: Place::Block(block), depth: Some(depth), range };
    let node = Node::parse(superblock, &bytes, &expect)?;
    if let Some(seed) = seed {
        let at = tail(&bytes);
        let expected = crc32c(seed, &bytes[..at]);
        let found = bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        if expected != found {
            let what = "the checksum of an extent node";
            return Err(Error::mismatch(expect.place, what, expected.into(), found.into()));
        }
    }
    Ok(node)
}

/// Where the checksum of a node's block stands: right behind the room for entries.
fn tail(bytes: &[u8]) -> usize {
    let max = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    (ENTRY + max * ENTRY).min(bytes.len() - 4)
}

/// Encodes a node for a block of its own.
pub(crate) fn encode_block(node: &Node, block_size: usize, seed: Option<u32>) -> Vec<u8> {
    let mut bytes = vec![0; block_size];
    node.encode(&mut bytes);
    seal_block(&mut bytes, seed);
    bytes
}

/// Sets the checksum of a node's block.
pub(crate) fn seal_block(bytes: &mut [u8], seed: Option<u32>) {
    if let Some(seed) = seed {
        let at = tail(bytes);
        let checksum = crc32c(seed, &bytes[..at]);
        bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Finds the run that begins at a logical block.
pub(crate) fn run_at(
    cache: &BlockCache,
    superblock: &Superblock,
    inode: &Inode,
    logical: u64,
) -> Result<Run> {
    let seed = inode.checksum_seed(superblock);
    if logical > LOGICAL_LIMIT {
        // Beyond what any tree can map there is one hole.
        return Ok(Run { logical, len: u64::MAX - logical, place: RunPlace::Hole });
    }
    let mut node = root(superblock, inode)?;
    let mut range = 0..LOGICAL_LIMIT + 1;
    loop {
        match &node.entries {
            Entries::Leaf(extents) => return Ok(run_in_leaf(extents, logical, &range)),
            Entries::Inner(children) => {
                let before = u64::from(children[0].logical);
                if logical < before {
                    return Ok(Run { logical, len: before - logical, place: RunPlace::Hole });
                }
                let at = child_for(children, logical);
                let (child, depth) = (children[at].child, node.depth - 1);
                range = child_range(children, at, &range);
                node = read_node(cache, superblock, seed, child, depth, range.clone())?;
            }
        }
    }
}

fn run_in_leaf(extents: &[Extent], logical: u64, range: &Range<u64>) -> Run {
    let after = extents.partition_point(|extent| u64::from(extent.logical) <= logical);
    if let Some(extent) = extents[..after].last().filter(|extent| logical < extent.end()) {
        let start = extent.start + (logical - u64::from(extent.logical));
        let place = if extent.unwritten { RunPlace::Unwritten(start) } else { RunPlace::Written(start) };
        return Run { logical, len: extent.end() - logical, place };
    }
    let end = extents.get(after).map_or(range.end, |next| next.logical.into());
    Run { logical, len: end.saturating_sub(logical).max(1), place: RunPlace::Hole }
}
