//! The index of a large directory: a tree ordered by the hash of the names.
//!
//! ```text
//! root: "." · ".." · info(hash, levels) · [limit|count, block₀] [hash₁, block₁] … · tail
//! node: empty entry over all           · [limit|count, block₀] [hash₁, block₁] … · tail
//! leaf: an ordinary block of names whose hashes lie in hashₙ .. hashₙ₊₁
//! ```
//!
//! Root and nodes look like blocks without further names to whoever does not know of the tree. The lowest bit
//! of a key says that the leaf before it ends with names of the same hash.

use crate::checksum::crc32c;
use crate::dir_block::{
    DirFormat, Entry, decode_rec_len, encode_rec_len, entry_size, get_u16, get_u32, put_u16, put_u32,
};
use crate::error::{Error, Place, Result};
use crate::hash::{HashConfig, HashVersion};

/// Where the entries of a root begin: behind `.`, `..` and the eight bytes of information.
const ROOT_ENTRIES: usize = 32;

/// Where the entries of a node begin: behind the empty directory entry.
const NODE_ENTRIES: usize = 8;

/// Where a root's information begins.
const INFO: usize = 24;

/// The size of one entry, and of the tail that carries the checksum.
const ENTRY: usize = 8;

/// The bits of an entry that are the number of a block; the others are reserved.
const BLOCK_MASK: u32 = 0x0fff_ffff;

/// What a root says of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootInfo {
    pub(crate) version: HashVersion,
    /// How many levels of nodes lie between root and leaves.
    pub(crate) indirect_levels: u8,
}

/// One block of the tree, validated, with its position among the directory's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// The block's number, counted from the directory's beginning.
    pub(crate) logical: u32,
    pub(crate) block: Vec<u8>,
    entries: usize,
}

/// How many entries a root or node has room for.
fn limit(format: &DirFormat, block_size: usize, entries: usize) -> usize {
    let tail = if format.seed.is_some() { ENTRY } else { 0 };
    (block_size - entries - tail) / ENTRY
}

fn corrupt(format: &DirFormat, problem: &'static str) -> Error {
    Error::corrupt(Place::Inode(format.inode.into()), problem)
}

/// Reads what the first block of an indexed directory says of the tree; `levels` is how many are allowed.
pub(crate) fn root_info(format: &DirFormat, block: &[u8], levels: u8) -> Result<RootInfo> {
    let place = Place::Inode(format.inode.into());
    let dot_len = get_u16(block, 4);
    if dot_len != 12 || usize::from(get_u16(block, 16)) != block.len() - 12 && block.len() < 65536 {
        return Err(corrupt(format, "the first block of an indexed directory is no index root"));
    }
    let (reserved, info_len) = (get_u32(block, INFO), block[INFO + 5]);
    let (levels_here, flags) = (block[INFO + 6], block[INFO + 7]);
    if info_len != 8 {
        return Err(Error::mismatch(place, "the length of the index information", 8, info_len.into()));
    }
    if reserved != 0 || flags & 1 != 0 {
        return Err(corrupt(format, "the index root sets reserved bits"));
    }
    if levels_here >= levels {
        let expected = levels.saturating_sub(1).into();
        return Err(Error::mismatch(place, "the depth of the index", expected, levels_here.into()));
    }
    Ok(RootInfo { version: HashVersion::from_number(block[INFO + 4], place)?, indirect_levels: levels_here })
}

/// Whether a block other than the first looks like a node and not like a leaf.
pub(crate) fn looks_like_node(block: &[u8]) -> bool {
    let rec_len = decode_rec_len(get_u16(block, 4), block.len());
    get_u32(block, 0) == 0 && block[6] == 0 && rec_len == block.len()
}

impl Node {
    /// Validates the root; see [`root_info`] for what is checked before.
    pub(crate) fn root(format: &DirFormat, block: Vec<u8>) -> Result<Self> {
        Self::parse(format, 0, block, ROOT_ENTRIES)
    }

    /// Validates a node.
    pub(crate) fn inner(format: &DirFormat, logical: u32, block: Vec<u8>) -> Result<Self> {
        if !looks_like_node(&block) {
            return Err(corrupt(format, "an index node is no index node"));
        }
        Self::parse(format, logical, block, NODE_ENTRIES)
    }

    fn parse(format: &DirFormat, logical: u32, block: Vec<u8>, entries: usize) -> Result<Self> {
        let node = Self { logical, block, entries };
        let expected = limit(format, node.block.len(), entries);
        let place = Place::Inode(format.inode.into());
        if node.limit() != expected {
            let (expected, actual) = (expected as u64, node.limit() as u64);
            return Err(Error::mismatch(place, "the limit of an index node", expected, actual));
        }
        if node.count() == 0 || node.count() > expected {
            let (expected, actual) = (expected as u64, node.count() as u64);
            return Err(Error::mismatch(place, "the entry count of an index node", expected, actual));
        }
        node.verify(format)?;
        Ok(node)
    }

