//! What the passes know together: which inodes are in use and as what, which blocks, which directories.

use super::bits::Bits;

/// What an inode is, as far as others must know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fact {
    /// The number that directory entries have for its type; 0 for an inode that is not in use.
    pub(crate) kind: u8,
    /// Bits of [`mark`].
    pub(crate) marks: u8,
    /// How many names its link count says that it has.
    pub(crate) links: u16,
}

/// What else is known of an inode.
pub(crate) mod mark {
    /// It is in use: it has links, or is one of those that are without.
    pub(crate) const USED: u8 = 0x1;
    /// Its type is unknown, or it is what its flags say that it cannot be.
    pub(crate) const BAD: u8 = 0x2;
    /// It is a directory in its inode, `inline_data`.
    pub(crate) const INLINE: u8 = 0x4;
    /// Its names are encrypted.
    pub(crate) const ENCRYPTED: u8 = 0x8;
    /// Its names fold.
    pub(crate) const CASEFOLD: u8 = 0x10;
    /// It holds the value of an attribute.
    pub(crate) const EA_INODE: u8 = 0x20;
    /// It is a directory indexed by hashes.
    pub(crate) const INDEXED: u8 = 0x40;
}

/// Facts about all inodes, kept group by group where there are any.
pub(crate) struct Facts {
    groups: Vec<Option<Box<[Fact]>>>,
    per_group: u32,
    inodes: u32,
}

impl Facts {
    pub(crate) fn new(groups: u32, per_group: u32) -> Self {
        let inodes = groups.saturating_mul(per_group);
        Self { groups: vec![None; groups as usize], per_group, inodes }
    }

    fn split(&self, inode: u32) -> Option<(usize, usize)> {
        let index = inode.checked_sub(1).filter(|_| inode <= self.inodes)?;
        Some(((index / self.per_group) as usize, (index % self.per_group) as usize))
    }

    /// What is known of an inode; nothing of a number that no inode has.
    pub(crate) fn get(&self, inode: u32) -> Fact {
        let Some((group, index)) = self.split(inode) else { return Fact::default() };
        self.groups[group].as_ref().map_or_else(Fact::default, |facts| facts[index])
    }

    /// Records what an inode is.
    pub(crate) fn put(&mut self, inode: u32, fact: Fact) {
        let Some((group, index)) = self.split(inode) else { return };
        let per_group = self.per_group as usize;
        let facts =
            self.groups[group].get_or_insert_with(|| vec![Fact::default(); per_group].into_boxed_slice());
        facts[index] = fact;
    }

    /// Whether an inode is in use.
    pub(crate) fn is_used(&self, inode: u32) -> bool {
        self.get(inode).marks & mark::USED != 0
    }

    /// Whether an inode is a directory in use.
    pub(crate) fn is_directory(&self, inode: u32) -> bool {
        let fact = self.get(inode);
        fact.marks & mark::USED != 0 && fact.kind == 2
    }

    /// What is known of one group's inodes, in order; nothing where none is in use.
    pub(crate) fn group(&self, group: u32) -> Option<&[Fact]> {
        self.groups.get(group as usize)?.as_deref()
    }
}

/// A directory in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) inode: u32,
    pub(crate) generation: u32,
    pub(crate) size: u64,
    pub(crate) flags: u32,
}

/// A block of a directory's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DirectoryBlock {
    /// Where it is on the volume: blocks sort in the order in which they are best read. Zero for a hole.
    pub(crate) block: u64,
    pub(crate) inode: u32,
    pub(crate) logical: u32,
}

/// Which clusters are in use, and which are by more than one owner.
pub(crate) struct Claims {
    pub(crate) used: Bits,
    pub(crate) twice: Bits,
    /// Blocks, not clusters, of superblocks, descriptors, bitmaps and inode tables.
    pub(crate) metadata: Bits,
    /// log2 of how many blocks a cluster has.
    shift: u32,
}

impl Claims {
    /// Makes claims on a volume of some blocks, in clusters of a power of two of them.
    pub(crate) fn new(blocks: u64, cluster_blocks: u32) -> Self {
        let shift = cluster_blocks.trailing_zeros();
        let clusters = blocks.div_ceil(u64::from(cluster_blocks));
        Self { used: Bits::new(clusters), twice: Bits::new(clusters), metadata: Bits::new(blocks), shift }
    }

    /// Takes the clusters of all metadata.
    pub(crate) fn take_metadata(&mut self) {
        if self.shift == 0 {
            self.used = self.metadata.clone();
            return;
        }
        let mut at = 0;
        while let Some(block) = self.metadata.next(at) {
            let cluster = self.cluster(block);
            self.used.set(cluster);
            at = (cluster + 1) << self.shift;
        }
    }

    /// The cluster of a block.
    pub(crate) fn cluster(&self, block: u64) -> u64 {
        block >> self.shift
    }

    /// Claims a range of blocks; answers whether they were free until now.
    pub(crate) fn claim(&mut self, block: u64, len: u64) -> bool {
        let Some(last) = block.checked_add(len).and_then(|end| end.checked_sub(1)) else { return true };
        let (first, last) = (self.cluster(block), self.cluster(last));
        if len == 0 || self.used.count(first, last - first + 1) == 0 {
            self.used.set_range(first, if len == 0 { 0 } else { last - first + 1 });
            return true;
        }
        for cluster in first..=last {
            if self.used.set(cluster) {
                self.twice.set(cluster);
            }
        }
        false
    }

    /// Whether a block is in use.
    pub(crate) fn is_used(&self, block: u64) -> bool {
        self.used.has(self.cluster(block))
    }
}
