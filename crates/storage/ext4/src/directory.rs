//! The names of one directory, linear or indexed, over its blocks.
//!
//! Nothing here allocates or knows where blocks are: the caller lends [`DirBlocks`].

use std::ops::ControlFlow;

use crate::dir_block::{DirFormat, NAME_MAX, TYPE_DIRECTORY};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::hash::{HashConfig, HashVersion};
use crate::htree::{self, Node};

/// The blocks of a directory, counted from its beginning.
pub(crate) trait DirBlocks {
    /// How many there are.
    fn count(&self) -> u32;

    /// Reads one; a hole is corrupt.
    fn read(&self, logical: u32) -> Result<Vec<u8>>;

    /// The first one from `from` on that is not in a hole.
    fn next(&self, from: u32) -> Result<Option<u32>> {
        Ok(Some(from).filter(|from| *from < self.count()))
    }
}

/// The blocks of a directory that is changed.
pub(crate) trait DirBlocksMut: DirBlocks {
    /// Replaces one, or fills a hole.
    fn write(&mut self, logical: u32, block: &[u8]) -> Result<()>;

    /// Adds blocks at the end, all or none, and answers the first one's number.
    fn append(&mut self, blocks: u32) -> Result<u32>;

    /// Records in the inode whether the directory is indexed.
    fn set_indexed(&mut self, indexed: bool) -> Result<()>;
}

/// How a directory keeps its names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Directory<'a> {
    pub(crate) format: DirFormat,
    pub(crate) hash: &'a HashConfig,
    /// Whether it is indexed: the inode's flag and the volume's feature together.
    pub(crate) indexed: bool,
    /// Whether the volume has the feature `dir_index`.
    pub(crate) may_index: bool,
    /// Whether the volume has the feature `large_dir`, which allows one more level.
    pub(crate) large: bool,
}

/// Takes name, inode and type of an entry; breaks where it wants no more.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], u32, u8) -> ControlFlow<()>;

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) inode: u32,
    /// As on the volume; zero where entries have no types.
    pub(crate) file_type: u8,
}

/// The way from the root of an index to a leaf: each node with the entry taken.
struct Path {
    version: HashVersion,
    frames: Vec<(Node, usize)>,
}

impl Path {
    fn leaf(&self) -> u32 {
        // A path has at least the root.
        self.frames.last().map_or(0, |(node, at)| node.child(*at))
    }
}