    /// Makes a node that holds no entries yet.
    fn new_node(format: &DirFormat, logical: u32, block_size: usize) -> Self {
        let mut block = vec![0; block_size];
        put_u16(&mut block, 4, encode_rec_len(block_size));
        put_u16(&mut block, NODE_ENTRIES, limit(format, block_size, NODE_ENTRIES) as u16);
        Self { logical, block, entries: NODE_ENTRIES }
    }

    /// Makes the root of a new tree with a single leaf.
    pub(crate) fn new_root(
        format: &DirFormat,
        block_size: usize,
        (this, parent): (u32, u32),
        version: HashVersion,
        leaf: u32,
    ) -> Self {
        // The directory's own two names look as in a block without checksum: the second reaches to the end.
        let plain = DirFormat { seed: None, ..*format };
        let mut block = plain.first_block(block_size, this, parent);
        block[INFO + 4] = version.number();
        block[INFO + 5] = 8;
        put_u16(&mut block, ROOT_ENTRIES, limit(format, block_size, ROOT_ENTRIES) as u16);
        let mut root = Self { logical: 0, block, entries: ROOT_ENTRIES };
        root.set_entries(format, &[(0, leaf)]);
        root
    }

    /// How many entries there is room for.
    pub(crate) fn limit(&self) -> usize {
        get_u16(&self.block, self.entries).into()
    }

    /// How many entries there are, the first without a key among them.
    pub(crate) fn count(&self) -> usize {
        get_u16(&self.block, self.entries + 2).into()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count() >= self.limit()
    }

    /// The lowest hash beneath an entry; the first entry has none and answers zero.
    pub(crate) fn key(&self, index: usize) -> u32 {
        if index == 0 { 0 } else { get_u32(&self.block, self.entries + index * ENTRY) }
    }

    /// The block that an entry leads to.
    pub(crate) fn child(&self, index: usize) -> u32 {
        get_u32(&self.block, self.entries + index * ENTRY + 4) & BLOCK_MASK
    }

    fn pairs(&self) -> Vec<(u32, u32)> {
        (0..self.count()).map(|index| (self.key(index), self.child(index))).collect()
    }

    /// The last entry whose key is not above `hash`.
    pub(crate) fn position(&self, hash: u32) -> usize {
        let (mut low, mut high) = (1, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle) > hash { high = middle } else { low = middle + 1 }
        }
        low - 1
    }

    /// Replaces all entries; the first one's key is not kept.
    fn set_entries(&mut self, format: &DirFormat, pairs: &[(u32, u32)]) {
        put_u16(&mut self.block, self.entries + 2, pairs.len() as u16);
        for (index, &(key, child)) in pairs.iter().enumerate() {
            let at = self.entries + index * ENTRY;
            if index > 0 {
                put_u32(&mut self.block, at, key);
            }
            put_u32(&mut self.block, at + 4, child);
        }
        self.seal(format);
    }

    /// Adds an entry behind the one at `index`; there must be room.
    pub(crate) fn insert_after(&mut self, format: &DirFormat, index: usize, key: u32, child: u32) {
        let mut pairs = self.pairs();
        pairs.insert(index + 1, (key, child));
        self.set_entries(format, &pairs);
    }

    /// Moves the upper half of the entries into a new node; answers it and the key it goes under.
    pub(crate) fn split(&mut self, format: &DirFormat, logical: u32) -> (Self, u32) {
        let pairs = self.pairs();
        let (lower, upper) = pairs.split_at(pairs.len() / 2);
        let mut node = Self::new_node(format, logical, self.block.len());
        node.set_entries(format, upper);
        self.set_entries(format, lower);
        (node, upper[0].0)
    }

    /// Moves all entries of the root into a new node beneath it, which makes the tree one level deeper.
    pub(crate) fn grow(&mut self, format: &DirFormat, logical: u32) -> Self {
        let mut node = Self::new_node(format, logical, self.block.len());
        node.set_entries(format, &self.pairs());
        self.block[INFO + 6] += 1;
        self.set_entries(format, &[(0, logical)]);
        node
    }

    fn checksum(&self, seed: u32) -> u32 {
        let used = crc32c(seed, &self.block[..self.entries + self.count() * ENTRY]);
        let tail = self.tail();
        // The reserved half of the tail counts as it is, the checksum's own half as zeros.
        crc32c(crc32c(used, &self.block[tail..tail + 4]), &[0; 4])
    }

    fn tail(&self) -> usize {
        self.entries + self.limit() * ENTRY
    }

    fn verify(&self, format: &DirFormat) -> Result<()> {
        let Some(seed) = format.seed else { return Ok(()) };
        let (expected, actual) = (self.checksum(seed), get_u32(&self.block, self.tail() + 4));
        if expected != actual {
            let place = Place::Inode(format.inode.into());
            let (expected, actual) = (expected.into(), actual.into());
            return Err(Error::mismatch(place, "the checksum of an index node", expected, actual));
        }
        Ok(())
    }

    /// Makes the node one of a directory with or without checksums; answers whether its entries leave room for that.
    pub(crate) fn convert(&mut self, format: &DirFormat) -> bool {
        let limit = limit(format, self.block.len(), self.entries);
        if self.count() > limit {
            return false;
        }
        put_u16(&mut self.block, self.entries, limit as u16);
        let tail = self.tail();
        if format.seed.is_some() {
            self.block[tail..tail + ENTRY].fill(0);
        }
        self.seal(format);
        true
    }

    /// Sets the checksum.
    pub(crate) fn seal(&mut self, format: &DirFormat) {
        let Some(seed) = format.seed else { return };
        let (checksum, at) = (self.checksum(seed), self.tail() + 4);
        put_u32(&mut self.block, at, checksum);
    }
}

