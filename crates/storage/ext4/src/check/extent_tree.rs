//! Extent trees: every rule that kernels and e2fsck hold them to.

use zerocopy::FromBytes;

use super::content::{self, Walk, claim, is_possible, remember};
use super::inodes::Found;
use super::{Checker, Problem};
use crate::checksum::crc32c;
use crate::error::Result;
use crate::features::incompat;
use crate::inode::{flags, seed};
use crate::layout::{RawExtent, RawExtentHeader, RawExtentIndex};

/// What is said of a directory's extents that do not follow one another.
pub(super) const HOLE: &str = "a hole in a directory";

/// The size of a node's head, and of each of its entries.
const ENTRY: usize = 12;
/// The most levels below the root that any tree has.
const MAX_DEPTH: u16 = 5;
/// The longest extent that is written; longer lengths are of extents allocated ahead.
const MAX_WRITTEN: u16 = 32768;

/// Reads the head of a node; fails where it is impossible.
pub(super) fn head(bytes: &[u8]) -> Result<RawExtentHeader, &'static str> {
    let Ok((head, _)) = RawExtentHeader::read_from_prefix(bytes) else { return Err("length") };
    let room = (bytes.len() - ENTRY) / ENTRY;
    let most = usize::from(head.eh_max.get());
    if head.eh_magic != content::MAGIC {
        Err("magic")
    } else if head.eh_entries > head.eh_max {
        Err("number of entries")
    } else if most > room || most + 2 < room {
        // Up to two entries' room may be left for a checksum.
        Err("room for entries")
    } else {
        Ok(head)
    }
}

/// The block of a tree that is one extent of one block at the beginning.
pub(super) fn single(root: &[u8; 60]) -> Option<u64> {
    let head = head(root).ok().filter(|head| head.eh_entries == 1 && head.eh_depth == 0)?;
    let extent = extent(root, 0);
    (head.eh_magic == content::MAGIC && extent.logical == 0 && extent.len == 1).then_some(extent.block)
}

struct Extent {
    logical: u64,
    block: u64,
    len: u64,
    written: bool,
}

fn extent(node: &[u8], at: usize) -> Extent {
    let at = ENTRY + at * ENTRY;
    let raw = node.get(at..).and_then(|bytes| RawExtent::read_from_prefix(bytes).ok());
    let Some((raw, _)) = raw else { return Extent { logical: 0, block: 0, len: 0, written: true } };
    let len = raw.ee_len.get();
    let written = len <= MAX_WRITTEN;
    Extent {
        logical: raw.ee_block.get().into(),
        block: u64::from(raw.ee_start_lo.get()) | u64::from(raw.ee_start_hi.get()) << 32,
        len: if written { len } else { len - MAX_WRITTEN }.into(),
        written,
    }
}

fn index(node: &[u8], at: usize) -> (u64, u64) {
    let at = ENTRY + at * ENTRY;
    match node.get(at..).and_then(|bytes| RawExtentIndex::read_from_prefix(bytes).ok()) {
        Some((raw, _)) => {
            let block = u64::from(raw.ei_leaf_lo.get()) | u64::from(raw.ei_leaf_hi.get()) << 32;
            (raw.ei_block.get().into(), block)
        }
        None => (0, 0),
    }
}

/// What a node must keep to.
struct Bounds {
    /// The first logical block.
    start: u64,
    /// The last logical block; zero where any may be.
    last: u64,
    /// The logical block where the next node begins, or the content's end.
    end: u64,
    /// How many levels are below.
    depth: u16,
}

/// Checks the tree of an inode and claims its blocks.
pub(super) fn check(checker: &mut Checker, found: &Found<'_>, walk: &mut Walk) -> Result<()> {
    if found.is_unmapped() {
        checker.findings.add_field(Problem::ExtentTree, found.place(), "no root");
        return Ok(());
    }
    let root = found.raw.i_block;
    let head = match head(&root) {
        Ok(head) => head,
        Err(field) => {
            checker.findings.add_field(Problem::ExtentTree, found.place(), field);
            return Ok(());
        }
    };
    let depth = head.eh_depth.get();
    if depth > MAX_DEPTH {
        checker.findings.field(Problem::ExtentTree, found.place(), "depth", depth.into());
        return Ok(());
    }
    let block = u64::from(checker.superblock.block_size);
    let mut tree = Tree { found, walk, eof: found.size().div_ceil(block), next: 0 };
    let bounds = Bounds { start: 0, last: 0, end: tree.eof, depth };
    tree.node(checker, &root, head.eh_entries.get().into(), &bounds)
}

