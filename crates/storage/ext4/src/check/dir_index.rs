//! The index of a directory: whether its nodes lead to every block once, in the order of the hashes there.

use super::facts::Directory;
use super::{Checker, Place, Problem};
use crate::checksum::crc32c;
use crate::dir_block::{DirFormat, decode_rec_len, get_u16, get_u32};
use crate::features::incompat;
use crate::hash::{HashConfig, HashVersion};
use crate::inode::flags;
use crate::superblock::Superblock;

/// Where a root's information begins, and a node's entries.
const INFO: usize = 24;
const NODE: usize = 8;

/// The size of an entry.
const ENTRY: usize = 8;

/// The bits of an entry that are the number of a block.
const BLOCK_MASK: u32 = 0x0fff_ffff;

/// The hash that stands in the entries themselves.
const SIPHASH: u8 = 6;

/// The most levels beneath a root, and with the feature `large_dir`.
const LEVELS: u8 = 2;
const LARGE_LEVELS: u8 = 3;

/// What a block of an indexed directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Unseen,
    Root,
    Node,
    Leaf,
}

/// One block of the directory.
#[derive(Debug, Clone, Default)]
struct Slot {
    kind: Kind,
    /// The lowest and highest hash that is in it, or under it.
    min: u32,
    max: u32,
    /// The lowest and highest that may be there.
    from: u32,
    to: u32,
    /// How many entries of nodes lead to it, at most two.
    references: u8,
    first: bool,
    last: bool,
    parent: u32,
    previous: u32,
}

/// An index as it is met, block by block.
pub(super) struct Index {
    inode: u32,
    flags: u32,
    slots: Vec<Slot>,
    config: HashConfig,
    version: Option<HashVersion>,
    levels: u8,
    depth: u8,
    /// Nothing more can be said of it.
    broken: bool,
    /// The lowest and highest hash of the leaf that is walked.
    leaf: (u32, u32),
}

impl Index {
    pub(super) fn new(blocks: u32, directory: &Directory, superblock: &Superblock) -> Self {
        let large = superblock.features.has_incompat(incompat::LARGEDIR);
        let folding = super::directories::folds(superblock, directory.flags);
        Self {
            inode: directory.inode,
            flags: directory.flags,
            slots: vec![Slot::default(); blocks as usize],
            config: HashConfig { folding, ..superblock.hash_config() },
            version: None,
            levels: if large { LARGE_LEVELS } else { LEVELS },
            depth: 0,
            broken: false,
            leaf: (u32::MAX, 0),
        }
    }

    fn report(
        &mut self,
        checker: &mut Checker,
        problem: Problem,
        field: &'static str,
        found: u64,
        block: u32,
    ) {
        let place = Place::Content { inode: self.inode, block: block.into() };
        checker.findings.field(problem, place, field, found);
        checker.repairs.rebuild(self.inode);
        self.broken = true;
    }

    /// Says what a block is, and looks at the root.
    pub(super) fn kind(&mut self, checker: &mut Checker, logical: u32, block: &[u8], sealed: bool) -> Kind {
        let Some(slot) = self.slots.get_mut(logical as usize) else { return Kind::Leaf };
        self.leaf = (u32::MAX, 0);
        let limit = (block.len() - NODE - if sealed { ENTRY } else { 0 }) / ENTRY;
        let covering = decode_rec_len(get_u16(block, 4), block.len()) == block.len();
        let node = get_u32(block, 0) == 0 && covering && block[6] == 0;
        slot.kind = match logical {
            0 => Kind::Root,
            _ if node && usize::from(get_u16(block, NODE)) == limit => Kind::Node,
            _ => Kind::Leaf,
        };
        (slot.min, slot.max) = (u32::MAX, 0);
        let kind = slot.kind;
        if kind == Kind::Root {
            (slot.first, slot.last) = (true, true);
            self.root(checker, block);
        }
        kind
    }

    fn root(&mut self, checker: &mut Checker, block: &[u8]) {
        let (reserved, version) = (get_u32(block, INFO), block[INFO + 4]);
        let (len, levels, unused) = (block[INFO + 5], block[INFO + 6], block[INFO + 7]);
        let both = flags::ENCRYPT | flags::CASEFOLD;
        let in_entries = self.flags & both == both;
        let wrong = if reserved != 0 {
            Some(("reserved_zero", reserved))
        } else if len < 8 || !len.is_multiple_of(4) {
            Some(("info_length", len.into()))
        } else if unused & 1 != 0 {
            Some(("unused_flags", unused.into()))
        } else if !matches!(version, 0..=2 | SIPHASH) || in_entries != (version == SIPHASH) {
            Some(("hash_version", version.into()))
        } else if levels >= self.levels {
            Some(("indirect_levels", levels.into()))
        } else {
            None
        };
        if let Some((field, found)) = wrong {
            self.report(checker, Problem::IndexRoot, field, found.into(), 0);
        }
        self.depth = levels.saturating_add(1);
        // Names that fold in unknown ways, or as only who has the key can tell, have hashes that cannot be told.
        let folded = self.flags & flags::CASEFOLD != 0 && !self.config.folding;
        let place = crate::error::Place::Inode(self.inode.into());
        self.version =
            HashVersion::from_number(version, place).ok().filter(|_| !folded && version != SIPHASH);
    }