impl Directory<'_> {
    fn corrupt(&self, problem: &'static str) -> Error {
        Error::corrupt(Place::Inode(self.format.inode.into()), problem)
    }

    fn levels(&self) -> u8 {
        if self.large { 3 } else { 2 }
    }

    /// Finds a name.
    pub(crate) fn lookup(&self, blocks: &dyn DirBlocks, name: &[u8]) -> Result<Option<Found>> {
        let block = match self.block_with(blocks, name) {
            // Without checksums a broken index does not keep names from being found, as in kernels.
            Err(error)
                if self.indexed && self.format.seed.is_none() && error.kind() == ErrorKind::Corrupt =>
            {
                self.linear_block_with(blocks, name)?
            }
            block => block?,
        };
        let Some((_, block)) = block else { return Ok(None) };
        let entry = self.format.find(&block, name)?;
        Ok(entry.map(|entry| Found { inode: entry.inode, file_type: entry.file_type }))
    }

    /// Calls `visit` with name, inode and type of each entry but `.` and `..`, until it breaks.
    pub(crate) fn visit(&self, blocks: &dyn DirBlocks, visit: Visit<'_>) -> Result<()> {
        let mut from = 0;
        while let Some(logical) = blocks.next(from)? {
            from = logical + 1;
            let block = self.read_any(blocks, logical)?;
            for entry in self.format.entries(&block) {
                let entry = entry?;
                let own = logical == 0 && (entry.name == b"." || entry.name == b"..");
                if entry.inode == 0 || own {
                    continue;
                }
                if visit(entry.name, entry.inode, entry.file_type).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Adds a name, which must not be there yet.
    pub(crate) fn add(
        &self,
        blocks: &mut dyn DirBlocksMut,
        name: &[u8],
        inode: u32,
        file_type: u8,
    ) -> Result<()> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::plain(ErrorKind::InvalidInput, "a name has between 1 and 255 bytes"));
        }
        let new = NewEntry { name, inode, file_type };
        if self.indexed { self.add_indexed(blocks, new) } else { self.add_linear(blocks, new) }
    }

    /// Removes a name; answers the inode that it led to, or `None` where it is absent.
    pub(crate) fn remove(&self, blocks: &mut dyn DirBlocksMut, name: &[u8]) -> Result<Option<u32>> {
        let Some((logical, mut block)) = self.block_with(blocks, name)? else { return Ok(None) };
        let removed = self.format.remove(&mut block, name)?;
        blocks.write(logical, &block)?;
        Ok(removed)
    }

    /// Leads a name, `..` among them, to another inode; answers whether the name is there.
    pub(crate) fn set_entry(
        &self,
        blocks: &mut dyn DirBlocksMut,
        name: &[u8],
        inode: u32,
        file_type: u8,
    ) -> Result<bool> {
        let Some((logical, mut block)) = self.block_with(blocks, name)? else { return Ok(false) };
        let changed = self.format.set_inode(&mut block, name, inode, file_type)?;
        if self.indexed && logical == 0 {
            block = htree::seal_root(&self.format, block);
        } else {
            self.format.seal(&mut block);
        }
        blocks.write(logical, &block)?;
        Ok(changed)
    }

    /// Leads `..` to another parent.
    pub(crate) fn set_parent(&self, blocks: &mut dyn DirBlocksMut, parent: u32) -> Result<()> {
        match self.set_entry(blocks, b"..", parent, TYPE_DIRECTORY)? {
            true => Ok(()),
            false => Err(self.corrupt("a directory has no parent entry")),
        }
    }

    fn read_leaf(&self, blocks: &dyn DirBlocks, logical: u32) -> Result<Vec<u8>> {
        let block = blocks.read(logical)?;
        self.format.verify(&block)?;
        Ok(block)
    }

    /// Reads a block of whatever kind and verifies it as that kind.
    fn read_any(&self, blocks: &dyn DirBlocks, logical: u32) -> Result<Vec<u8>> {
        if !self.indexed {
            return self.read_leaf(blocks, logical);
        }
        let block = blocks.read(logical)?;
        // Without checksums there is nothing to verify, and names can be read whatever the index is like.
        if self.format.seed.is_some() {
            if logical == 0 {
                return Ok(Node::root(&self.format, block)?.block);
            }
            if htree::looks_like_node(&block) {
                return Ok(Node::inner(&self.format, logical, block)?.block);
            }
            self.format.verify(&block)?;
        }
        Ok(block)
    }

    /// Finds the block that holds a name.
    fn block_with(&self, blocks: &dyn DirBlocks, name: &[u8]) -> Result<Option<(u32, Vec<u8>)>> {
        if self.indexed && (name == b"." || name == b"..") {
            let block = self.read_any(blocks, 0)?;
            return Ok(self.format.find(&block, name)?.is_some().then_some((0, block)));
        }
        if self.indexed {
            return self.indexed_block_with(blocks, name);
        }
        self.linear_block_with(blocks, name)
    }

    fn linear_block_with(&self, blocks: &dyn DirBlocks, name: &[u8]) -> Result<Option<(u32, Vec<u8>)>> {
        // Holes are passed over, as by kernels.
        let mut from = 0;
        while let Some(logical) = blocks.next(from)? {
            from = logical + 1;
            let block = self.read_leaf(blocks, logical)?;
            if self.format.find(&block, name)?.is_some() {
                return Ok(Some((logical, block)));
            }
        }
        Ok(None)
    }

    fn indexed_block_with(&self, blocks: &dyn DirBlocks, name: &[u8]) -> Result<Option<(u32, Vec<u8>)>> {
        let (mut path, hash) = self.descend(blocks, name)?;
        // Every leaf is met at most once in a sound tree; a crafted one must not make this take longer.
        for _ in 0..blocks.count() {
            let logical = path.leaf();
            let block = self.read_leaf(blocks, logical)?;
            if self.format.find(&block, name)?.is_some() {
                return Ok(Some((logical, block)));
            }
            if !self.next_leaf(blocks, &mut path, hash)? {
                return Ok(None);
            }
        }
        Err(self.corrupt("the index has more leaves than the directory has blocks"))
    }

    fn read_node(&self, blocks: &dyn DirBlocks, logical: u32) -> Result<Node> {
        self.check_number(blocks, logical)?;
        Node::inner(&self.format, logical, blocks.read(logical)?)
    }

    fn check_number(&self, blocks: &dyn DirBlocks, logical: u32) -> Result<()> {
        if logical == 0 || logical >= blocks.count() {
            let place = Place::Inode(self.format.inode.into());
            let (expected, actual) = (blocks.count().into(), logical.into());
            return Err(Error::mismatch(place, "a block number in the index", expected, actual));
        }
        Ok(())
    }

    /// Walks from the root to the first leaf that may hold a name.
    fn descend(&self, blocks: &dyn DirBlocks, name: &[u8]) -> Result<(Path, u32)> {
        if blocks.count() == 0 {
            return Err(self.corrupt("an indexed directory has no blocks"));
        }
        let block = blocks.read(0)?;
        let info = htree::root_info(&self.format, &block, self.levels())?;
        let hash = self.hash.hash(info.version, name);
        let root = Node::root(&self.format, block)?;
        let at = root.position(hash);
        let mut path = Path { version: info.version, frames: vec![(root, at)] };
        for _ in 0..info.indirect_levels {
            let node = self.read_node(blocks, path.leaf())?;
            let at = node.position(hash);
            path.frames.push((node, at));
        }
        self.check_number(blocks, path.leaf())?;
        Ok((path, hash))
    }

    /// Goes on to the next leaf if it continues names of the same hash; answers whether it does.
    fn next_leaf(&self, blocks: &dyn DirBlocks, path: &mut Path, hash: u32) -> Result<bool> {
        let depth = path.frames.len();
        let Some(level) = path.frames.iter().rposition(|(node, at)| at + 1 < node.count()) else {
            return Ok(false);
        };
        let (node, at) = &mut path.frames[level];
        if node.key(*at + 1) & !1 != hash {
            return Ok(false);
        }
        *at += 1;
        path.frames.truncate(level + 1);
        while path.frames.len() < depth {
            let node = self.read_node(blocks, path.leaf())?;
            path.frames.push((node, 0));
        }
        self.check_number(blocks, path.leaf())?;
        Ok(true)
    }

    fn add_linear(&self, blocks: &mut dyn DirBlocksMut, new: NewEntry<'_>) -> Result<()> {
        for logical in 0..blocks.count() {
            let mut block = match blocks.next(logical)? == Some(logical) {
                true => self.read_leaf(blocks, logical)?,
                false => self.format.empty_block(blocks.read(0)?.len()),
            };
            if new.insert(&self.format, &mut block)? {
                return blocks.write(logical, &block);
            }
        }
        if blocks.count() == 1 && self.may_index {
            return self.make_index(blocks, new);
        }
        let block_size = blocks.read(0)?.len();
        let logical = blocks.append(1)?;
        let mut block = self.format.empty_block(block_size);
        new.insert(&self.format, &mut block)?;
        blocks.write(logical, &block)
    }

    /// Turns a directory of one full block into an indexed one.
    fn make_index(&self, blocks: &mut dyn DirBlocksMut, new: NewEntry<'_>) -> Result<()> {
        let version = HashVersion::from_number(self.hash.version, Place::Superblock)?;
        let first = self.read_leaf(blocks, 0)?;
        let (mut leaf, own) = htree::move_first_leaf(&self.format, &first)?;
        // Moving the names frees what `.` and `..` took, which may be enough.
        let split = match new.insert(&self.format, &mut leaf)? {
            true => None,
            false => Some(self.split_with(version, &leaf, new)?),
        };
        let start = blocks.append(if split.is_some() { 2 } else { 1 })?;
        let mut root = Node::new_root(&self.format, first.len(), own, version, start);
        if let Some(split) = split {
            root.insert_after(&self.format, 0, split.key(), start + 1);
            blocks.write(start + 1, &split.upper)?;
            leaf = split.lower;
        }
        blocks.write(start, &leaf)?;
        blocks.write(0, &root.block)?;
        blocks.set_indexed(true)
    }

    /// Splits a leaf and puts the new name into the half it belongs to.
    fn split_with(&self, version: HashVersion, leaf: &[u8], new: NewEntry<'_>) -> Result<htree::SplitLeaf> {
        let mut split = htree::split_leaf(&self.format, self.hash, version, leaf)?;
        let hash = self.hash.hash(version, new.name);
        let half = if hash >= split.hash { &mut split.upper } else { &mut split.lower };
        match new.insert(&self.format, half)? {
            true => Ok(split),
            false => Err(self.corrupt("half a directory block has no room for one name")),
        }
    }

    fn add_indexed(&self, blocks: &mut dyn DirBlocksMut, new: NewEntry<'_>) -> Result<()> {
        let (mut path, _) = self.descend(blocks, new.name)?;
        let logical = path.leaf();
        let mut leaf = self.read_leaf(blocks, logical)?;
        if new.insert(&self.format, &mut leaf)? {
            return blocks.write(logical, &leaf);
        }
        let split = self.split_with(path.version, &leaf, new)?;
        let full = path.frames.iter().rev().take_while(|(node, _)| node.is_full()).count();
        if full == path.frames.len() && full == usize::from(self.levels()) {
            return Err(Error::plain(ErrorKind::NoSpace, "the directory's index is full"));
        }
        // All blocks first: what fails after this would leave the directory half changed.
        let mut fresh = blocks.append(1 + full as u32)?;
        let mut next = || {
            fresh += 1;
            fresh - 1
        };
        let upper = next();
        self.make_room(blocks, &mut path, full, &mut next)?;
        if let Some((node, at)) = path.frames.last_mut() {
            node.insert_after(&self.format, *at, split.key(), upper);
            blocks.write(node.logical, &node.block)?;
        }
        blocks.write(upper, &split.upper)?;
        blocks.write(logical, &split.lower)
    }

    /// Splits the `full` lowest nodes of a path, the root by growing, so that the lowest has room.
    fn make_room(
        &self,
        blocks: &mut dyn DirBlocksMut,
        path: &mut Path,
        full: usize,
        next: &mut dyn FnMut() -> u32,
    ) -> Result<()> {
        let mut level = path.frames.len() - full;
        if full > 0 && level == 0 {
            let (root, at) = &mut path.frames[0];
            let node = root.grow(&self.format, next());
            let below = std::mem::replace(at, 0);
            blocks.write(0, &root.block)?;
            blocks.write(node.logical, &node.block)?;
            path.frames.insert(1, (node, below));
            // A node holds more than a root, so the one just made has room.
            level = 2;
        }
        for level in level..path.frames.len() {
            let (node, at) = &mut path.frames[level];
            let (upper, key) = node.split(&self.format, next());
            blocks.write(node.logical, &node.block)?;
            blocks.write(upper.logical, &upper.block)?;
            let (logical, moved) = (upper.logical, *at >= node.count());
            if moved {
                *at -= node.count();
                *node = upper;
            }
            let (parent, parent_at) = &mut path.frames[level - 1];
            parent.insert_after(&self.format, *parent_at, key, logical);
            *parent_at += usize::from(moved);
            blocks.write(parent.logical, &parent.block)?;
        }
        Ok(())
    }
}