/// A tree that is walked.
struct Tree<'a, 'b> {
    found: &'a Found<'b>,
    walk: &'a mut Walk,
    /// How many blocks the content has by its size.
    eof: u64,
    /// The first logical block behind all extents so far.
    next: u64,
}

impl Tree<'_, '_> {
    fn node(&mut self, checker: &mut Checker, node: &[u8], entries: usize, bounds: &Bounds) -> Result<()> {
        if bounds.depth > 0 {
            return self.inner(checker, node, entries, bounds);
        }
        let mut start = bounds.start;
        for at in 0..entries {
            let extent = extent(node, at);
            match self.problem(checker, &extent, start, bounds) {
                Some(field) => self.wrong(checker, field, extent.logical),
                None => {
                    self.take(checker, &extent)?;
                    start = extent.logical + extent.len - 1;
                }
            }
        }
        Ok(())
    }

    fn wrong(&mut self, checker: &mut Checker, field: &'static str, logical: u64) {
        checker.findings.add_field(Problem::ExtentRange, content::place(self.found, logical), field);
    }

    /// What is wrong with an extent in its node, if anything is.
    fn problem(
        &mut self,
        checker: &Checker,
        extent: &Extent,
        start: u64,
        bounds: &Bounds,
    ) -> Option<&'static str> {
        let last = (extent.logical + extent.len).wrapping_sub(1);
        let ahead = !extent.written || self.found.has(flags::VERITY);
        let beyond_eof = last > self.eof.wrapping_sub(1);
        if !is_possible(checker, extent.block) {
            return Some("block");
        } else if extent.logical < start {
            return Some("order");
        } else if bounds.last != 0 && last > bounds.last && !(beyond_eof && ahead) {
            return Some("end");
        } else if extent.len == 0 {
            return Some("length");
        } else if extent.block + extent.len > checker.superblock.blocks {
            return Some("end beyond the volume");
        } else if extent.logical + extent.len > 1 << 32 {
            return Some("end beyond the longest file");
        } else if self.found.is_directory() && is_long(checker, self.found, extent.logical + extent.len) {
            return Some("a directory too long");
        } else if extent.logical < self.next {
            return Some("overlap");
        }
        self.next = self.next.max(extent.logical + extent.len);
        None
    }

    /// Takes the blocks of an extent that is possible.
    fn take(&mut self, checker: &mut Checker, extent: &Extent) -> Result<()> {
        let directory = self.found.is_directory();
        if directory && !extent.written {
            self.wrong(checker, "a directory's block that was not written", extent.logical);
        }
        if directory && self.walk.end < extent.logical {
            self.wrong(checker, HOLE, extent.logical);
        }
        let walk = &mut *self.walk;
        walk.fragmented |= walk.previous != 0 && walk.previous + 1 != extent.block;
        let ratio = u64::from(checker.superblock.cluster_blocks);
        let last = (walk.previous, walk.end.wrapping_sub(1));
        if ratio > 1 && is_misaligned(ratio, last, (extent.block, extent.logical)) {
            self.wrong(checker, "clusters", extent.logical);
        }
        let walk = &mut *self.walk;
        // The cluster in which the extent before has ended is taken already.
        let shared = ratio > 1 && walk.previous != 0 && extent.block / ratio == walk.previous / ratio;
        let first = (extent.block / ratio + u64::from(shared)) * ratio;
        let end = extent.block + extent.len;
        let mut free = true;
        if first < end {
            free = claim(checker, self.found, first, end - first);
            walk.clusters += (end - first).div_ceil(ratio);
        }
        if free || extent.len == 1 {
            remember(checker, self.found, walk, extent.logical, extent.block, extent.len)?;
        }
        walk.previous = end - 1;
        walk.end = extent.logical + extent.len;
        if !directory && extent.written {
            walk.written_end = walk.end;
        }
        Ok(())
    }

    fn inner(&mut self, checker: &mut Checker, node: &[u8], entries: usize, bounds: &Bounds) -> Result<()> {
        for at in 0..entries {
            let (logical, block) = index(node, at);
            let end = if at + 1 < entries { index(node, at + 1).0 } else { bounds.end };
            // The length is kept in 32 bits, so that one that is negative ends beyond everything.
            let last = (logical + u64::from((end as u32).wrapping_sub(logical as u32))).wrapping_sub(1);
            if !is_possible(checker, block) {
                self.wrong(checker, "block of a node", logical);
            } else if logical < bounds.start {
                self.wrong(checker, "order of nodes", logical);
            } else if bounds.last != 0 && last > bounds.last {
                self.wrong(checker, "end of a node", logical);
            } else {
                let below = Bounds { start: logical, last, end, depth: bounds.depth - 1 };
                self.child(checker, block, &below)?;
            }
        }
        Ok(())
    }

    fn child(&mut self, checker: &mut Checker, block: u64, bounds: &Bounds) -> Result<()> {
        // Whatever is in use already is not followed: so no tree is walked twice.
        let free = claim(checker, self.found, block, 1);
        self.walk.clusters += 1;
        if !free {
            return Ok(());
        }
        let place = content::place(self.found, bounds.start);
        let Ok(node) = checker.reader.block(block) else {
            checker.findings.add(Problem::Unreadable, place);
            return Ok(());
        };
        let head = match head(&node) {
            Ok(head) => head,
            Err(field) => {
                checker.findings.add_field(Problem::ExtentTree, place, field);
                return Ok(());
            }
        };
        self.check_head(checker, &node, &head, bounds);
        self.node(checker, &node, head.eh_entries.get().into(), bounds)
    }

    fn check_head(&mut self, checker: &mut Checker, node: &[u8], head: &RawExtentHeader, bounds: &Bounds) {
        let place = content::place(self.found, bounds.start);
        if checker.superblock.features.metadata_csum() {
            let at = ENTRY + ENTRY * usize::from(head.eh_max.get());
            let seed = seed(&checker.superblock, self.found.number, self.found.generation());
            let expected = crc32c(seed, &node[..at]);
            let tail = node.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            let found = tail.map(u32::from_le_bytes);
            if found != Some(expected) {
                let (expected, found) = (expected.into(), found.unwrap_or(0).into());
                checker.findings.mismatch(Problem::ExtentChecksum, place.clone(), "", expected, found);
            }
        }
        if head.eh_depth.get() != bounds.depth {
            let (expected, found) = (bounds.depth.into(), head.eh_depth.get().into());
            checker.findings.mismatch(Problem::ExtentTree, place.clone(), "depth", expected, found);
        }
        if head.eh_entries == 0 {
            checker.findings.add_field(Problem::ExtentTree, place, "no entries");
        } else {
            let first = if bounds.depth == 0 { extent(node, 0).logical } else { index(node, 0).0 };
            if first != bounds.start {
                checker.findings.mismatch(Problem::ExtentTree, place, "beginning", bounds.start, first);
            }
        }
    }
}

/// Whether a directory that ends at a logical block is longer than it may be.
pub(super) fn is_long(checker: &Checker, found: &Found<'_>, end: u64) -> bool {
    let log = checker.superblock.raw().s_log_block_size.get().min(21);
    let large = checker.superblock.features.has_incompat(incompat::LARGEDIR);
    !large && found.raw.i_size_high == 0 && end > 1 << (21 - log)
}

/// Whether logical and physical clusters do not lie on one another; each pair is a block and its logical number.
fn is_misaligned(ratio: u64, last: (u64, u64), next: (u64, u64)) -> bool {
    let within = next.1 % ratio;
    within != next.0 % ratio
        || (last.0 != 0
            && within != 0
            && next.1 / ratio == last.1 / ratio
            && next.0 / ratio != last.0 / ratio)
}
