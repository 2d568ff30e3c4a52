//! The names in directories: the blocks of a directory, lent to what knows its format.

use std::ops::ControlFlow;

use vmwright_vfs::FileType;

use crate::dir_block::DirFormat;
use crate::directory::{DirBlocks, DirBlocksMut, Directory, Found, Visit};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{compat, incompat};
use crate::fold::{self, Wanted};
use crate::hash::HashConfig;
use crate::inode::{self, Inode, flags};
use crate::mapping::RunPlace;
use crate::volume::Ext4;

/// A change of one name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NameChange<'a> {
    /// Adds one that is not there yet.
    Add { name: &'a [u8], inode: u32, file_type: u8 },
    /// Removes one.
    Remove { name: &'a [u8] },
    /// Leads one to another inode.
    Lead { name: &'a [u8], inode: u32, file_type: u8 },
    /// Leads `..` to another directory.
    Parent(u32),
}

/// The blocks of a directory that is only read.
struct ReadBlocks<'a> {
    volume: &'a Ext4,
    inode: &'a Inode,
}

impl DirBlocks for ReadBlocks<'_> {
    fn count(&self) -> u32 {
        self.volume.directory_blocks(self.inode)
    }

    fn read(&self, logical: u32) -> Result<Vec<u8>> {
        self.volume.read_directory_block(self.inode, logical)
    }

    fn next(&self, from: u32) -> Result<Option<u32>> {
        self.volume.next_directory_block(self.inode, from)
    }
}

/// The blocks of a directory that is changed. Its inode changes with it and is left to the caller to write.
pub(crate) struct WriteBlocks<'a> {
    pub(crate) volume: &'a mut Ext4,
    pub(crate) inode: &'a mut Inode,
}

impl DirBlocks for WriteBlocks<'_> {
    fn count(&self) -> u32 {
        self.volume.directory_blocks(self.inode)
    }

    fn read(&self, logical: u32) -> Result<Vec<u8>> {
        self.volume.read_directory_block(self.inode, logical)
    }

    fn next(&self, from: u32) -> Result<Option<u32>> {
        self.volume.next_directory_block(self.inode, from)
    }
}

impl DirBlocksMut for WriteBlocks<'_> {
    fn write(&mut self, logical: u32, block: &[u8]) -> Result<()> {
        if self.volume.run_at(self.inode, logical.into())?.place == RunPlace::Hole {
            self.append_one(logical)?;
        }
        let at = self.volume.directory_block(self.inode, logical)?;
        self.volume.cache.put(at, block.to_vec())
    }

    fn append(&mut self, blocks: u32) -> Result<u32> {
        let first = self.count();
        for logical in first..first.saturating_add(blocks) {
            if let Err(error) = self.append_one(logical) {
                self.volume.unmap(self.inode, first.into()..u64::from(u32::MAX))?;
                return Err(error);
            }
        }
        self.inode.size = u64::from(first + blocks) * self.volume.block_size();
        Ok(first)
    }

    fn set_indexed(&mut self, indexed: bool) -> Result<()> {
        self.inode.flags &= !flags::INDEX;
        if indexed {
            self.inode.flags |= flags::INDEX;
        }
        Ok(())
    }
}

impl WriteBlocks<'_> {
    fn append_one(&mut self, logical: u32) -> Result<()> {
        let start = self.volume.add_block(self.inode, logical.into())?;
        self.volume.cache.put(start, vec![0; self.volume.superblock.block_size as usize])
    }
}

impl Ext4 {
    /// Reads an inode that must be a directory whose names can be read.
    pub(crate) fn directory(&self, number: u32) -> Result<Inode> {
        let inode = self.inode(number)?;
        if !inode.is_directory() {
            return Err(Error::plain(ErrorKind::InvalidInput, "the inode is not a directory"));
        }
        let len = inode.size.div_ceil(self.block_size());
        if len > self.superblock.blocks || len > u64::from(u32::MAX) {
            let place = Place::Inode(number.into());
            let (expected, actual) = (self.superblock.blocks, len);
            return Err(Error::mismatch(place, "a directory's length in blocks, at most", expected, actual));
        }
        Ok(inode)
    }

    /// How many blocks a directory has, which [`Ext4::directory`] has checked.
    pub(crate) fn directory_blocks(&self, inode: &Inode) -> u32 {
        inode.size.div_ceil(self.block_size()).try_into().unwrap_or(u32::MAX)
    }

