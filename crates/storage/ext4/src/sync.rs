//! Writing everything pending, so that the disk beneath holds a consistent volume.

use crate::error::Result;
use crate::layout::SUPERBLOCK_OFFSET;
use crate::volume::Ext4;

impl Ext4 {
    /// Writes what owners use into the quota files, bitmaps' checksums into descriptors, descriptors and all other metadata into their blocks, and
    /// the superblock last.
    pub(crate) fn sync_volume(&mut self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        if self.changed {
            self.write_changes()?;
        }
        self.cache.release_guard(&self.superblock, self.now.seconds)
    }

    fn write_changes(&mut self) -> Result<()> {
        self.write_quota()?;
        self.seal_bitmaps()?;
        self.groups.write(&mut self.cache, &self.superblock)?;
        self.cache.flush()?;
        let kibibytes = self.cache.take_bytes_written().div_ceil(1024) + 1;
        self.superblock.record_write(kibibytes, self.now.seconds);
        self.cache.write_data(&self.superblock.encode(), SUPERBLOCK_OFFSET)?;
        self.cache.take_bytes_written();
        self.changed = false;
        Ok(())
    }
}
