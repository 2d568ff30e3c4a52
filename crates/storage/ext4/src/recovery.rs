//! Following the journal when a volume is opened, and emptying it before the volume is changed.

use std::collections::HashMap;

use crate::block_cache::{BlockCache, Redirect};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{compat, incompat};
use crate::group::Groups;
use crate::journal::{JournalSuperblock, Recovery, recover};
use crate::layout::SUPERBLOCK_OFFSET;
use crate::mapping::RunPlace;
use crate::superblock::Superblock;
use crate::volume::Ext4;

/// The file that the journal is.
struct JournalFile {
    blocks: u64,
    /// Logical block, length and first block of the volume, in order.
    runs: Vec<(u64, u64, u64)>,
}

impl JournalFile {
    fn find(volume: &Ext4) -> Result<Self> {
        let superblock = &volume.superblock;
        if !superblock.features.has_compat(compat::HAS_JOURNAL) {
            return Err(Error::corrupt(Place::Superblock, "a journal is to be followed but there is none"));
        }
        if superblock.journal_inode() == 0 {
            return Err(Error::unsupported(
                "a journal on another device, which holds changes, cannot be followed",
            ));
        }
        let inode = volume.inode(superblock.journal_inode())?;
        let blocks = inode.size / volume.block_size();
        if blocks == 0 || blocks > superblock.blocks {
            let problem = "the journal has no blocks or more than the volume";
            return Err(Error::corrupt(Place::Inode(inode.number.into()), problem));
        }
        let (mut runs, mut at) = (Vec::new(), 0);
        while at < blocks {
            let run = volume.run_at(&inode, at)?;
            let len = run.len.min(blocks - at);
            match run.place {
                RunPlace::Written(start) => runs.push((at, len, start)),
                // Journals are written whole when they are made.
                RunPlace::Hole | RunPlace::Unwritten(_) => {
                    return Err(Error::corrupt(Place::Journal(at), "the journal has a hole"));
                }
            }
            at += len;
        }
        Ok(Self { blocks, runs })
    }

    /// The block of the volume that holds a block of the journal.
    fn locate(&self, index: u32) -> Result<u64> {
        let index = u64::from(index);
        let behind = self.runs.partition_point(|&(logical, _, _)| logical <= index);
        let run = behind.checked_sub(1).and_then(|run| self.runs.get(run));
        match run {
            Some(&(logical, len, start)) if index - logical < len => Ok(start + (index - logical)),
            _ => Err(Error::corrupt(Place::Journal(index), "it lies outside the journal's file")),
        }
    }

    fn read(&self, cache: &BlockCache, block_size: u64, index: u32) -> Result<Vec<u8>> {
        let mut block = vec![0; block_size as usize];
        cache.read_data(&mut block, self.locate(index)? * block_size)?;
        Ok(block)
    }
}

impl Ext4 {
    /// Makes everything that the journal holds visible; opened for writing, puts it in place too.
    ///
    /// Opened for reading, nothing reaches the disk: blocks are read from the journal where it has newer
    /// ones.
    pub(crate) fn follow_journal(&mut self) -> Result<()> {
        // Without this mark the kernel does not look at what the journal holds either.
        if !self.superblock.features.has_incompat(incompat::RECOVER) {
            return Ok(());
        }
        let file = JournalFile::find(self)?;
        let block_size = self.block_size();
        let read = |index| file.read(&self.cache, block_size, index);
        let journal = JournalSuperblock::parse(&read(0)?, self.superblock.block_size, file.blocks)?;
        if self.writable && journal.has_error() {
            let detail =
                "the kernel met errors on the filesystem, which must be checked before it is changed";
            return Err(Error::plain(ErrorKind::Unsupported, detail));
        }
        let found = recover(&journal, &read, self.superblock.blocks, self.superblock.inode_size)?;
        self.redirect(&file, &found)?;
        crate::fast_replay::apply(self, &found.fast_commits)?;
        if self.writable {
            self.put_in_place(&found)?;
            self.empty_journal(&file, &journal, found.next_sequence)?;
        }
        Ok(())
    }

    fn redirect(&mut self, file: &JournalFile, found: &Recovery) -> Result<()> {
        let mut redirects = HashMap::with_capacity(found.blocks.len());
        for (&block, replayed) in &found.blocks {
            let redirect = Redirect { block: file.locate(replayed.index)?, escaped: replayed.escaped };
            redirects.insert(block, redirect);
        }
        self.cache.redirect(redirects);
        let mut bytes = [0; 1024];
        self.cache.read_data(&mut bytes, SUPERBLOCK_OFFSET)?;
        let superblock = Superblock::parse(&bytes, self.cache.disk().len())?;
        if superblock.block_size != self.superblock.block_size || superblock.blocks != self.superblock.blocks
        {
            return Err(Error::unsupported(
                "a journal that holds a change of the volume's size is not followed",
            ));
        }
        self.groups = Groups::read(&self.cache, &superblock)?;
        self.superblock = superblock;
        Ok(())
    }

    /// Writes what the journal holds to where it belongs, durably.
    fn put_in_place(&mut self, found: &Recovery) -> Result<()> {
        let mut blocks: Vec<u64> = found.blocks.keys().copied().collect();
        blocks.sort_unstable();
        for block in blocks {
            let content = self.cache.read(block)?;
            self.cache.write_data(&content, block * self.block_size())?;
        }
        self.flush_disk()?;
        self.cache.redirect(HashMap::new());
        Ok(())
    }

    /// Marks the journal as empty, and the volume as one that needs none followed.
    fn empty_journal(
        &mut self,
        file: &JournalFile,
        journal: &JournalSuperblock,
        next_sequence: u32,
    ) -> Result<()> {
        let block_size = self.block_size();
        self.cache.write_data(&journal.emptied(next_sequence), file.locate(0)? * block_size)?;
        self.flush_disk()?;
        self.superblock.features.incompat &= !incompat::RECOVER;
        self.cache.write_data(&self.superblock.encode(), SUPERBLOCK_OFFSET)?;
        self.flush_disk()
    }

    fn flush_disk(&self) -> Result<()> {
        self.cache.disk().flush().map_err(|source| Error::disk("flush", source))
    }
}