    /// Takes note of a name of the leaf that is walked; `hash` is the one that stands with it.
    pub(super) fn name(&mut self, name: &[u8], hash: Option<u32>) {
        let hash = hash.or_else(|| Some(self.config.hash(self.version?, name)));
        if let Some(hash) = hash {
            self.leaf = (self.leaf.0.min(hash), self.leaf.1.max(hash));
        }
    }

    /// Ends the walk of a leaf.
    pub(super) fn leaf(&mut self, logical: u32) {
        if let Some(slot) = self.slots.get_mut(logical as usize) {
            (slot.min, slot.max) = self.leaf;
        }
    }

    /// Looks at the entries of a root or node.
    pub(super) fn node(&mut self, checker: &mut Checker, logical: u32, block: &[u8], format: &DirFormat) {
        if self.broken {
            return;
        }
        let entries = if logical == 0 { INFO + usize::from(block[INFO + 5]) } else { NODE };
        let tail = if format.seed.is_some() { ENTRY } else { 0 };
        let room = (block.len() - tail).saturating_sub(entries) / ENTRY;
        let (limit, count) = (usize::from(get_u16(block, entries)), usize::from(get_u16(block, entries + 2)));
        if limit != room {
            return self.report(checker, Problem::IndexNode, "limit", limit as u64, logical);
        }
        if count > room || count == 0 {
            return self.report(checker, Problem::IndexNode, "count", count as u64, logical);
        }
        if let Some(seed) = format.seed {
            let used = crc32c(seed, &block[..entries + count * ENTRY]);
            let at = entries + limit * ENTRY;
            let expected = crc32c(crc32c(used, &block[at..at + 4]), &[0; 4]);
            if expected != get_u32(block, at + 4) {
                let found = get_u32(block, at + 4).into();
                return self.report(checker, Problem::IndexChecksum, "", found, logical);
            }
        }
        self.entries(checker, logical, &block[entries..entries + count * ENTRY]);
    }

    fn entries(&mut self, checker: &mut Checker, logical: u32, entries: &[u8]) {
        let pair = |index: usize| {
            let at = index * ENTRY;
            let key = if index == 0 { 0 } else { get_u32(entries, at) & !1 };
            (key, get_u32(entries, at + 4) & BLOCK_MASK)
        };
        let count = entries.len() / ENTRY;
        let (mut before, mut highest) = (0, 0);
        for index in 0..count {
            let (key, child) = pair(index);
            if child as usize >= self.slots.len() {
                return self.report(checker, Problem::IndexNode, "block", child.into(), logical);
            }
            if key < before {
                return self.report(checker, Problem::IndexNode, "hash", key.into(), logical);
            }
            before = key;
            highest = highest.max(key);
            let last = index + 1 == count;
            let to = if last { 0xffff_fffe } else { pair(index + 1).0 };
            let previous = if index == 0 { 0 } else { pair(index - 1).1 };
            let slot = &mut self.slots[child as usize];
            if slot.references == 0 {
                slot.parent = logical;
            }
            slot.references = (slot.references + 1).min(2);
            (slot.previous, slot.from, slot.to) = (previous, key, to);
            slot.first |= index == 0;
            slot.last |= last;
        }
        let slot = &mut self.slots[logical as usize];
        (slot.min, slot.max) = (0, highest);
    }

    /// Hands the bounds of blocks of a kind on to their parents.
    fn hand_on(&mut self, kind: Kind) {
        for at in 0..self.slots.len() {
            let Slot { kind: own, parent, first, last, min, max, .. } = self.slots[at];
            let parent = parent as usize;
            if own != kind || parent >= self.slots.len() {
                continue;
            }
            if first {
                self.slots[parent].min = min;
                let previous = self.slots[parent].previous as usize;
                if previous != 0 && previous < self.slots.len() {
                    self.slots[previous].to = min;
                }
            }
            if last {
                self.slots[parent].max = max;
            }
        }
    }

    /// How many levels lie above a block; more than any index has where it is in a loop.
    fn depth(&self, mut at: usize) -> u8 {
        let mut depth = 0;
        while depth <= LARGE_LEVELS && self.slots.get(at).is_some_and(|slot| slot.kind != Kind::Root) {
            at = self.slots[at].parent as usize;
            depth += 1;
        }
        depth
    }

    /// Holds all blocks against one another.
    pub(super) fn finish(mut self, checker: &mut Checker) {
        if self.broken || self.slots.is_empty() {
            return;
        }
        self.slots[0].references = (self.slots[0].references + 1).min(2);
        self.hand_on(Kind::Leaf);
        self.hand_on(Kind::Node);
        for at in 0..self.slots.len() {
            let slot = self.slots[at].clone();
            let mut wrong = |field, found: u64| {
                self.report(checker, Problem::IndexOrder, field, found, at as u32);
            };
            if !slot.first && slot.min < slot.from {
                wrong("lowest hash", slot.min.into());
            }
            if at > 0 && slot.max > slot.to {
                wrong("highest hash", slot.max.into());
            }
            if slot.references != 1 {
                wrong("references", slot.references.into());
            }
            let depth = self.depth(at);
            if slot.kind == Kind::Leaf && depth != self.depth {
                self.report(checker, Problem::IndexOrder, "depth", depth.into(), at as u32);
            }
        }
    }
}
