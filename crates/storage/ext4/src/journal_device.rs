//! A journal on a disk of its own, which volumes name by its UUID.
//!
//! ```text
//! byte 1024    a superblock with `journal_dev`: its UUID is what volumes name
//! block 1 (2)  the journal's superblock, in the block behind that one; blocks of the log count from the disk's start
//! ```

use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::FromBytes;

use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{compat, incompat, ro_compat};
use crate::inode::Inode;
use crate::journal::JournalSuperblock;
use crate::layout::{RawSuperblock, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET};
use crate::superblock::Superblock;

/// Answers which journal a disk holds, by its UUID, where it holds nothing but one.
pub fn journal_held(disk: &dyn Disk) -> Option<uuid::Uuid> {
    let raw = read_raw(disk)?;
    let is_journal = raw.s_feature_incompat.get() & incompat::JOURNAL_DEV != 0;
    is_journal.then(|| uuid::Uuid::from_bytes(raw.s_uuid))
}

/// The journal that a filesystem has on another disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherJournal {
    /// The UUID of that disk.
    pub uuid: uuid::Uuid,
    /// Whether it holds what the filesystem lacks.
    pub pending: bool,
}

/// Answers which journal the filesystem on a disk has on another one.
pub fn journal_wanted(disk: &dyn Disk) -> Option<OtherJournal> {
    let superblock = Superblock::read(disk).ok()?;
    let features = superblock.features;
    let elsewhere = features.has_compat(compat::HAS_JOURNAL) && superblock.journal_inode() == 0;
    let uuid = uuid::Uuid::from_bytes(superblock.journal_uuid());
    elsewhere.then(|| OtherJournal { uuid, pending: features.has_incompat(incompat::RECOVER) })
}

fn read_raw(disk: &dyn Disk) -> Option<RawSuperblock> {
    let mut bytes = [0; 1024];
    if disk.len() < SUPERBLOCK_OFFSET + 1024 {
        return None;
    }
    disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).ok()?;
    let raw = RawSuperblock::read_from_bytes(&bytes).ok()?;
    (raw.s_magic == SUPERBLOCK_MAGIC).then_some(raw)
}

/// Where the journal of a volume is.
pub(crate) enum JournalPlace {
    /// In the content of one of its inodes.
    Inside(Inode),
    /// On a disk of its own.
    Device(JournalDevice),
}

/// A disk that holds nothing but a journal.
pub(crate) struct JournalDevice {
    disk: Arc<dyn Disk>,
    block_size: u32,
    blocks: u64,
}

impl JournalDevice {
    /// Checks that a disk holds the journal that a volume names.
    pub(crate) fn open(disk: Arc<dyn Disk>, volume: &Superblock) -> Result<Self> {
        let mut bytes = [0; 1024];
        let refuse = |problem| Err(Error::plain(ErrorKind::InvalidInput, problem));
        if disk.len() < SUPERBLOCK_OFFSET + 1024 {
            return refuse("the disk given for the journal is too small to hold one");
        }
        disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("read", source))?;
        let raw = RawSuperblock::read_from_bytes(&bytes)
            .map_err(|_| Error::corrupt(Place::Journal(0), "its superblock is cut short"))?;
        if raw.s_magic != SUPERBLOCK_MAGIC || raw.s_feature_incompat.get() & incompat::JOURNAL_DEV == 0 {
            return refuse("the disk given for the journal holds none");
        }
        if raw.s_feature_ro_compat.get() & ro_compat::METADATA_CSUM != 0 {
            let (expected, actual) = (crc32c(!0, &bytes[..1020]), raw.s_checksum.get());
            if expected != actual {
                let what = "the checksum of the superblock before the journal";
                return Err(Error::mismatch(Place::Journal(0), what, expected.into(), actual.into()));
            }
        }
        if raw.s_uuid != volume.journal_uuid() {
            return refuse("the disk given for the journal holds that of another filesystem");
        }
        if raw.s_log_block_size.get() > 6 || 1024 << raw.s_log_block_size.get() != volume.block_size {
            return Err(Error::corrupt(Place::Journal(0), "its blocks are not as large as the filesystem's"));
        }
        let on_disk = disk.len() / u64::from(volume.block_size);
        let blocks = on_disk.min(raw.s_blocks_count_lo.get().into());
        Ok(Self { disk, block_size: volume.block_size, blocks })
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The block of the journal's superblock.
    fn start(&self) -> u32 {
        if self.block_size == 1024 { 2 } else { 1 }
    }

    /// Reads a block by its number on the disk.
    pub(crate) fn read(&self, block: u32) -> Result<Vec<u8>> {
        if u64::from(block) >= self.blocks {
            return Err(Error::corrupt(Place::Journal(block.into()), "it lies beyond the journal's disk"));
        }
        let mut bytes = vec![0; self.block_size as usize];
        let offset = u64::from(block) * u64::from(self.block_size);
        self.disk.read_at(&mut bytes, offset).map_err(|source| Error::disk("read", source))?;
        Ok(bytes)
    }

    /// Reads the journal's own superblock.
    pub(crate) fn superblock(&self) -> Result<JournalSuperblock> {
        let journal =
            JournalSuperblock::parse(&self.read(self.start())?[..1024], self.block_size, self.blocks)?;
        if journal.users() > 1 {
            return Err(Error::unsupported("the journal is shared by several filesystems"));
        }
        Ok(journal)
    }

    /// Writes the journal's own superblock.
    pub(crate) fn write(&self, superblock: &[u8]) -> Result<()> {
        let offset = u64::from(self.start()) * u64::from(self.block_size);
        self.disk.write_at(superblock, offset).map_err(|source| Error::disk("write", source))?;
        self.disk.flush().map_err(|source| Error::disk("flush", source))
    }
}