    /// Where a block of a directory is.
    pub(crate) fn directory_block(&self, inode: &Inode, logical: u32) -> Result<u64> {
        match self.run_at(inode, logical.into())?.place {
            RunPlace::Written(block) => Ok(block),
            _ => Err(Error::corrupt(Place::Inode(inode.number.into()), "the directory has a hole")),
        }
    }

    fn read_directory_block(&self, inode: &Inode, logical: u32) -> Result<Vec<u8>> {
        let block = self.directory_block(inode, logical)?;
        Ok(self.cache.read(block)?.to_vec())
    }

    /// The first block of a directory from `from` on that is not in a hole.
    fn next_directory_block(&self, inode: &Inode, from: u32) -> Result<Option<u32>> {
        let (mut at, count) = (u64::from(from), u64::from(self.directory_blocks(inode)));
        while at < count {
            let run = self.run_at(inode, at)?;
            if run.place != RunPlace::Hole {
                return Ok(u32::try_from(at).ok());
            }
            at = at.saturating_add(run.len);
        }
        Ok(None)
    }

    /// How a directory keeps its names.
    pub(crate) fn directory_format(&self, inode: &Inode) -> DirFormat {
        DirFormat {
            inode: inode.number,
            seed: inode.checksum_seed(&self.superblock),
            file_types: self.superblock.features.has_incompat(incompat::FILETYPE),
            folding: self.folds(inode),
        }
    }

    /// Whether names that differ in case alone are the same in a directory, in the one way that is known.
    pub(crate) fn folds(&self, dir: &Inode) -> bool {
        dir.has_flag(flags::CASEFOLD)
            && !dir.has_flag(flags::ENCRYPT)
            && self.superblock.features.has_incompat(incompat::CASEFOLD)
            && self.superblock.encoding().0 == fold::UTF8_12_1
    }

    /// How the names of a directory are hashed.
    pub(crate) fn hash_of(&self, dir: &Inode) -> HashConfig {
        HashConfig { folding: self.folds(dir), ..self.superblock.hash_config() }
    }

    /// What knows the names of a directory, given its blocks.
    pub(crate) fn names_of<'a>(&self, inode: &Inode, hash: &'a HashConfig) -> Directory<'a> {
        let features = &self.superblock.features;
        let may_index = features.has_compat(compat::DIR_INDEX);
        Directory {
            format: self.directory_format(inode),
            hash,
            indexed: may_index && inode.has_flag(flags::INDEX),
            may_index,
            large: features.has_incompat(incompat::LARGEDIR),
        }
    }

    /// Finds a name in a directory.
    pub(crate) fn find_name(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        if dir.has_flag(flags::INLINE_DATA) {
            return self.find_inline(dir, name);
        }
        let hash = self.hash_of(dir);
        let names = self.names_of(dir, &hash);
        // Names that are encrypted or fold their case unknown ways are found one after another.
        let unknown = dir.has_flag(flags::ENCRYPT) || dir.has_flag(flags::CASEFOLD) && !hash.folding;
        if names.indexed && unknown {
            return self.scan(dir, name);
        }
        names.lookup(&ReadBlocks { volume: self, inode: dir }, name)
    }

    /// Finds a name by going through all.
    pub(crate) fn scan(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        let wanted = Wanted::new(name, self.folds(dir));
        let mut found = None;
        self.visit_names(dir, &mut |entry, inode, file_type| {
            if wanted.is(entry) {
                found = Some(Found { inode, file_type });
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Calls `visit` with name, inode and type of every entry but `.` and `..`, until it breaks.
    pub(crate) fn visit_names(&self, dir: &Inode, visit: Visit<'_>) -> Result<()> {
        if dir.has_flag(flags::INLINE_DATA) {
            return self.visit_inline(dir, visit);
        }
        let hash = self.hash_of(dir);
        self.names_of(dir, &hash).visit(&ReadBlocks { volume: self, inode: dir }, visit)
    }

    /// The type of a directory entry; where entries have none, that of its inode.
    pub(crate) fn entry_file_type(&self, inode: u32, file_type: u8) -> Result<FileType> {
        match inode::type_of_entry(file_type) {
            Some(file_type) => Ok(file_type),
            None => Ok(self.inode(inode)?.file_type),
        }
    }
}

#[cfg(test)]
mod tests;
