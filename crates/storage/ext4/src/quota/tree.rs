//! The file that says how much each owner uses, in the format that Linux calls v2, revision 1.
//!
//! ```text
//! block 0  magic · version · grace times · flags · blocks · first free block · first leaf with room
//! block 1  256 references, by the highest byte of an id ─▶ 256 by the next ─▶ 256 ─▶ 256 ─▶ leaf
//! leaf     next and previous leaf with room · count │ 14 entries: id, limits, inodes and bytes in use, times
//! ```
//!
//! Blocks have 1,024 bytes whatever the volume's size of blocks is. An entry that is all zeros is free; that of id 0
//! with nothing in it has a time of 1 instead. What is freed is chained through the first field of a leaf.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, Place, Result};

/// The size of a block of a quota file.
pub(crate) const BLOCK: usize = 1024;

/// The block of the tree's root.
const ROOT: u32 = 1;

/// How many blocks of references lead to a leaf.
const DEPTH: usize = 4;

/// How many entries a leaf holds.
const PER_LEAF: usize = (BLOCK - size_of::<RawLeaf>()) / size_of::<RawEntry>();

/// The longest file that is followed: the kernel's tools stop at 2 GiB.
const MAX_BLOCKS: u32 = 1 << 21;

/// `struct v2_disk_dqheader` and, behind it, `struct v2_disk_dqinfo`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    dqh_magic: U32,
    dqh_version: U32,
    dqi_bgrace: U32,
    dqi_igrace: U32,
    dqi_flags: U32,
    dqi_blocks: U32,
    dqi_free_blk: U32,
    dqi_free_entry: U32,
}

/// `struct qt_disk_dqdbheader`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLeaf {
    dqdh_next_free: U32,
    dqdh_prev_free: U32,
    dqdh_entries: U16,
    dqdh_pad1: U16,
    dqdh_pad2: U32,
}

/// `struct v2r1_disk_dqblk`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    dqb_id: U32,
    dqb_pad: U32,
    dqb_ihardlimit: U64,
    dqb_isoftlimit: U64,
    dqb_curinodes: U64,
    dqb_bhardlimit: U64,
    dqb_bsoftlimit: U64,
    dqb_curspace: U64,
    dqb_btime: U64,
    dqb_itime: U64,
}

const _: () = {
    assert!(size_of::<RawHeader>() == 32);
    assert!(size_of::<RawLeaf>() == 16);
    assert!(size_of::<RawEntry>() == 72);
    assert!(std::mem::offset_of!(RawEntry, dqb_curspace) == 48);
    assert!(PER_LEAF == 14);
};

/// Whose usage a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Group,
    Project,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::User, Self::Group, Self::Project];

    fn magic(self) -> u32 {
        match self {
            Self::User => 0xd9c0_1f11,
            Self::Group => 0xd9c0_1927,
            Self::Project => 0xd9c0_3f14,
        }
    }

    fn unknown_format(self) -> &'static str {
        match self {
            Self::User => "the users' quota file is not of format v2, revision 1",
            Self::Group => "the groups' quota file is not of format v2, revision 1",
            Self::Project => "the projects' quota file is not of format v2, revision 1",
        }
    }
}

/// The blocks of a quota file.
pub(crate) trait QuotaBlocks {
    /// How many blocks the file has, the last of them possibly in part.
    fn count(&self) -> u64;

    /// Reads a block; what lies beyond the end is zeros.
    fn read(&self, block: u32) -> Result<Vec<u8>>;

    /// Writes a block, behind the last one too.
    fn write(&mut self, block: u32, content: &[u8]) -> Result<()>;
}

/// What someone uses more or, where negative, less than the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Change {
    pub(crate) inodes: i64,
    pub(crate) bytes: i64,
}

/// Where an entry stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    block: u32,
    index: u32,
}

impl Slot {
    fn range(self) -> std::ops::Range<usize> {
        let start = size_of::<RawLeaf>() + self.index as usize * size_of::<RawEntry>();
        start..start + size_of::<RawEntry>()
    }
}

