//! Records of inodes, and their content, read without being believed.

use super::Checker;
use crate::block_cache::BlockCache;
use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::mapping::{self, RunPlace};

impl Checker {
    /// Where the record of an inode is: its block, and the byte within.
    pub(super) fn record_place(&self, number: u32) -> Result<(u64, usize)> {
        let none = || Error::corrupt(Place::Inode(number.into()), "there is no such inode");
        let superblock = &self.superblock;
        let index = number.checked_sub(1).filter(|_| number <= superblock.inodes).ok_or_else(none)?;
        let (group, index) = (index / superblock.inodes_per_group, index % superblock.inodes_per_group);
        let table = self.groups.get(group as usize).ok_or_else(none)?.inode_table;
        let at = u64::from(index) * u64::from(superblock.inode_size);
        let block_size = u64::from(superblock.block_size);
        let block = table.checked_add(at / block_size).ok_or_else(none)?;
        Ok((block, (at % block_size) as usize))
    }

    /// Reads the record of an inode.
    pub(super) fn record(&self, number: u32) -> Result<Vec<u8>> {
        let (block, at) = self.record_place(number)?;
        let content = self.reader.block(block)?;
        Ok(content[at..at + usize::from(self.superblock.inode_size)].to_vec())
    }

    /// Reads an inode for its fields, whatever its checksum.
    pub(super) fn fields(&self, number: u32) -> Result<Inode> {
        Inode::parse_unsealed(&self.superblock, number, self.record(number)?)
    }

    /// Finds where a block of an inode's content is; `None` in a hole.
    pub(super) fn content_block(
        &self,
        cache: &BlockCache,
        inode: &Inode,
        logical: u64,
    ) -> Result<Option<u64>> {
        match mapping::run_at(cache, &self.superblock, inode, logical)?.place {
            RunPlace::Written(block) | RunPlace::Unwritten(block) => Ok(Some(block)),
            RunPlace::Hole => Ok(None),
        }
    }
}