/// A name to add.
#[derive(Clone, Copy)]
struct NewEntry<'a> {
    name: &'a [u8],
    inode: u32,
    file_type: u8,
}

impl NewEntry<'_> {
    fn insert(&self, format: &DirFormat, block: &mut [u8]) -> Result<bool> {
        format.insert(block, self.name, self.inode, self.file_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Blocks {
        blocks: Vec<Vec<u8>>,
        indexed: bool,
        limit: usize,
    }

    impl DirBlocks for Blocks {
        fn count(&self) -> u32 {
            self.blocks.len() as u32
        }
        fn read(&self, logical: u32) -> Result<Vec<u8>> {
            Ok(self.blocks[logical as usize].clone())
        }
        /// Blocks without bytes are holes.
        fn next(&self, from: u32) -> Result<Option<u32>> {
            Ok((from..self.count()).find(|logical| !self.blocks[*logical as usize].is_empty()))
        }
    }

    impl DirBlocksMut for Blocks {
        fn write(&mut self, logical: u32, block: &[u8]) -> Result<()> {
            self.blocks[logical as usize] = block.to_vec();
            Ok(())
        }
        fn append(&mut self, blocks: u32) -> Result<u32> {
            if self.blocks.len() + blocks as usize > self.limit {
                return Err(Error::plain(ErrorKind::NoSpace, "no blocks"));
            }
            let first = self.count();
            let filler = vec![0xee; self.blocks[0].len()];
            self.blocks.extend((0..blocks).map(|_| filler.clone()));
            Ok(first)
        }
        fn set_indexed(&mut self, indexed: bool) -> Result<()> {
            self.indexed = indexed;
            Ok(())
        }
    }

    const CONFIG: HashConfig = HashConfig { version: 1, unsigned: false, seed: [1, 2, 3, 4], folding: false };

    fn directory(blocks: &Blocks, seed: Option<u32>, may_index: bool) -> Directory<'static> {
        let format = DirFormat { inode: 12, seed, file_types: true, folding: false };
        Directory { format, hash: &CONFIG, indexed: blocks.indexed, may_index, large: false }
    }

    fn new_blocks(seed: Option<u32>, limit: usize) -> Blocks {
        let format = DirFormat { inode: 12, seed, file_types: true, folding: false };
        Blocks { blocks: vec![format.first_block(1024, 12, 2)], indexed: false, limit }
    }

    /// Adds names until `count` are there or the index is full; answers what was added.
    fn fill(blocks: &mut Blocks, seed: Option<u32>, index: bool, count: u32) -> BTreeMap<Vec<u8>, u32> {
        let mut model = BTreeMap::new();
        for number in 0..count {
            let name = format!("{number}-{}", "n".repeat(number as usize % 40)).into_bytes();
            match directory(blocks, seed, index).add(blocks, &name, number + 20, 1) {
                Ok(()) => model.insert(name, number + 20),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    break;
                }
            };
        }
        model
    }

    fn list(blocks: &Blocks, seed: Option<u32>) -> BTreeMap<Vec<u8>, u32> {
        let mut names = BTreeMap::new();
        directory(blocks, seed, true)
            .visit(blocks, &mut |name, inode, _| {
                assert!(names.insert(name.to_vec(), inode).is_none(), "listed twice");
                ControlFlow::Continue(())
            })
            .unwrap();
        names
    }

    #[test]
    fn linear_and_indexed_directories_hold_what_was_added() {
        for (seed, index) in [(Some(7), true), (None, true), (Some(7), false), (None, false)] {
            let mut blocks = new_blocks(seed, usize::MAX);
            let model = fill(&mut blocks, seed, index, 3000);
            assert_eq!(model.len(), 3000);
            assert_eq!(blocks.indexed, index);
            assert_eq!(list(&blocks, seed), model);
            for (name, inode) in &model {
                let found = directory(&blocks, seed, index).lookup(&blocks, name).unwrap().unwrap();
                assert_eq!(found.inode, *inode);
            }
            assert!(directory(&blocks, seed, index).lookup(&blocks, b"absent").unwrap().is_none());
        }
    }

    #[test]
    fn names_go_and_parents_change_in_an_index() {
        let mut blocks = new_blocks(Some(3), usize::MAX);
        let mut model = fill(&mut blocks, Some(3), true, 2000);
        for name in model.keys().step_by(2).cloned().collect::<Vec<_>>() {
            let removed = directory(&blocks, Some(3), true).remove(&mut blocks, &name).unwrap();
            assert_eq!(removed, model.remove(&name));
        }
        directory(&blocks, Some(3), true).set_parent(&mut blocks, 99).unwrap();
        assert_eq!(directory(&blocks, Some(3), true).lookup(&blocks, b"..").unwrap().unwrap().inode, 99);
        assert_eq!(list(&blocks, Some(3)), model);
        for name in model.keys() {
            assert!(directory(&blocks, Some(3), true).remove(&mut blocks, name).unwrap().is_some());
        }
        let mut visit = |_: &[u8], _, _| panic!("a name is left");
        directory(&blocks, Some(3), true).visit(&blocks, &mut visit).unwrap();
    }

    #[test]
    fn a_full_index_says_so_and_stays_whole() {
        let mut blocks = new_blocks(Some(3), usize::MAX);
        let format = DirFormat { inode: 12, seed: Some(3), file_types: true, folding: false };
        let mut added = 0;
        let error = loop {
            let name = format!("{added:0250}");
            let directory = directory(&blocks, Some(3), true);
            match directory.add(&mut blocks, name.as_bytes(), 20, 1) {
                Ok(()) => added += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(added > 10_000, "two levels of 1 KiB nodes hold more than {added} names");
        assert_eq!(list(&blocks, Some(3)).len(), added);
        let large = Directory { large: true, ..directory(&blocks, Some(3), true) };
        for more in 0..2000 {
            large.add(&mut blocks, format!("{more:0251}").as_bytes(), 20, 1).unwrap();
        }
        assert!(large.lookup(&blocks, format!("{:0251}", 1999).as_bytes()).unwrap().is_some());
        assert!(
            blocks.blocks.iter().skip(1).all(|block| {
                format.verify(block).is_ok() || Node::inner(&format, 1, block.clone()).is_ok()
            })
        );
    }

    #[test]
    fn no_space_for_a_split_changes_nothing() {
        let mut blocks = new_blocks(Some(3), 40);
        let model = fill(&mut blocks, Some(3), true, 3000);
        assert!(model.len() > 300);
        assert_eq!(list(&blocks, Some(3)), model);
    }

    #[test]
    fn an_index_that_leads_to_itself_is_corrupt() {
        let mut blocks = new_blocks(None, usize::MAX);
        let model = fill(&mut blocks, None, true, 500);
        let sealed = new_blocks(Some(5), usize::MAX);
        for (seed, mut blocks) in [(None, blocks), (Some(5), sealed)] {
            let model = if seed.is_some() { fill(&mut blocks, seed, true, 500) } else { model.clone() };
            for child in [0, 77_000] {
                let mut broken = Blocks { blocks: blocks.blocks.clone(), ..blocks };
                crate::dir_block::put_u32(&mut broken.blocks[0], 36, child);
                let format = directory(&broken, seed, true).format;
                broken.blocks[0] = htree::seal_root(&format, broken.blocks[0].clone());
                let lookups = model.keys().map(|name| directory(&broken, seed, true).lookup(&broken, name));
                let errors: Vec<_> = lookups.filter_map(Result::err).map(|error| error.kind()).collect();
                // With checksums somebody meant it so; without, names are there to be read all the same.
                assert_eq!(errors.is_empty(), seed.is_none());
                assert!(errors.into_iter().all(|kind| kind == ErrorKind::Corrupt));
                assert_eq!(list(&broken, seed), model);
                let before = broken.blocks.clone();
                let changes =
                    model.keys().map(|name| directory(&broken, seed, true).remove(&mut broken, name));
                let refused =
                    changes.filter_map(Result::err).next().expect("the first leaf holds some names");
                assert_eq!(refused.kind(), ErrorKind::Corrupt);
                assert_eq!(broken.blocks[0], before[0], "an index that is broken is left alone");
            }
        }
    }

    #[test]
    fn every_level_of_an_index_splits_and_fills() {
        // Blocks of 128 bytes hold 11 entries in a root, 14 in a node and four names in a leaf.
        for seed in [Some(3), None] {
            let format = DirFormat { inode: 12, seed, file_types: true, folding: false };
            let mut blocks =
                Blocks { blocks: vec![format.first_block(128, 12, 2)], indexed: false, limit: usize::MAX };
            let mut model = BTreeMap::new();
            for levels in 1..=3 {
                let large = levels == 3;
                let error = loop {
                    let name = format!("{:020}", model.len()).into_bytes();
                    let number = model.len() as u32 + 20;
                    let names = Directory { large, ..directory(&blocks, seed, true) };
                    match names.add(&mut blocks, &name, number, 1) {
                        Ok(()) => model.insert(name, number),
                        Err(error) => break error,
                    };
                };
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                let depth = blocks.blocks[0][30];
                assert_eq!(depth, if large { 2 } else { 1 }, "levels of nodes between root and leaves");
                let names = Directory { large, ..directory(&blocks, seed, true) };
                for (name, number) in &model {
                    assert_eq!(names.lookup(&blocks, name).unwrap().unwrap().inode, *number);
                }
                assert_eq!(list(&blocks, seed), model);
            }
            assert!(model.len() > 11 * 14 * 14, "{}", model.len());
            for (name, number) in &model {
                let names = Directory { large: true, ..directory(&blocks, seed, true) };
                assert_eq!(names.remove(&mut blocks, name).unwrap(), Some(*number));
            }
            assert!(list(&blocks, seed).is_empty());
        }
    }

    #[test]
    fn holes_of_a_linear_directory_are_passed_over_and_filled() {
        let mut blocks = new_blocks(Some(3), usize::MAX);
        fill(&mut blocks, Some(3), false, 300);
        blocks.blocks[2].clear();
        let left = list(&blocks, Some(3));
        assert!(left.len() > 200);
        let names = directory(&blocks, Some(3), false);
        assert!(left.keys().all(|name| names.lookup(&blocks, name).unwrap().is_some()));
        for number in 0..20 {
            names.add(&mut blocks, format!("new-{number}-{}", "x".repeat(100)).as_bytes(), 77, 1).unwrap();
        }
        assert!(!blocks.blocks[2].is_empty(), "the hole was filled");
        assert_eq!(list(&blocks, Some(3)).len(), left.len() + 20);
    }
}