/// A leaf split in two by hash.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SplitLeaf {
    pub(crate) lower: Vec<u8>,
    pub(crate) upper: Vec<u8>,
    /// The lowest hash of the upper half, and whether the lower half ends with the same.
    pub(crate) hash: u32,
    pub(crate) continued: bool,
}

impl SplitLeaf {
    /// The key that the upper half goes under.
    pub(crate) fn key(&self) -> u32 {
        self.hash | u32::from(self.continued)
    }
}

/// Splits a leaf so that each half has room for one more name of any length.
pub(crate) fn split_leaf(
    format: &DirFormat,
    config: &HashConfig,
    version: HashVersion,
    block: &[u8],
) -> Result<SplitLeaf> {
    let mut names = hashed_names(format, config, version, block)?;
    names.sort_by_key(|&(hash, _)| hash);
    if names.len() < 2 {
        return Err(corrupt(format, "a full directory block has fewer than two names"));
    }
    let split = split_point(&names, block.len());
    let (hash, before) = (names[split].0, names[split - 1].0);
    let pack = |half: &[(u32, Entry<'_>)]| format.packed_block(block.len(), half.iter().map(|half| half.1));
    let (lower, upper) = names.split_at(split);
    Ok(SplitLeaf { lower: pack(lower), upper: pack(upper), hash, continued: hash == before })
}

/// Where the upper half begins: as many of the highest hashes as fill half a block.
fn split_point(names: &[(u32, Entry<'_>)], block_size: usize) -> usize {
    let mut moved = 0;
    for (index, (_, entry)) in names.iter().enumerate().rev() {
        let size = entry_size(entry.name.len());
        if moved + size / 2 > block_size / 2 {
            return if index > 0 { index + 1 } else { names.len() / 2 };
        }
        moved += size;
    }
    names.len() / 2
}

fn hashed_names<'a>(
    format: &DirFormat,
    config: &HashConfig,
    version: HashVersion,
    block: &'a [u8],
) -> Result<Vec<(u32, Entry<'a>)>> {
    let mut names = Vec::new();
    for entry in format.entries(block) {
        let entry = entry?;
        if entry.inode != 0 {
            names.push((config.hash(version, entry.name), entry));
        }
    }
    Ok(names)
}

/// Takes the names of a directory's only block into a leaf, without `.` and `..`, and answers the inodes that
/// those two led to.
pub(crate) fn move_first_leaf(format: &DirFormat, block: &[u8]) -> Result<(Vec<u8>, (u32, u32))> {
    let mut names = Vec::new();
    for entry in format.entries(block) {
        let entry = entry?;
        if entry.inode != 0 {
            names.push(entry);
        }
    }
    match names.as_slice() {
        [this, parent, rest @ ..] if this.name == b"." && parent.name == b".." => {
            let leaf = format.packed_block(block.len(), rest.iter().copied());
            Ok((leaf, (this.inode, parent.inode)))
        }
        _ => Err(corrupt(format, "a directory does not begin with . and ..")),
    }
}

/// Sets the checksum of a root whose first two names were changed.
pub(crate) fn seal_root(format: &DirFormat, block: Vec<u8>) -> Vec<u8> {
    let mut root = Node { logical: 0, block, entries: ROOT_ENTRIES };
    root.seal(format);
    root.block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const FORMAT: DirFormat = DirFormat { inode: 12, seed: Some(99), file_types: true, folding: false };
    const CONFIG: HashConfig = HashConfig { version: 1, unsigned: false, seed: [1, 2, 3, 4], folding: false };

    fn root() -> Node {
        Node::new_root(&FORMAT, 1024, (12, 2), HashVersion::HalfMd4, 1)
    }

    #[test]
    fn a_new_root_is_valid_and_looks_like_a_directory() {
        let root = Node::root(&FORMAT, root().block).unwrap();
        let info = root_info(&FORMAT, &root.block, 2).unwrap();
        assert_eq!(info, RootInfo { version: HashVersion::HalfMd4, indirect_levels: 0 });
        assert_eq!((root.count(), root.child(0), root.limit()), (1, 1, 123));
        let names: Vec<_> = FORMAT.entries(&root.block).map(|entry| entry.unwrap().name.to_vec()).collect();
        assert_eq!(names, [b".".to_vec(), b"..".to_vec()]);
    }

    #[test]
    fn a_search_takes_the_last_key_not_above() {
        let mut root = root();
        for (index, key) in [10, 20, 31].into_iter().enumerate() {
            root.insert_after(&FORMAT, index, key, key);
        }
        let found: Vec<_> = [0, 9, 10, 19, 20, 30, 31, u32::MAX].map(|hash| root.position(hash)).into();
        assert_eq!(found, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_full_root_grows_and_its_node_splits() {
        let mut root = root();
        while !root.is_full() {
            let last = root.count() - 1;
            root.insert_after(&FORMAT, last, root.count() as u32 * 2, root.count() as u32 + 1);
        }
        let node = root.grow(&FORMAT, 200);
        assert_eq!((root.count(), root.child(0), node.count()), (1, 200, 123));
        assert_eq!(root_info(&FORMAT, &root.block, 2).unwrap().indirect_levels, 1);
        let mut node = Node::inner(&FORMAT, 200, node.block).unwrap();
        assert!(!node.is_full(), "a node has room for more than a root");
        let (upper, key) = node.split(&FORMAT, 201);
        assert_eq!((node.count(), upper.count(), key), (61, 62, 122));
        Node::inner(&FORMAT, 201, upper.block).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_allowed_is_corrupt() {
        let mut root = root();
        root.grow(&FORMAT, 2);
        root.grow(&FORMAT, 3);
        assert_eq!(root_info(&FORMAT, &root.block, 2).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(root_info(&FORMAT, &root.block, 3).is_ok());
    }

    #[test]
    fn a_split_leaves_room_for_the_longest_name_in_both_halves() {
        for len in [1, 4, 30, 200, 255] {
            let mut leaf = FORMAT.empty_block(1024);
            let mut number = 0;
            while FORMAT.insert(&mut leaf, format!("{number:0len$}").as_bytes(), 12, 1).unwrap() {
                number += 1;
                if len == 1 && number == 10 {
                    break;
                }
            }
            let split = split_leaf(&FORMAT, &CONFIG, HashVersion::Tea, &leaf).unwrap();
            let (mut lower, mut upper) = (split.lower, split.upper);
            for half in [&lower, &upper] {
                FORMAT.verify(half).unwrap();
            }
            let hashes = |block: &[u8]| -> Vec<u32> {
                let names = hashed_names(&FORMAT, &CONFIG, HashVersion::Tea, block).unwrap();
                names.into_iter().map(|(hash, _)| hash).collect()
            };
            assert!(hashes(&lower).iter().all(|&hash| hash < split.hash));
            assert!(hashes(&upper).iter().all(|&hash| hash >= split.hash));
            assert_eq!(hashes(&lower).len() + hashes(&upper).len(), number);
            assert!(FORMAT.insert(&mut lower, &[b'x'; 255], 12, 1).unwrap());
            assert!(FORMAT.insert(&mut upper, &[b'x'; 255], 12, 1).unwrap());
        }
    }

    #[test]
    fn a_damaged_node_is_refused() {
        let mut block = root().block;
        block[40] ^= 1;
        assert!(Node::root(&FORMAT, block.clone()).is_ok(), "beyond the count nothing is covered");
        block[36] ^= 1;
        assert_eq!(Node::root(&FORMAT, block.clone()).unwrap_err().kind(), ErrorKind::Corrupt);
        put_u16(&mut block, ROOT_ENTRIES + 2, 500);
        assert_eq!(Node::root(&FORMAT, block).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