/// A quota file whose head has been validated.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    place: Place,
    head: RawHeader,
}

/// A structure at the beginning of bytes of which there are enough; they come from whole blocks.
fn parse<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    let mut value = T::new_zeroed();
    let len = size_of::<T>().min(bytes.len());
    value.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
    value
}

/// A block of the file and its number.
type Numbered = (u32, Vec<u8>);

fn reference(block: &[u8], id: u32, level: usize) -> (usize, u32) {
    let at = (id >> (8 * (DEPTH - 1 - level)) & 0xff) as usize * 4;
    (at, u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
}

impl Tree {
    /// Reads the head of the file that the inode `number` has.
    pub(crate) fn read(blocks: &dyn QuotaBlocks, kind: Kind, number: u32) -> Result<Self> {
        let place = Place::Inode(number.into());
        let head: RawHeader = parse(&blocks.read(0)?);
        if head.dqh_magic != kind.magic() || head.dqh_version != 1 {
            return Err(Error::unsupported(kind.unknown_format()));
        }
        let (count, known) = (blocks.count(), u64::from(head.dqi_blocks.get()));
        if known > count || head.dqi_blocks.get() <= ROOT || head.dqi_blocks.get() > MAX_BLOCKS {
            return Err(Error::mismatch(place, "the quota file's length in blocks", count, known));
        }
        let tree = Self { place, head };
        for first in [tree.head.dqi_free_blk.get(), tree.head.dqi_free_entry.get()] {
            if first != 0 {
                tree.check(first)?;
            }
        }
        Ok(tree)
    }

    fn corrupt(&self, problem: &'static str) -> Error {
        Error::corrupt(self.place, problem)
    }

    /// Checks the number of a block that something leads to.
    fn check(&self, block: u32) -> Result<u32> {
        match (ROOT + 1..self.head.dqi_blocks.get()).contains(&block) {
            true => Ok(block),
            false => Err(self.corrupt("the quota file leads outside of itself")),
        }
    }

    /// Finds the entry of an id.
    pub(crate) fn find(&self, blocks: &dyn QuotaBlocks, id: u32) -> Result<Option<Slot>> {
        let mut block = ROOT;
        for level in 0..DEPTH {
            match reference(&blocks.read(block)?, id, level) {
                (_, 0) => return Ok(None),
                (_, child) => block = self.check(child)?,
            }
        }
        let leaf = blocks.read(block)?;
        let slots = (0..PER_LEAF as u32).map(|index| Slot { block, index });
        let found = slots.into_iter().find(|slot| {
            let bytes = &leaf[slot.range()];
            bytes.iter().any(|&byte| byte != 0) && parse::<RawEntry>(bytes).dqb_id == id
        });
        match found {
            Some(slot) => Ok(Some(slot)),
            None => Err(self.corrupt("the quota file leads to an entry that is not there")),
        }
    }

    /// Makes an entry of nothing for an id that has none. Where there is no space, nothing is changed but that
    /// the file may have unused blocks at its end.
    pub(crate) fn insert(&mut self, blocks: &mut dyn QuotaBlocks, id: u32) -> Result<Slot> {
        let mut path = vec![(ROOT, blocks.read(ROOT)?)];
        while let Some((_, last)) = path.last()
            && let (_, child @ 1..) = reference(last, id, path.len() - 1)
        {
            if path.len() == DEPTH {
                return Err(self.corrupt("an id is entered into the quota file a second time"));
            }
            path.push((self.check(child)?, blocks.read(child)?));
        }
        let mut head = self.head.clone();
        let first_new = path.len();
        while path.len() < DEPTH {
            let block = self.take(blocks, &mut head, &path)?;
            path.push((block, vec![0; BLOCK]));
        }
        let (slot, written) = self.enter(blocks, &mut head, &path, id)?;
        let mut child = slot.block;
        for (level, (block, refs)) in path.iter_mut().enumerate().rev() {
            let (at, _) = reference(refs, id, level);
            refs[at..at + 4].copy_from_slice(&child.to_le_bytes());
            child = *block;
        }
        for (block, content) in &written {
            blocks.write(*block, content)?;
        }
        for (block, refs) in path[first_new - 1..].iter().rev() {
            blocks.write(*block, refs)?;
        }
        let mut first = blocks.read(0)?;
        first[..size_of::<RawHeader>()].copy_from_slice(head.as_bytes());
        blocks.write(0, &first)?;
        self.head = head;
        Ok(slot)
    }

    /// Takes a block that nothing uses.
    fn take(&self, blocks: &mut dyn QuotaBlocks, head: &mut RawHeader, path: &[Numbered]) -> Result<u32> {
        let free = head.dqi_free_blk.get();
        if free == 0 {
            let block = head.dqi_blocks.get();
            if block >= MAX_BLOCKS {
                return Err(Error::unsupported("the quota file is longer than can be handled"));
            }
            blocks.write(block, &[0; BLOCK])?;
            head.dqi_blocks = (block + 1).into();
            return Ok(block);
        }
        let next = parse::<RawLeaf>(&blocks.read(free)?).dqdh_next_free.get();
        if path.iter().any(|(block, _)| *block == free) || next == free {
            return Err(self.corrupt("a block of the quota file is free and in use"));
        }
        if next != 0 {
            self.check(next)?;
        }
        head.dqi_free_blk = next.into();
        Ok(free)
    }

    /// Puts an entry into a leaf with room; answers where, and the leaves that this changes.
    fn enter(
        &self,
        blocks: &mut dyn QuotaBlocks,
        head: &mut RawHeader,
        path: &[Numbered],
        id: u32,
    ) -> Result<(Slot, Vec<Numbered>)> {
        let (block, mut leaf) = match head.dqi_free_entry.get() {
            0 => {
                let block = self.take(blocks, head, path)?;
                head.dqi_free_entry = block.into();
                (block, vec![0; BLOCK])
            }
            block => (block, blocks.read(block)?),
        };
        let mut raw: RawLeaf = parse(&leaf);
        let slots = (0..PER_LEAF as u32).map(|index| Slot { block, index });
        let unused = slots.into_iter().find(|slot| leaf[slot.range()].iter().all(|&byte| byte == 0));
        let (Some(slot), 0..PER_LEAF) = (unused, usize::from(raw.dqdh_entries.get())) else {
            return Err(self.corrupt("a leaf of the quota file that should have room is full"));
        };
        raw.dqdh_entries += 1;
        let mut written = Vec::new();
        if usize::from(raw.dqdh_entries.get()) == PER_LEAF {
            let next = raw.dqdh_next_free.get();
            if next != 0 {
                let mut other = blocks.read(self.check(next)?)?;
                let mut second: RawLeaf = parse(&other);
                second.dqdh_prev_free = 0.into();
                other[..size_of::<RawLeaf>()].copy_from_slice(second.as_bytes());
                written.push((next, other));
            }
            head.dqi_free_entry = next.into();
            raw.dqdh_next_free = 0.into();
            raw.dqdh_prev_free = 0.into();
        }
        leaf[..size_of::<RawLeaf>()].copy_from_slice(raw.as_bytes());
        let mut entry: RawEntry = parse(&leaf[slot.range()]);
        entry.dqb_id = id.into();
        store(&mut leaf[slot.range()], entry);
        written.push((block, leaf));
        Ok((slot, written))
    }

    /// Applies changes to entries.
    pub(crate) fn update(
        &self,
        blocks: &mut dyn QuotaBlocks,
        changes: impl IntoIterator<Item = (u32, Slot, Change)>,
    ) -> Result<()> {
        let mut changes: Vec<_> = changes.into_iter().collect();
        changes.sort_unstable_by_key(|(_, slot, _)| *slot);
        for together in changes.chunk_by(|(_, a, _), (_, b, _)| a.block == b.block) {
            let Some((_, Slot { block, .. }, _)) = together.first() else { continue };
            let mut leaf = blocks.read(*block)?;
            for (id, slot, change) in together {
                let mut entry: RawEntry = parse(&leaf[slot.range()]);
                if entry.dqb_id != *id {
                    return Err(self.corrupt("an entry of the quota file is another's"));
                }
                if nothing(&entry) {
                    entry.dqb_itime = 0.into();
                }
                // What was not counted when it was taken cannot be given back, as for kernels.
                entry.dqb_curinodes = entry.dqb_curinodes.get().saturating_add_signed(change.inodes).into();
                entry.dqb_curspace = entry.dqb_curspace.get().saturating_add_signed(change.bytes).into();
                store(&mut leaf[slot.range()], entry);
            }
            blocks.write(*block, &leaf)?;
        }
        Ok(())
    }
}

/// Whether an entry is that of id 0 with nothing in it, which a time tells from a free one.
fn nothing(entry: &RawEntry) -> bool {
    let mut empty = parse::<RawEntry>(&[0; size_of::<RawEntry>()]);
    empty.dqb_itime = 1.into();
    entry.as_bytes() == empty.as_bytes()
}

fn store(bytes: &mut [u8], mut entry: RawEntry) {
    if entry.as_bytes().iter().all(|&byte| byte == 0) {
        entry.dqb_itime = 1.into();
    }
    bytes.copy_from_slice(entry.as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;

    /// A file in memory that takes up to so many blocks.
    struct Blocks(Vec<Vec<u8>>, usize);

    impl QuotaBlocks for Blocks {
        fn count(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, block: u32) -> Result<Vec<u8>> {
            Ok(self.0.get(block as usize).cloned().unwrap_or(vec![0; BLOCK]))
        }

        fn write(&mut self, block: u32, content: &[u8]) -> Result<()> {
            let block = block as usize;
            if block >= self.1 {
                return Err(Error::plain(ErrorKind::NoSpace, "full"));
            }
            if block >= self.0.len() {
                self.0.resize(block + 1, vec![0; BLOCK]);
            }
            self.0[block] = content.to_vec();
            Ok(())
        }
    }

    fn empty(limit: usize) -> Blocks {
        let mut head: RawHeader = parse(&[0; BLOCK]);
        head.dqh_magic = Kind::User.magic().into();
        head.dqh_version = 1.into();
        head.dqi_blocks = 2.into();
        let mut first = vec![0; BLOCK];
        first[..size_of::<RawHeader>()].copy_from_slice(head.as_bytes());
        Blocks(vec![first, vec![0; BLOCK]], limit)
    }

    fn open(blocks: &Blocks) -> Result<Tree> {
        Tree::read(blocks, Kind::User, 3)
    }

    fn usage(blocks: &Blocks, id: u32) -> Option<(u64, u64)> {
        let slot = open(blocks).unwrap().find(blocks, id).unwrap()?;
        let entry: RawEntry = parse(&blocks.0[slot.block as usize][slot.range()]);
        Some((entry.dqb_curinodes.get(), entry.dqb_curspace.get()))
    }

    proptest! {
        #[test]
        fn a_file_holds_what_was_counted(
            counts in prop::collection::vec((prop_oneof![0..40_u32, any::<u32>()], 0..9_i64, 0..9_i64), 1..200),
        ) {
            let mut blocks = empty(usize::MAX);
            let mut model: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            let mut tree = open(&blocks).unwrap();
            for (id, inodes, kib) in counts {
                let slot = match tree.find(&blocks, id).unwrap() {
                    Some(slot) => slot,
                    None => tree.insert(&mut blocks, id).unwrap(),
                };
                let change = Change { inodes, bytes: kib * 1024 };
                tree.update(&mut blocks, [(id, slot, change)]).unwrap();
                let entry = model.entry(id).or_default();
                *entry = (entry.0 + inodes as u64, entry.1 + kib as u64 * 1024);
            }
            for (id, expected) in model {
                prop_assert_eq!(usage(&blocks, id), Some(expected));
            }
            // Blocks are taken one after another, none twice and none in vain.
            let head: RawHeader = parse(&blocks.0[0]);
            prop_assert_eq!(head.dqi_blocks.get() as usize, blocks.0.len());
        }

        #[test]
        fn damaged_files_are_told_or_followed_to_an_end(
            damage in prop::collection::vec((0..8_usize, 0..BLOCK, any::<u8>()), 1..6),
            id in any::<u32>(),
        ) {
            let mut blocks = empty(64);
            let mut tree = open(&blocks).unwrap();
            for id in 0..16 {
                tree.insert(&mut blocks, id).unwrap();
            }
            for (block, at, value) in damage {
                if let Some(block) = blocks.0.get_mut(block) {
                    block[at] = value;
                }
            }
            if let Ok(mut tree) = open(&blocks) {
                for id in [id, 3, 200] {
                    if let Ok(None) = tree.find(&blocks, id) {
                        let _ = tree.insert(&mut blocks, id);
                    }
                }
            }
        }
    }

    #[test]
    fn no_space_for_a_new_owner_leaves_the_others_and_the_head() {
        for limit in 2..12 {
            let mut blocks = empty(limit);
            let mut tree = open(&blocks).unwrap();
            let ids = [7, 0x0700_0000, 0x0007_0000];
            let made: Vec<u32> = ids.into_iter().filter(|id| tree.insert(&mut blocks, *id).is_ok()).collect();
            assert!(limit > 6 || made.len() < 2);
            for id in ids {
                let expected = made.contains(&id).then_some((0, 0));
                assert_eq!(usage(&blocks, id), expected, "{limit} {id}");
            }
        }
    }

    #[test]
    fn freed_blocks_are_taken_first() {
        let mut blocks = empty(64);
        open(&blocks).unwrap().insert(&mut blocks, 1).unwrap();
        let count = blocks.0.len();
        // Two more blocks at the end, chained as free.
        let free = |next: u32| [next.to_le_bytes().to_vec(), vec![0; BLOCK - 4]].concat();
        blocks.0.push(free(count as u32 + 1));
        blocks.0.push(free(0));
        let mut head: RawHeader = parse(&blocks.0[0]);
        head.dqi_blocks = (count as u32 + 2).into();
        head.dqi_free_blk = (count as u32).into();
        blocks.0[0][..size_of::<RawHeader>()].copy_from_slice(head.as_bytes());
        open(&blocks).unwrap().insert(&mut blocks, 0x0001_0000).unwrap();
        assert_eq!(blocks.0.len(), count + 2);
        assert_eq!(parse::<RawHeader>(&blocks.0[0]).dqi_free_blk, 0);
        assert_eq!((usage(&blocks, 1), usage(&blocks, 0x0001_0000)), (Some((0, 0)), Some((0, 0))));
    }

    #[test]
    fn the_entry_of_id_0_is_never_taken_for_a_free_one() {
        let mut blocks = empty(64);
        let mut tree = open(&blocks).unwrap();
        let slot = tree.insert(&mut blocks, 0).unwrap();
        assert_ne!(tree.insert(&mut blocks, 1).unwrap(), slot);
        for inodes in [5, -5, 2] {
            tree.update(&mut blocks, [(0, slot, Change { inodes, bytes: 0 })]).unwrap();
        }
        let entry: RawEntry = parse(&blocks.0[slot.block as usize][slot.range()]);
        assert_eq!((entry.dqb_curinodes.get(), entry.dqb_itime.get()), (2, 0));
    }

    #[test]
    fn files_of_other_formats_are_refused() {
        for (at, value) in [(0, 0), (4, 0), (4, 2)] {
            let mut blocks = empty(2);
            blocks.0[0][at] = value;
            assert_eq!(open(&blocks).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        let mut blocks = empty(2);
        blocks.0[0][20] = 9;
        assert_eq!(open(&blocks).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
