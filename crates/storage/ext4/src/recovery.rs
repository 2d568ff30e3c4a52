//! What a crash left in the journal: followed in memory for reading, written to its place for writing.

use std::collections::HashMap;
use std::sync::Arc;

use vmwright_disk::Disk;

use crate::alloc::Allocator;
use crate::block_cache::Redirect;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::fast_replay;
use crate::features::{compat, incompat};
use crate::group::Groups;
use crate::inode::Inode;
use crate::journal::{self, JournalSuperblock, Recovery};
use crate::journal_device::{JournalDevice, JournalPlace};
use crate::layout::SUPERBLOCK_OFFSET;
use crate::mapping::RunPlace;
use crate::superblock::Superblock;
use crate::volume::{Ext4, Options};

/// The size of the journal's superblock.
const JOURNAL_SUPERBLOCK: usize = 1024;

impl Ext4 {
    /// Takes over what the journal holds.
    pub(crate) fn recover(&mut self, device: Option<Arc<dyn Disk>>, options: Options) -> Result<()> {
        let features = self.superblock.features;
        let pending = features.has_incompat(incompat::RECOVER);
        if !features.has_compat(compat::HAS_JOURNAL) {
            return match pending {
                true => Err(Error::corrupt(Place::Superblock, "recovery is needed but there is no journal")),
                false => Ok(()),
            };
        }
        let place = match (self.superblock.journal_inode(), device) {
            (0, Some(disk)) => JournalPlace::Device(JournalDevice::open(disk, &self.superblock)?),
            // What a journal holds without the flag is never replayed, here or by kernels.
            (0, None) if !pending => return Ok(()),
            (0, None) => return Err(Error::journal_elsewhere(self.superblock.journal_uuid())),
            (_, Some(_)) => {
                let problem = "the filesystem's journal is its own, not on another disk";
                return Err(Error::plain(ErrorKind::InvalidInput, problem));
            }
            (_, None) if !pending && !options.write => return Ok(()),
            (number, None) => JournalPlace::Inside(self.inode(number)?),
        };
        if !pending && !options.write {
            return Ok(());
        }
        let journal = match &place {
            JournalPlace::Inside(inode) => self.journal_superblock(inode)?,
            JournalPlace::Device(device) => device.superblock()?,
        };
        if journal.has_error() && options.write {
            return Err(Error::unsupported("the journal records an error: the filesystem must be checked"));
        }
        if !pending {
            // Without the flag what is in the journal is old, and so are the numbers of its transactions: a
            // later one of the same number could seem to go on with them. There are fewer than blocks.
            return match journal.start() {
                0 => Ok(()),
                _ => self.empty(&place, &journal, journal.sequence().wrapping_add(journal.end)),
            };
        }
        let read = |index: u32| match &place {
            JournalPlace::Inside(inode) => {
                self.journal_block(inode, index).and_then(|at| self.cache.read(at)).map(|b| b.to_vec())
            }
            JournalPlace::Device(device) => device.read(index),
        };
        let blocks = self.superblock.blocks;
        let recovery = journal::recover(&journal, &read, blocks, self.superblock.inode_size)?;
        let redirects = self.redirects(&place, &recovery)?;
        if let JournalPlace::Device(device) = &place {
            if options.write && device.disk().is_read_only() {
                return Err(Error::plain(ErrorKind::ReadOnly, "the journal's disk is read-only"));
            }
            self.cache.redirect_to(device.disk().clone());
        }
        match options.write {
            true => self.replay(&place, &journal, &recovery, redirects, options),
            false => {
                self.cache.redirect(redirects);
                self.reload()?;
                fast_replay::apply(self, &recovery.fast_commits)
            }
        }
    }

    pub(crate) fn journal_superblock(&self, inode: &Inode) -> Result<JournalSuperblock> {
        let block = self.cache.read(self.journal_block(inode, 0)?)?;
        let file_blocks = inode.size / self.block_size();
        JournalSuperblock::parse(&block[..JOURNAL_SUPERBLOCK], self.superblock.block_size, file_blocks)
    }

    /// Where a block of the journal is.
    fn journal_block(&self, inode: &Inode, index: u32) -> Result<u64> {
        match self.run_at(inode, index.into())?.place {
            RunPlace::Written(block) => Ok(block),
            _ => Err(Error::corrupt(Place::Journal(index.into()), "the journal has a hole")),
        }
    }

    fn redirects(&self, place: &JournalPlace, recovery: &Recovery) -> Result<HashMap<u64, Redirect>> {
        let redirect = |(block, replayed): (&u64, &journal::Replayed)| {
            let at = match place {
                JournalPlace::Inside(inode) => self.journal_block(inode, replayed.index)?,
                JournalPlace::Device(_) => replayed.index.into(),
            };
            Ok((*block, Redirect { block: at, escaped: replayed.escaped }))
        };
        recovery.blocks.iter().map(redirect).collect()
    }

    /// Reads the superblock and the descriptors again, now as the journal has them.
    fn reload(&mut self) -> Result<()> {
        let mut bytes = [0; 1024];
        self.cache.read_data(&mut bytes, SUPERBLOCK_OFFSET)?;
        let superblock = Superblock::parse(&bytes, self.cache.disk().len())?;
        if superblock.block_size != self.superblock.block_size || superblock.blocks != self.superblock.blocks
        {
            return Err(Error::corrupt(Place::Superblock, "the journal gives the volume another size"));
        }
        self.superblock = superblock;
        self.groups = Groups::read(&self.cache, &self.superblock)?;
        self.groups.count_free(&mut self.superblock);
        self.allocator = Allocator::default();
        Ok(())
    }

    /// Writes what the journal holds to its place, then empties the journal.
    fn replay(
        &mut self,
        place: &JournalPlace,
        journal: &JournalSuperblock,
        recovery: &Recovery,
        redirects: HashMap<u64, Redirect>,
        options: Options,
    ) -> Result<()> {
        let mut blocks: Vec<u64> = redirects.keys().copied().collect();
        blocks.sort_unstable();
        self.cache.redirect(redirects);
        for block in blocks {
            let content = self.cache.read(block)?;
            self.cache.write_data(&content, block * self.block_size())?;
        }
        self.flush_disk()?;
        let disk = self.cache.disk().clone();
        let mut superblock = Superblock::read(&*disk)?;
        superblock.check_writable()?;
        superblock.features.incompat &= !incompat::RECOVER;
        let guard = self.cache.take_guard();
        *self = Self::assemble(disk, superblock, options)?;
        self.cache.put_guard(guard);
        self.load_quota()?;
        fast_replay::apply(self, &recovery.fast_commits)?;
        // Everything is in its place before the journal forgets it: a crash in between replays it again.
        self.changed = true;
        self.sync_volume()?;
        self.flush_disk()?;
        self.empty(place, journal, recovery.next_sequence)?;
        self.flush_disk()
    }

    fn flush_disk(&self) -> Result<()> {
        self.cache.disk().flush().map_err(|source| Error::disk("flush", source))
    }

    /// Writes a superblock of the journal that says that nothing is in it.
    fn empty(&mut self, place: &JournalPlace, journal: &JournalSuperblock, next_sequence: u32) -> Result<()> {
        let bytes = journal.emptied(next_sequence);
        match place {
            JournalPlace::Inside(inode) => {
                let block = self.journal_block(inode, 0)?;
                self.cache.forget(block, 1);
                self.cache.write_data(&bytes, block * self.block_size())
            }
            JournalPlace::Device(device) => device.write(&bytes),
        }
    }
}
