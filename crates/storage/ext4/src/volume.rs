//! A volume that is open: what every other part works on.

use std::sync::Arc;

use vmwright_disk::Disk;
use vmwright_vfs::Timestamp;

use crate::alloc::Allocator;
use crate::block_cache::BlockCache;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::group::Groups;
use crate::group_bitmaps::GroupState;
use crate::inode::Inode;
use crate::mapping::{self, Run};
use crate::quota::Quota;
use crate::superblock::Superblock;

/// How a volume is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether it will be changed. If not, nothing is ever written to the disk beneath.
    pub write: bool,
    /// How many bytes of metadata are kept in memory.
    pub metadata_cache: usize,
    /// Whether multiple mount protection that says the volume is in use is overruled. Only for volumes that nobody
    /// has open any more, such as after a crash.
    pub ignore_mmp: bool,
}

impl Default for Options {
    /// Opens for reading, with 8 MiB of metadata in memory.
    fn default() -> Self {
        Self { write: false, metadata_cache: 8 << 20, ignore_mmp: false }
    }
}

impl Options {
    /// Opens for reading and writing.
    pub fn writable() -> Self {
        Self { write: true, ..Self::default() }
    }
}

/// An ext2, ext3 or ext4 filesystem.
pub struct Ext4 {
    pub(crate) cache: BlockCache,
    pub(crate) superblock: Superblock,
    pub(crate) groups: Groups,
    pub(crate) group_states: Vec<GroupState>,
    pub(crate) allocator: Allocator,
    /// What changes are stamped with; until that is set, the time when the volume was last used.
    pub(crate) now: Timestamp,
    pub(crate) writable: bool,
    /// Whether anything has changed since the last sync.
    pub(crate) changed: bool,
    /// The quota files, where the volume has any and is open for writing.
    pub(crate) quota: Option<Quota>,
}

impl std::fmt::Debug for Ext4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let features = self.superblock.features.names();
        f.debug_struct("Ext4").field("uuid", &self.superblock.uuid()).field("features", &features).finish()
    }
}

impl Ext4 {
    /// Opens the filesystem on a disk.
    ///
    /// For reading, a journal that holds changes is followed in memory and the disk stays as it is. For
    /// writing, it is replayed onto the disk first.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where there is no sound filesystem, `Unsupported` where it uses features that cannot be
    /// read here or, opened for writing, that cannot be written, `InUse` where multiple mount protection says that
    /// someone else has it open.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self> {
        Self::open_on(disk, None, options)
    }

    /// Opens the filesystem on a disk, with its journal on another one.
    ///
    /// Both are written where there is anything to replay, so a transaction has to hold both. A volume whose journal
    /// has nothing to replay can be opened, and written, without it.
    ///
    /// # Errors
    ///
    /// As [`Ext4::open`], and kind `InvalidInput` where the other disk does not hold the journal that the filesystem
    /// names.
    pub fn open_with_journal(disk: Arc<dyn Disk>, journal: Arc<dyn Disk>, options: Options) -> Result<Self> {
        Self::open_on(disk, Some(journal), options)
    }

    fn open_on(disk: Arc<dyn Disk>, journal: Option<Arc<dyn Disk>>, options: Options) -> Result<Self> {
        let superblock = Superblock::read(&*disk)?;
        if options.write {
            superblock.check_writable()?;
            superblock.check_clusters()?;
            if disk.is_read_only() {
                return Err(Error::plain(
                    ErrorKind::ReadOnly,
                    "the disk beneath the filesystem is read-only",
                ));
            }
        }
        let mut volume = Self::assemble(disk, superblock, options)?;
        volume.guard(options)?;
        volume.recover(journal, options)?;
        if options.write {
            volume.check_clean()?;
            if volume.quota.is_none() {
                volume.load_quota()?;
            }
            volume.process_orphans()?;
            volume.sync_volume()?;
        }
        Ok(volume)
    }

    /// Reads the descriptors; whatever the journal holds is not seen yet.
    pub(crate) fn assemble(disk: Arc<dyn Disk>, superblock: Superblock, options: Options) -> Result<Self> {
        let Superblock { block_size, blocks, .. } = superblock;
        let cache = BlockCache::new(disk, block_size, blocks, options.metadata_cache, options.write);
        let groups = Groups::read(&cache, &superblock)?;
        let mut superblock = superblock;
        groups.count_free(&mut superblock);
        let group_states = vec![GroupState::default(); superblock.groups as usize];
        let now = Timestamp { seconds: superblock.last_used(), nanoseconds: 0 };
        Ok(Self {
            cache,
            superblock,
            groups,
            group_states,
            allocator: Allocator::default(),
            now,
            writable: options.write,
            changed: false,
            quota: None,
        })
    }

    /// Refuses to write to a volume whose counts and bitmaps may be wrong.
    fn check_clean(&self) -> Result<()> {
        if self.superblock.is_clean() {
            return Ok(());
        }
        let detail =
            "the filesystem was not unmounted cleanly or has errors: it must be checked before it is changed";
        Err(Error::plain(ErrorKind::Unsupported, detail))
    }

    /// Refuses changes to a volume that is open for reading.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(Error::plain(ErrorKind::ReadOnly, "the filesystem is open for reading only")),
        }
    }

    /// How many blocks no file can ever use: superblocks, descriptors, bitmaps, inode tables, the journal.
    pub(crate) fn overhead(&self) -> u64 {
        let superblock = &self.superblock;
        let recorded = superblock.recorded_overhead();
        if recorded != 0 {
            return recorded.saturating_mul(superblock.cluster_blocks.into());
        }
        let heads: u64 = (0..superblock.groups).map(|group| superblock.head_blocks(group)).sum();
        let tables = u64::from(superblock.groups) * (2 + superblock.inode_table_blocks());
        superblock.first_data_block + heads + tables + superblock.journal_size() / self.block_size()
    }

    /// The size of a block in bytes.
    pub(crate) fn block_size(&self) -> u64 {
        self.superblock.block_size.into()
    }

    /// Where an inode's record is: its block, and the byte in it.
    pub(crate) fn inode_location(&self, number: u32) -> Result<(u64, usize)> {
        if number == 0 || number > self.superblock.inodes {
            return Err(Error::corrupt(Place::Inode(number.into()), "there is no such inode"));
        }
        let per_group = self.superblock.inodes_per_group;
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        let at = u64::from(index) * u64::from(self.superblock.inode_size);
        let block = self.groups.get(group)?.inode_table + at / self.block_size();
        Ok((block, (at % self.block_size()) as usize))
    }

    /// Reads an inode that is in use or about to be removed.
    pub(crate) fn any_inode(&self, number: u32) -> Result<Inode> {
        let (block, at) = self.inode_location(number)?;
        let bytes = self.cache.read(block)?;
        let record = &bytes[at..at + usize::from(self.superblock.inode_size)];
        Inode::parse(&self.superblock, number, record)
    }

    /// Reads an inode that is in use.
    pub(crate) fn inode(&self, number: u32) -> Result<Inode> {
        let inode = self.any_inode(number)?;
        if inode.links == 0 {
            return Err(Error::corrupt(Place::Inode(number.into()), "it is in use but has been removed"));
        }
        Ok(inode)
    }

    /// Writes an inode's record.
    pub(crate) fn put_inode(&mut self, inode: &Inode) -> Result<()> {
        let (block, at) = self.inode_location(inode.number)?;
        let record = inode.encode(&self.superblock);
        if self.quota.is_some() {
            let before = self.cache.read(block)?;
            self.count_change(inode.number, &before[at..at + record.len()], inode)?;
        }
        self.cache.modify(block)?[at..at + record.len()].copy_from_slice(&record);
        self.changed = true;
        Ok(())
    }

    /// Finds the run of an inode's content that begins at a logical block.
    pub(crate) fn run_at(&self, inode: &Inode, logical: u64) -> Result<Run> {
        mapping::run_at(&self.cache, &self.superblock, inode, logical)
    }
}
